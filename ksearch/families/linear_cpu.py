"""Linears on a CPU: PyTorch's own product, which is hard to beat there, and one pass for what follows it.

Prepacked, the product is oneDNN's on a weight that PyTorch reorders for it (`ksearch.packing`).
"""

from __future__ import annotations

from typing import Any

from ksearch.errors import UsageError
from ksearch.families.base import Space
from ksearch.families.linear_library import LinearLibrary
from ksearch.families.pointwise_cpu import PointwiseCpu
from ksearch.families.rowwise_cpu import RowwiseCpu
from ksearch.launch import Launch
from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Target, Workload

_PACKED = {"float32": "x86_64-", "bfloat16": "x86_64-avx512"}
"""For each dtype how the CPUs are called whose oneDNN has a reordered weight. Of float16 it has one only with
instructions that Target.arch does not tell of."""


class LinearCpu:
    name = "linear"
    template = "cpu/linear.cpp.j2"

    def __init__(self) -> None:
        self._library = LinearLibrary(PointwiseCpu(), RowwiseCpu())

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        """Raises UsageError where a weight is to be packed that cannot be."""
        if workload.is_prepacked and not target.arch.startswith(_PACKED.get(workload.dtype, "nothing")):
            raise UsageError(
                f"{workload.op} in {workload.dtype} has no prepacked kernel on {target.device}: PyTorch has "
                "reordered weights of float32 on x86_64, and of bfloat16 with AVX-512; leave prepacked out"
            )
        return self._library.space(program, workload, target)

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        return self._library.guesses(program, workload, target)

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        return self._library.launch(config, program, workload, target)

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        return self._library.variables(config, program, workload, target)
