"""Sums and products along rows that lie side by side, on a CPU: lanes of a vector are neighbouring rows."""

from __future__ import annotations

from typing import Any

from ksearch.families import cpu
from ksearch.families.base import Space, nearest
from ksearch.families.scan_cuda import parts, scan_variables
from ksearch.launch import Launch
from ksearch.operators.program import Program, Role
from ksearch.types import Config, ConfigValue, Target, Workload

_SPLIT_COLS = 1024
"""Fewer are over before the threads have met."""


class StridedScanCpu:
    name = "strided_scan"
    template = "cpu/strided_scan.cpp.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        stride, groups = workload.stride, workload.rows // workload.stride

        def is_valid(config: Config) -> bool:
            block, threads = int(config["block"]), int(config["threads"])
            if not cpu.is_streamable(config, workload) or not cpu.is_block(config, stride):
                return False
            if not config["split"]:
                return config["tasks"] == "static" or threads > 1
            tasks = groups * -(-stride // block)
            is_shared = threads > 1 and workload.cols >= _SPLIT_COLS and tasks < 4 * threads
            return is_shared and config["tasks"] == "static"

        return Space(
            axes={
                "simd": cpu.simd_bytes(target, stride),
                "block": (4, 8, 16, 64, 256, 1024),
                "threads": cpu.thread_counts(workload, target),
                "tasks": ("static", "dynamic"),
                # A product of thousands of elements is 0 where their scan is not.
                "split": (False, True) if parts(program)["kind"] == "sum" else (False,),
                "store": cpu.stores(target),
            },
            is_valid=is_valid,
            free={"prefetch": (0, 1, 4)},
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        """Long lines of memory, as long as each thread has some of them."""
        tasks = workload.rows // target.units
        block = next((n for n in (1024, 256, 64) if n <= min(tasks, workload.stride)), 16)
        split = workload.rows < 16 * target.units
        return nearest(
            self.space(program, workload, target),
            {"split": split, "block": block, "tasks": "static", "prefetch": 0, **cpu.for_size(workload)},
            {"split": split, "block": block, "tasks": "static", "prefetch": 4},
            {"split": split, "block": max(16, block // 4), "tasks": "dynamic", "prefetch": 1},
            {"split": split, "block": block, "store": "temporal", "prefetch": 0},
        )

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        return cpu.launch(config, workload)

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        return {
            **cpu.common_variables(program, workload),
            **scan_variables(program, wide=True),
            "row_inputs": [item.name for item in program.inputs if item.role is Role.ROW],
            "stride": workload.stride,
        }
