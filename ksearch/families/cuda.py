"""What the CUDA families share: the limits of a multiprocessor and the facts that templates print."""

from __future__ import annotations

from typing import Any

from ksearch.operators.program import Program, Role
from ksearch.types import ConfigValue

# Limits of sm_80 and sm_90 (CUDA C++ Programming Guide, compute capabilities); sm_86 to sm_89 hold 1536
# threads.
REGISTERS_PER_SM = 65536
THREADS_PER_SM = 2048
MAX_REGISTERS = 255
OLDEST_ARCH = 80
"""NaN-propagating max and bfloat16 conversions need sm_80."""
CLUSTER_ARCH = 90
"""Thread-block clusters and bulk copies need sm_90."""

LOADS = ("default", "nc", "cs")
STORES = ("default", "cs")


def compute_capability(arch: str) -> int:
    """90 from `sm_90a`."""
    return int(arch.removeprefix("sm_").rstrip("af"))


def register_cap(block: int, min_blocks: int) -> int:
    """Registers a thread may have so that min_blocks blocks fit on a multiprocessor: multiples of 8."""
    return min(MAX_REGISTERS, REGISTERS_PER_SM // (block * min_blocks) // 8 * 8)


def math_axis(program: Program) -> tuple[ConfigValue, ...]:
    """Exact and fast differ only for exp and sigmoid: no axis where neither occurs."""
    return ("fast", "exact") if any(node.op in ("exp", "sigmoid") for node in program.nodes) else ("exact",)


def vectors(cols: int, itemsize: int) -> tuple[int, ...]:
    """Vector widths in elements, up to 16 bytes, widest first."""
    widest = 16 // itemsize
    return tuple(v for v in (8, 4, 2, 1) if v <= widest and (v <= cols or v == 1))


def inputs_by_role(program: Program) -> dict[str, Any]:
    """Names of the inputs by role, as the templates read them."""
    return {
        "full_inputs": [i.name for i in program.inputs if i.role is Role.FULL],
        "row_inputs": [i.name for i in program.inputs if i.role is Role.ROW],
        "column_inputs": [i.name for i in program.inputs if i.role is Role.COLUMN],
        "scalar_inputs": [i.name for i in program.inputs if i.role is Role.SCALAR],
    }


def common_variables(program: Program) -> dict[str, Any]:
    return {"program": program, "outputs": program.output_names, **inputs_by_role(program)}
