"""Rows of which one value is left, on a CPU: sums, extremes and their places, norms, losses."""

from __future__ import annotations

from typing import Any

from ksearch.families import cpu
from ksearch.families.base import Space, nearest
from ksearch.launch import Launch
from ksearch.operators.program import Program
from ksearch.operators.stages import Kind
from ksearch.types import Config, ConfigValue, Target, Workload

_PART = 32768
"""Columns of a part in the template; a row of one part cannot be split."""


class ReductionCpu:
    name = "reduction"
    template = "cpu/reduction.cpp.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        cols, rows = workload.cols, workload.rows
        has_online = Kind.SUM_EXP in program.online_kinds

        def is_valid(config: Config) -> bool:
            return cpu.is_filled(config, cols) and cpu.is_shared_out(config, workload, _PART + 1)

        return Space(
            axes={
                "reduction": ("online", "two_step") if has_online else ("two_step",),
                "simd": cpu.simd_bytes(target, cols),
                "unroll": (4, 8, 2, 1),
                "threads": cpu.thread_counts(workload, target),
                "rows_per_task": (0, 1, 4, 16),
                "split": (False, True),
            },
            is_valid=is_valid,
            free={"prefetch": (False, True) if rows > 1 else (False,)},
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        split, few = workload.rows < target.units, cpu.for_size(workload)
        few.pop("store", None)
        return nearest(
            self.space(program, workload, target),
            {"reduction": "two_step", "unroll": 4, "split": split, **few},
            {"reduction": "online", "unroll": 8, "split": split},
            {"reduction": "two_step", "unroll": 4, "rows_per_task": 16, "split": split, "prefetch": True},
        )

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        return cpu.launch(config, workload)

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        schedule = program.schedule({Kind.SUM_EXP} if config["reduction"] == "online" else ())
        return {
            **cpu.common_variables(program, workload),
            "schedule": schedule,
            "text": schedule.text,
            "kept": -1,
            "totals": schedule.totals,
            "has_rows": any(node.op == "rows" for node in program.nodes),
            "places": any(schedule.places),
            "output_dtypes": program.output_dtypes(workload.dtype),
            "batch": workload.shape[0],
        }
