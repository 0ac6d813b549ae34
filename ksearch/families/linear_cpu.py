"""Linears on a CPU: PyTorch's own product, which is hard to beat there, and one pass for what follows it."""

from __future__ import annotations

from typing import Any

from ksearch.families.base import Space
from ksearch.families.linear_library import LinearLibrary
from ksearch.families.pointwise_cpu import PointwiseCpu
from ksearch.families.rowwise_cpu import RowwiseCpu
from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Launch, Target, Workload


class LinearCpu:
    name = "linear"
    template = "cpu/linear.cpp.j2"

    def __init__(self) -> None:
        self._library = LinearLibrary(PointwiseCpu(), RowwiseCpu())

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        return self._library.space(program, workload, target)

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        return self._library.guesses(program, workload, target)

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        return self._library.launch(config, program, workload, target)

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        return self._library.variables(config, program, workload, target)
