"""A winner's kernel as the source files describe it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ksearch
from ksearch.errors import UsageError
from ksearch.export.reference import reference_name
from ksearch.launch import Launch
from ksearch.operators.program import Input, Role
from ksearch.types import Winner, Workload

if TYPE_CHECKING:
    from ksearch.operators import Op

_TAKEN = frozenset(
    (
        "address", "arguments", "at", "c10", "device", "each", "error", "freed", "guard", "launcher", "map0",
        "map1", "options", "pointer", "product", "rows", "run", "scratch", "self", "size", "std", "stream",
        "torch", "workspace",
    )
)  # fmt: skip
"""Names that the files use themselves."""


@dataclass(frozen=True, slots=True)
class ExportedKernel:
    """One kernel with the op that it computes."""

    op: Op
    winner: Winner
    launch: Launch
    text: str
    """Its source, complete in itself."""

    @classmethod
    def of(cls, op: Op, winner: Winner, text: str | None) -> ExportedKernel:
        """Raises UsageError where PyTorch won, or the op is not what it was when this was tuned."""
        workload = winner.workload
        if winner.launch is None or text is None:
            raise UsageError(
                f"PyTorch won for {workload} on {winner.target.device}: there is no kernel to write out"
            )
        if workload.is_prepacked:
            raise UsageError(
                f"the kernel for {workload} takes a packed weight, and a source file has nothing to pack it "
                "with: export a bundle, or tune it without prepacked"
            )
        if op.program(**dict(workload.options)).digest != workload.program:
            raise UsageError(f"{op.name} was edited since {workload} was tuned: tune it again")
        return cls(op, winner, winner.launch, text)

    @property
    def workload(self) -> Workload:
        return self.winner.workload

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors of a call, in order, as the files call them."""
        return tuple(self._names.values())

    @property
    def operands(self) -> tuple[str, ...]:
        """What the kernel reads: the inputs; PyTorch's product and the others, where it goes on from that."""
        if not self.launch.torch_product:
            return self.inputs
        rest = [item for place, item in enumerate(self._items) if place != self.launch.torch_bias]
        return ("product", *(self._names[item.name] for item in rest if not item.role.is_operand))

    @property
    def factors(self) -> tuple[str, str]:
        """The two tensors that PyTorch multiplies, where the kernel goes on from its product."""
        names = {item.role: self._names[item.name] for item in self._items}
        return names[Role.LEFT], names[Role.RIGHT]

    @property
    def bias(self) -> str:
        """The tensor that PyTorch adds to that product; empty where there is none."""
        return "" if self.launch.torch_bias is None else self.inputs[self.launch.torch_bias]

    @property
    def rows(self) -> tuple[int, int]:
        """The fewest and the most that its launcher takes."""
        known = self.launch.most_rows > 0
        return (1, self.launch.most_rows) if known else (self.workload.rows, self.workload.rows)

    @property
    def _names(self) -> dict[str, str]:
        """Each tensor's own name and that in the files, which use some names themselves."""
        own, taken = {item.name for item in self._items}, _TAKEN | {reference_name(self.op)}
        names = {}
        for item in self._items:
            name = item.name
            while name in taken or (name != item.name and name in own):
                name += "_"
            names[item.name] = name
        return names

    @property
    def _items(self) -> tuple[Input, ...]:
        return self.op.inputs_for(dict(self.workload.options))

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(f"out{number}" for number in range(len(self.op.output_shapes(self.workload))))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Of each input, then of each output."""
        inputs = tuple(item.dtype(self.workload.dtype) for item in self._items)
        return (*inputs, *self.op.output_dtypes(self.workload))

    @property
    def declared(self) -> tuple[str, ...]:
        """The parameters of its launcher that are tensors, in C."""
        inputs = tuple(f"const void* {name}" for name in self.operands)
        return (*inputs, *(f"void* {name}" for name in self.outputs))

    @property
    def conditions(self) -> list[str]:
        """What its launcher believes of the tensors, in lines."""
        workload = self.workload
        shapes = self.op.input_shapes(workload.shape, dict(workload.options), workload.inner)
        names, outputs = (*self.inputs, *self.outputs), self.op.output_shapes(workload)
        stated = zip(names, (*shapes, *outputs), self.dtypes, strict=True)
        listed = ", ".join(
            f"{name} {'x'.join(map(str, shape)) or '1'}"
            + (f" of {dtype}" if dtype in ("int64", "bool") else "")
            for name, shape, dtype in stated
        )
        text = (
            f"Tensors are contiguous, of {workload.dtype}, and start at a multiple of "
            f"{self.launch.alignment} bytes: {listed}, with rows = {workload.rows}, for which it was tuned. "
            f"It takes {self.rows[0]} to {self.rows[1]} rows. "
        )
        text += (
            "An output may be an input of its shape, and overlap no other tensor."
            if self.launch.in_place
            else "No output may overlap another tensor."
        )
        return textwrap.wrap(text, 100)

    @property
    def summary(self) -> list[str]:
        """What it is and what was measured, in lines."""
        winner, interval = self.winner, self.winner.certificate.get("speedup_ci")
        surely = f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        config = ", ".join(f"{name}={value}" for name, value in (winner.config or {}).items())
        found = (
            f"Found by ksearch {ksearch.__version__}: {winner.time_us:.1f} us where PyTorch takes "
            f"{winner.baseline_us:.1f} us, {winner.speedup:.2f} times as fast{surely}. Config: {config}."
        )
        target = winner.target
        lines = [f"{self.workload} on {target.device} ({target.arch}).", "", *textwrap.wrap(found, 100)]
        # In a docstring, or behind //: no name of a device or value of a config may end either.
        return [line.replace('"', "'").replace("\\", "/") for line in lines]


def head(kernel: ExportedKernel, command: str, more: Sequence[str], returns: str) -> str:
    """Of a file without PyTorch: what the kernel is, the command that compiles it, and its launcher, which
    takes `more` arguments behind the rows. Raises UsageError where PyTorch computes a part of the op."""
    if kernel.launch.torch_product:
        raise UsageError(
            f"the winner for {kernel.workload} goes on from PyTorch's own product, which a file without "
            "PyTorch does not have: export a .py file"
        )
    arguments = ", ".join((*kernel.declared, "long long rows", *more))
    lines = [
        *kernel.summary,
        "",
        f"To compile it: {command}",
        "",
        f"int {kernel.op.name}_launch({arguments})",
        "",
        returns,
        *kernel.conditions,
    ]
    return "".join(f"// {line}".rstrip() + "\n" for line in lines)
