"""An Op: what is computed, by the name that people use for it.

It is defined by a plain PyTorch function alone; the Program, the cost and the float64 reference all
follow from that function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from ksearch.errors import BadShape, UnsupportedDtype, UsageError
from ksearch.operators.program import Input, Program, Role
from ksearch.operators.shape import check_shape
from ksearch.operators.signature import check_option, parse_option
from ksearch.types import ITEMSIZE, Option, Workload

if TYPE_CHECKING:
    from torch import Tensor

    from ksearch.operators.template_op import TemplateOp

_Options: TypeAlias = tuple[tuple[str, Option], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """What is computed: a function of tensors, and what is known about it."""

    name: str
    function: Callable[..., Tensor]
    inputs: tuple[Input, ...]
    options: Mapping[str, Option]
    """Keyword options with their defaults."""
    location: str
    """Text from which `resolve` finds this op in another process: `softmax`, `/home/me/my_ops.py:swish`."""
    template_op: TemplateOp | None = None
    """The user's class where the op brings its own template; then nothing is traced."""
    _programs: dict[_Options, Program] = field(default_factory=dict, init=False, repr=False)
    _checked: set[Workload] = field(default_factory=set, init=False, repr=False)

    def bind(self, options: Mapping[str, object]) -> _Options:
        """All options sorted by name: those given and the others' defaults. Raises UsageError."""
        bound = dict(self.options)
        for name, value in options.items():
            bound[name] = check_option(self.name, name, value, self._default(name))
        return tuple(sorted(bound.items()))

    def parse_option(self, name: str, text: str) -> Option:
        """An option as written on a command line, such as `eps` and `1e-5`. Raises UsageError."""
        return parse_option(self.name, name, text, self._default(name))

    def _default(self, name: str) -> Option:
        if name not in self.options:
            known = ", ".join(self.options) or "it has none"
            raise UsageError(f"{self.name} has no option {name!r}; its options: {known}")
        return self.options[name]

    def program(self, **options: Option) -> Program:
        """What the function computes with these options; traced once for each set. Raises TraceError."""
        bound = self.bind(options)
        if bound not in self._programs:
            self._programs[bound] = self._trace(dict(bound))
        return self._programs[bound]

    def _trace(self, options: Mapping[str, Option]) -> Program:
        if self.template_op is not None:
            return self.template_op.program(self.inputs)
        from ksearch.operators.trace import trace  # imports torch

        return trace(self.function, self.inputs, options)

    def workload(self, shape: Iterable[int], dtype: str = "float32", **options: Option) -> Workload:
        """This op on tensors of one shape and dtype (`float32` or `torch.float32`).

        Raises BadShape, UnsupportedDtype, UsageError for an option, TraceError.
        """
        dtype = str(dtype).removeprefix("torch.")
        if dtype not in ITEMSIZE:
            raise UnsupportedDtype(f"{self.name} has no kernel for {dtype}; supported: {', '.join(ITEMSIZE)}")
        bound = self.bind(options)
        program = self.program(**dict(bound)).digest
        workload = Workload(self.name, check_shape(shape), dtype, bound, program)
        if self.template_op is None and workload not in self._checked:
            self._check_result(workload)
            self._checked.add(workload)
        return workload

    def input_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shape of each input, where the first has `shape`."""
        shapes = {Role.FULL: shape, Role.ROW: shape[-1:], Role.COLUMN: (*shape[:-1], 1)}
        return [shapes[item.role] for item in self.inputs]

    def reference(self, *tensors: Tensor, **options: Option) -> Tensor:
        """The plain function on these tensors: any dtype and device, whole or in blocks of rows."""
        if len(tensors) != len(self.inputs):
            names = ", ".join(item.name for item in self.inputs)
            raise UsageError(f"{self.name} takes {len(self.inputs)} tensors ({names}), not {len(tensors)}")
        return self.function(*tensors, **(dict(self.bind(options)) if options else self.options))

    def _check_result(self, workload: Workload) -> None:
        """A kernel gives the shape and dtype of the first input; so must the function, run without data."""
        import torch

        dtype = getattr(torch, workload.dtype)
        shapes = self.input_shapes(workload.shape)
        tensors = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
        try:
            result: Any = self.function(*tensors, **dict(workload.options))
        except Exception as error:  # the user's own code: it may raise anything
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadShape(f"{self.name} does not run on shape {workload.shape_text}: {text}") from error
        if tuple(result.shape) != workload.shape:
            shape = "x".join(map(str, result.shape))
            raise BadShape(
                f"{self.name} gives shape {shape} for {workload.shape_text}: it must keep the shape"
            )
        if result.dtype != dtype:
            gives = str(result.dtype).removeprefix("torch.")
            remedy = f"end it with .to({self.inputs[0].name}.dtype)"
            raise UnsupportedDtype(f"{self.name} gives {gives} for {workload.dtype}: {remedy}")
