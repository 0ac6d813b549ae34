"""The calls with which torch tests its own functions (its OpInfo database), for the ops that equal them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ksearch import operators
from ksearch.errors import KsearchError
from ksearch.runtime.reading import Reader
from ksearch.types import ITEMSIZE, Workload

COVERED = {
    "add": ["add"],
    "amax": ["amax"],
    "amin": ["amin"],
    "argmax": ["argmax"],
    "argmin": ["argmin"],
    "batchnorm": ["nn.functional.batch_norm", "nn.functional.batch_norm.without_cudnn"],
    "clamp": ["clamp"],
    "cross_entropy": ["nn.functional.cross_entropy"],
    "cumprod": ["cumprod"],
    "cumsum": ["cumsum"],
    "elu": ["nn.functional.elu"],
    "exp": ["exp"],
    "gelu": ["nn.functional.gelu"],
    "groupnorm": ["nn.functional.group_norm"],
    "hardsigmoid": ["nn.functional.hardsigmoid"],
    "hardswish": ["nn.functional.hardswish"],
    "hardtanh": ["nn.functional.hardtanh"],
    "hinge_embedding_loss": ["nn.functional.hinge_embedding_loss"],
    "huber_loss": ["nn.functional.huber_loss"],
    "instancenorm": ["nn.functional.instance_norm"],
    "kl_div": ["nn.functional.kl_div"],
    "l1_loss": ["nn.functional.l1_loss"],
    "layernorm": ["nn.functional.layer_norm"],
    "leaky_relu": ["nn.functional.leaky_relu"],
    "linear": ["nn.functional.linear"],
    "log_softmax": ["log_softmax", "log_softmax.with_dtype"],
    "logsumexp": ["logsumexp"],
    "mean": ["mean"],
    "mish": ["nn.functional.mish"],
    "mse_loss": ["nn.functional.mse_loss"],
    "mul": ["mul"],
    "norm": ["linalg.vector_norm"],
    "prod": ["prod"],
    "relu": ["nn.functional.relu"],
    "rmsnorm": ["nn.functional.rms_norm"],
    "selu": ["nn.functional.selu"],
    "sigmoid": ["sigmoid"],
    "silu": ["nn.functional.silu", "nn.functional.silu.complex"],
    "smooth_l1_loss": ["nn.functional.smooth_l1_loss"],
    "softmax": ["softmax", "softmax.with_dtype"],
    "softplus": ["nn.functional.softplus"],
    "softsign": ["nn.functional.softsign"],
    "std": ["std", "std.unbiased"],
    "sum": ["sum"],
    "tanh": ["tanh"],
    "triplet_margin_loss": ["nn.functional.triplet_margin_loss"],
    "var": ["var", "var.unbiased"],
}
"""Every op that equals a function of torch, with what torch calls the samples of it."""

OURS = tuple(getattr(torch, name) for name in ITEMSIZE)


@dataclass(frozen=True, eq=False)
class Call:
    """One call, of torch's function or of ours."""

    function: Any
    """torch's."""
    args: tuple[Any, ...]
    named: dict[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [each for each in (*self.args, *self.named.values()) if isinstance(each, torch.Tensor)]

    def __str__(self) -> str:
        return ", ".join(map(_text, (*self.args, *self.named.items())))


def _text(thing: object) -> str:
    if not isinstance(thing, torch.Tensor):
        return repr(thing)
    return f"{tuple(thing.shape)}/{tuple(thing.stride())} {thing.dtype}"


@functools.cache
def _database() -> list[Any]:
    """Imported when first used: 2 s, and warnings of torch's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return op_db


@functools.cache
def infos(name: str) -> list[Any]:
    """Torch's entries for the function that the op equals."""
    function = operators.get(name).torch_function.rpartition(".")[2]
    names = {function, f"nn.functional.{function}", f"linalg.{function}"}
    return [info for info in _database() if info.name in names] if function else []


def dtypes(name: str, device: str) -> list[torch.dtype]:
    """Every dtype that torch's function has on the device."""
    return sorted({dtype for info in infos(name) for dtype in info.supported_dtypes(device)}, key=str)


def calls(name: str, device: str, dtype: torch.dtype, *, reference: bool = True) -> Iterator[Call]:
    """The samples of every entry, the same in every run; with `reference` torch's larger set, which has
    extreme values, odd strides and sizes up to a million."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for info in infos(name):
            if dtype not in info.supported_dtypes(device):
                continue
            make = info.reference_inputs if reference else info.sample_inputs
            for sample in make(device, dtype, requires_grad=False):
                call = Call(info.op, (sample.input, *sample.args), dict(sample.kwargs))
                yield call
                yield from _kernels_form(name, call)


def _kernels_form(name: str, call: Call) -> Iterator[Call]:
    """Torch bounds its clamps by tensors, leaves eps out, and mostly sums up along other dims than the last:
    what there are no kernels for, or only such of another template."""
    if name == "clamp":
        bounds = [None if each is None else each.flatten()[0].item() for each in call.args[1:]]
        yield Call(call.function, (call.args[0], *bounds), call.named)
    if name == "rmsnorm":
        yield Call(call.function, call.args, {**call.named, "eps": 1e-5})
    if name == "instancenorm":  # without running statistics
        vectors = {name: call.named.get(name) for name in ("weight", "bias")}
        yield Call(call.function, call.args[:1], vectors)
    if name in ("cumprod", "cumsum"):
        yield Call(call.function, (call.args[0], -1), {})


def workload_of(name: str, call: Call) -> Workload | None:
    """What a kernel for this call would be tuned for; None where there can be none."""
    op, first = operators.get(name), call.args[0]
    if not isinstance(first, torch.Tensor):
        return None
    reading = Reader(op).read(call.args, call.named)
    if reading.reason:
        return None
    try:
        workload = op.workload(reading.dims, str(first.dtype), **reading.options, **reading.roles)
    except KsearchError:
        return None
    options = dict(workload.options)
    accepted = op.accepted_shapes(workload.shape, options, workload.inner)
    wanted = [getattr(torch, item.dtype(workload.dtype)) for item in op.inputs_for(options)]
    given = reading.tensors(call.args, call.named)
    if len(given) != len(wanted):
        return None
    fit = zip(given, accepted, wanted, strict=True)
    return (
        workload if all(each.shape in shapes and each.dtype is kind for each, shapes, kind in fit) else None
    )


def fits(call: Call) -> bool:
    """Whether a kernel for the call's workload can take its very tensors, wherever they start."""
    kinds = {each.dtype for each in call.tensors if each.dtype is not torch.int64}  # that is an index
    return len(kinds) == 1 and all(each.is_contiguous() for each in call.tensors)
