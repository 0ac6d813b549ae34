"""What a program costs at least: bytes that must move and operations that must be done, on any machine.

Apart from the Program, which is free of shapes: this is of one workload.
"""

from __future__ import annotations

from dataclasses import dataclass

from ksearch.operators.program import LEAVES, Program, Role
from ksearch.types import INDEX_BYTES, Workload


@dataclass(frozen=True, slots=True)
class Cost:
    """The least that any kernel must do."""

    bytes: int
    """Every input that is read, once, and every output, once."""
    operations: int
    """Functions and arithmetic per element, reductions included, over all elements."""


def cost_of(program: Program, workload: Workload) -> Cost:
    """What must happen at least, on any machine."""
    read = {str(node.args[0]) for node in program.nodes if node.op == "input"}
    if program.linear is not None:
        read |= {str(name) for name in program.linear.args}
    sizes = element_counts(workload.rows, workload.cols, workload.inner, workload.channels)
    moved = [*zip(program.output_roles, program.output_dtypes(workload.dtype), strict=True)]
    moved += [(item.role, item.dtype(workload.dtype)) for item in program.inputs if item.name in read]
    moved_bytes = sum(
        sizes[role] * {"int64": INDEX_BYTES, "bool": 1}.get(dtype, workload.itemsize) for role, dtype in moved
    )
    per_element = sum(
        1
        for node, per_column in zip(program.nodes, program.elementwise, strict=True)
        if node.op.startswith("reduce_") or (per_column and node.op not in LEAVES)
    )
    per_element += 2 * workload.inner
    return Cost(bytes=moved_bytes, operations=per_element * workload.numel)


def element_counts(rows: int, cols: int, inner: int, channels: int = 1) -> dict[Role, int]:
    """How many elements a tensor of each role has."""
    return {
        Role.FULL: rows * cols, Role.ROW: cols, Role.COLUMN: rows, Role.SCALAR: 1,
        Role.LEFT: rows * inner, Role.RIGHT: cols * inner, Role.INDEX: rows, Role.CHANNEL: channels,
        Role.MASK: rows * cols,
    }  # fmt: skip
