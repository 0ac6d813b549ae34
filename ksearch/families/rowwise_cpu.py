"""Rows reduced and then mapped on a CPU: softmax, norms and the like, one row at a time in the caches.

The last sum's terms (the exponentials of a softmax) can wait in a buffer for the output pass.
"""

from __future__ import annotations

import re
from typing import Any

from ksearch.families import cpu, kept
from ksearch.families.base import Space, nearest
from ksearch.launch import Launch
from ksearch.operators.program import Program
from ksearch.operators.stages import Kind
from ksearch.types import Config, ConfigValue, Target, Workload

_KEEP_BYTES = 256 * 1024
"""The buffer lives on each thread's stack and must stay in its level 2 cache."""
_SPLIT_COLS = 16384
"""Shorter rows are over before the threads have met: a barrier costs 1-2 us."""

_ROW_DIVISION = re.compile(r"/ ks::splat<T>\((row\.\w+)\)")


class RowwiseCpu:
    name = "rowwise"
    template = "cpu/rowwise.cpp.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        cols, rows = workload.cols, workload.rows
        two_step = program.schedule()
        has_online = Kind.SUM_EXP in program.online_kinds
        can_keep = kept.find(two_step, Kind.SUM) is not None and cols * 4 <= _KEEP_BYTES
        is_per_row = all(program.per_row)  # then there is too little to store to go past the caches with

        def is_valid(config: Config) -> bool:
            if not cpu.is_filled(config, cols) or not cpu.is_streamable(config, workload):
                return False
            if config["keep"] and config["reduction"] == "online":
                return False
            return cpu.is_shared_out(config, workload, _SPLIT_COLS)

        return Space(
            axes={
                "reduction": ("two_step", "online") if has_online else ("two_step",),
                "simd": cpu.simd_bytes(target, cols),
                "unroll": (4, 8, 2, 1),
                "threads": cpu.thread_counts(workload, target),
                "rows_per_task": (0, 1, 4, 16),
                "split": (False, True),
                "keep": (True, False) if can_keep else (False,),
                "store": ("temporal",) if is_per_row else cpu.stores(target),
            },
            is_valid=is_valid,
            free={
                "prefetch": (True, False) if rows > 1 and not workload.segment else (False,),
                "reciprocal": (True, False) if _ROW_DIVISION.search(two_step.text) else (False,),
            },
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        split = workload.rows < target.units
        return nearest(
            self.space(program, workload, target),
            {"reduction": "two_step", "unroll": 8, "split": split, "keep": True, **cpu.for_size(workload)},
            {"reduction": "two_step", "unroll": 4, "rows_per_task": 16, "split": split, "reciprocal": False},
            {"reduction": "online", "unroll": 8, "split": split},
            {"reduction": "two_step", "unroll": 4, "store": "temporal", "prefetch": False},
        )

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        return cpu.launch(config, workload)

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        schedule = program.schedule({Kind.SUM_EXP} if config["reduction"] == "online" else ())
        index, text = -1, schedule.text
        if config["keep"] and (found := kept.find(schedule, Kind.SUM)) is not None:
            index, text = found.index, found.text
        if config["reciprocal"]:
            text = _ROW_DIVISION.sub(r"* ks::splat<T>(1.0f / \1)", text)
        return {
            **cpu.common_variables(program, workload),
            "schedule": schedule,
            "text": text,
            "kept": index,
            "per_row": all(program.per_row),
        }
