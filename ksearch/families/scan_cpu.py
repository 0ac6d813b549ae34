"""Sums and products along rows on a CPU, a vector at a time; few long rows are shared out to the threads."""

from __future__ import annotations

from typing import Any

from ksearch.families import cpu
from ksearch.families.base import Space, nearest
from ksearch.families.scan_cuda import parts, scan_variables
from ksearch.launch import Launch
from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Target, Workload

_SPLIT_COLS = 65536
"""Shorter rows are over before the threads have met."""


class ScanCpu:
    name = "scan"
    template = "cpu/scan.cpp.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        def is_valid(config: Config) -> bool:
            is_streamable = cpu.is_streamable(config, workload)
            return is_streamable and cpu.is_shared_out(config, workload, _SPLIT_COLS)

        return Space(
            axes={
                "simd": cpu.simd_bytes(target, workload.cols),
                "threads": cpu.thread_counts(workload, target),
                "rows_per_task": (0, 1, 4, 16),
                # A product of thousands of elements is 0 where their scan is not.
                "split": (False, True) if parts(program)["kind"] == "sum" else (False,),
                "store": cpu.stores(target),
            },
            is_valid=is_valid,
            free={"prefetch": (0, 512, 2048)},
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        split = workload.rows < target.units
        return nearest(
            self.space(program, workload, target),
            {"split": split, "prefetch": 512, **cpu.for_size(workload)},
            {"rows_per_task": 4, "split": split, "prefetch": 2048},
            {"split": split, "store": "temporal", "prefetch": 0},
        )

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        return cpu.launch(config, workload)

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        return {**cpu.common_variables(program, workload), **scan_variables(program)}
