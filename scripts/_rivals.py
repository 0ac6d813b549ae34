"""What tuned kernels are compared with: a copy of the same bytes, PyTorch, torch.compile, Liger."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ksearch import operators
from ksearch.operators import Op
from ksearch.operators.program import Role, as_tuple
from ksearch.types import Option

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One workload as tensors on the device, with memory for its results."""

    op: Op
    options: Mapping[str, Option]
    """Those that differ from the op's defaults."""
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]

    @property
    def out(self) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """As a handle's `out=` takes it."""
        return self.outputs[0] if len(self.outputs) == 1 else self.outputs


def make_case(
    name: str, shape: tuple[int, ...], dtype: str, device: str, options: Mapping[str, Option] | None = None
) -> Case:
    """Random inputs, every one in the shape that its role says. Raises UsageError and its kind."""
    op = operators.resolve(name)
    options = options or {}
    workload = op.workload(shape, dtype, **options)
    shapes = op.input_shapes(workload.shape, dict(workload.options), workload.inner)
    items = op.inputs_for(dict(workload.options))
    inputs = tuple(
        [
            torch.randint(workload.cols, each, device=device)
            if item.role is Role.INDEX
            else torch.rand(each, device=device) < 0.5
            if item.role is Role.MASK
            else torch.rand(each, dtype=getattr(torch, dtype), device=device)
            if item.role is Role.CHANNEL  # which may be a variance
            else torch.randn(each, dtype=getattr(torch, dtype), device=device)
            for item, each in zip(items, shapes, strict=True)
        ]
    )
    results = zip(op.output_shapes(workload), op.output_dtypes(workload), strict=True)
    outputs = tuple([torch.zeros(each, dtype=getattr(torch, kind), device=device) for each, kind in results])
    return Case(op, options, inputs, outputs)


def rivals(case: Case, *, into: bool = True) -> dict[str, Call]:
    """A copy of the same bytes, and PyTorch: `into` memory that is there already where it can do that."""
    return {"copy_": _copy(case), "eager": _eager(case, into)}


def _copy(case: Case) -> Call:
    """As many bytes read as written, and together what any kernel of the op must move.

    Of one tensor to one more it is `copy_` itself: what weights add is left out. Else whole multiples of 2^16
    elements, because a copy of a few more can take 10 % longer.
    """
    tensors = (*case.inputs, *case.outputs)
    full = [tensor for tensor in case.inputs if tensor.shape == case.inputs[0].shape]
    if len(full) == len(case.outputs) == 1 and case.outputs[0].shape == full[0].shape:
        source, result = case.inputs[0], case.outputs[0]
    else:
        half = round(sum(tensor.nbytes for tensor in tensors) / 2 / tensors[0].itemsize)
        half -= half % (1 << 16) if half > 1 << 16 else 0
        source = torch.rand(half, dtype=tensors[0].dtype, device=tensors[0].device)
        result = torch.zeros_like(source)
    return functools.partial(result.copy_, source)


_OUT: dict[str, Callable[..., Call]] = {
    "softmax": lambda x, dim="-1": functools.partial(torch.softmax, x, int(dim)),
    "log_softmax": lambda x, dim="-1": functools.partial(torch.log_softmax, x, int(dim)),
    "sigmoid": lambda x: functools.partial(torch.sigmoid, x),
    "tanh": lambda x: functools.partial(torch.tanh, x),
    "exp": lambda x: functools.partial(torch.exp, x),
    "gelu": lambda x, approximate="none": functools.partial(
        torch.nn.functional.gelu, x, approximate=approximate
    ),
    "silu": lambda x: functools.partial(torch._C._nn.silu, x),
    "add": lambda x, other, alpha=1.0: functools.partial(torch.add, x, other, alpha=alpha),
    "mul": lambda x, other: functools.partial(torch.mul, x, other),
    # The op's own function would be two kernels: PyTorch's best is one.
    "residual_add": lambda x, residual, scale=1.0: functools.partial(torch.add, x, residual, alpha=scale),
}
"""PyTorch's functions that take `out=`, of the tensors and the function's own options."""


def _eager(case: Case, into: bool) -> Call:
    if into and (function := _OUT.get(case.op.name)) is not None:
        return functools.partial(function(*case.inputs, **case.op.keywords(case.options)), out=case.out)
    return functools.partial(case.op.caller(case.options), *case.inputs)


_SEARCHED_BYTES = 64 << 20


def compiled(case: Case) -> Call:
    """torch.compile with its own search for the best Triton config. No CUDA graphs: they copy the inputs.

    Coordinate descent compiles config after config, so it is for inputs of at most 64 MB; larger ones get
    the configs that inductor races without it.
    """
    torch._dynamo.reset()
    function = case.op.caller(case.options)
    if case.inputs[0].nbytes <= _SEARCHED_BYTES:
        fast = torch.compile(function, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)
    else:
        fast = torch.compile(function, options={"max_autotune": True}, fullgraph=True, dynamic=False)
    return functools.partial(fast, *case.inputs)


def liger(case: Case) -> Call | None:
    """Liger's Triton kernel for the op, None where it has none or is not installed."""
    if case.inputs[0].device.type != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel import ops  # a second to import, and only where there is a GPU

    eps = dict(case.op.bind(case.options)).get("eps")
    known = {
        ("softmax", 1): (ops.LigerSoftmaxFunction,),
        ("rmsnorm", 2): (ops.LigerRMSNormFunction, eps),
        ("layernorm", 3): (ops.LigerLayerNormFunction, eps),
        ("add_rmsnorm", 3): (ops.LigerFusedAddRMSNormFunction, eps),
        ("swiglu", 2): (ops.LigerSiLUMulFunction,),
    }
    found = known.get((case.op.name, len(case.inputs)))
    return None if found is None else functools.partial(found[0].apply, *case.inputs, *found[1:])


def check(case: Case, call: Call) -> None:
    """Raises ArithmeticError where a rival computes something else, by its first 8 rows if they are apart."""
    program = case.op.program(**case.options)
    rows = 8 if program.over and not program.is_total else None
    along = (Role.FULL, Role.COLUMN, Role.INDEX)
    pairs = zip(case.inputs, case.op.inputs_for(case.op.options | case.options), strict=True)
    heads = [each[:rows] if rows and item.role in along else each for each, item in pairs]
    wanted = as_tuple(case.op.reference(*heads, **case.options))
    for result, right in zip(as_tuple(call()), wanted, strict=True):
        head = result[:rows] if rows else result
        off = (head.float() - right.float()).abs().max().item()
        most = right.float().abs().max().item()
        if not off <= 0.03 * most:
            raise ArithmeticError(f"off by {off:.3g} where the largest value is {most:.3g}")
