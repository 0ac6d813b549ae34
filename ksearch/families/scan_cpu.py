"""Sums and products along rows on a CPU, a vector at a time; few long rows are shared out to the threads."""

from __future__ import annotations

from typing import Any

from ksearch.families import cpu
from ksearch.families.base import Space, nearest
from ksearch.families.scan_cuda import mask_inputs, parts
from ksearch.operators.program import SCANNED, Program
from ksearch.types import Config, ConfigValue, Launch, Target, Workload

_SPLIT_COLS = 65536
"""Shorter rows are over before the threads have met."""


class ScanCpu:
    name = "scan"
    template = "cpu/scan.cpp.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        cols, rows = workload.cols, workload.rows

        def is_valid(config: Config) -> bool:
            threads, rows_per_task = int(config["threads"]), int(config["rows_per_task"])
            if not cpu.is_streamable(config, workload):
                return False
            if config["split"]:
                return threads > 1 and cols >= _SPLIT_COLS and rows < 4 * threads and rows_per_task == 0
            return rows_per_task == 0 or (threads > 1 and rows_per_task * threads <= rows)

        return Space(
            axes={
                "simd": cpu.simd_bytes(target, cols),
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
        before, after = (part.schedule() for part in program.around_scan)
        return {
            **cpu.common_variables(program, workload),
            **parts(program),
            "mask_inputs": mask_inputs(program),
            "before": before,
            "after": after,
            "after_inputs": [name for name in after.output_inputs if name != SCANNED],
        }
