"""Rows that lie side by side, reduced and mapped on a CPU: the lanes of a vector are neighbouring rows."""

from __future__ import annotations

from typing import Any

from ksearch.families import cpu
from ksearch.families.base import Space, nearest
from ksearch.launch import Launch
from ksearch.operators.program import Program
from ksearch.operators.stages import Kind, Schedule
from ksearch.types import Config, ConfigValue, Target, Workload

_CACHE_BYTES = 1 << 20
"""Of a task's columns that may stay in the caches of a core, from which a second pass takes them."""

_PART = 512
"""Columns of a part, at least: 32 KB of 16 rows."""


class StridedCpu:
    name = "strided"
    template = "cpu/strided.cpp.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        stride = workload.stride
        is_per_row = all(program.per_row)

        def is_valid(config: Config) -> bool:
            if not cpu.is_streamable(config, workload) or not cpu.is_block(config, stride):
                return False
            if config["parts"] != 1 and (workload.cols < _PART * int(config["parts"]) or not is_one(config)):
                return False
            return config["tasks"] == "static" or int(config["threads"]) > 1

        def is_one(config: Config) -> bool:
            """Whether there is one pass, so that parts need not wait for one another."""
            return is_per_row and len(_schedule(config, program).stages) == 1

        return Space(
            axes={
                "reduction": ("online", "two_step") if _is_online(program) else ("two_step",),
                "simd": cpu.simd_bytes(target, stride),
                "block": (4, 8, 16, 64, 256, 1024),
                "run": (8, 16, 32),
                "parts": tuple(n for n in (1, 4, 16, 64, 256) if n == 1 or is_per_row),
                "threads": cpu.thread_counts(workload, target),
                "tasks": ("static", "dynamic"),
                "store": ("temporal",) if is_per_row else cpu.stores(target),
            },
            is_valid=is_valid,
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        fitting = _CACHE_BYTES // (workload.cols * workload.itemsize)
        block = next((n for n in (1024, 256, 64) if n <= fitting and n <= workload.stride), 16)
        count = workload.cols // (8 * _PART)
        if all(program.per_row) and count > 1:
            # Few rows side by side: threads share their columns.
            parts = next((n for n in (256, 64, 16) if n <= count), 4)
            reduction = "online" if _is_online(program) else "two_step"
            return nearest(
                self.space(program, workload, target),
                {"parts": parts, "block": 64, "run": 16, "tasks": "static", "reduction": reduction},
                {"parts": parts, "block": 16, "run": 16, "tasks": "static", "reduction": reduction},
                {"parts": parts, "block": 256, "run": 32, "tasks": "dynamic", "reduction": reduction},
            )
        return nearest(
            self.space(program, workload, target),
            {"block": block, "run": 16, "tasks": "static", **cpu.for_size(workload)},
            {"block": 4 * block, "run": 16, "store": "temporal"},
            {"block": max(16, block // 4), "run": 32, "tasks": "dynamic"},
        )

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        return cpu.launch(config, workload)

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        return {
            **cpu.common_variables(program, workload),
            "schedule": _schedule(config, program),
            "stride": workload.stride,
            "per_row": all(program.per_row),
        }


def _schedule(config: Config, program: Program) -> Schedule:
    return program.schedule({Kind.SUM_EXP} if config["reduction"] == "online" else (), wide=True)


def _is_online(program: Program) -> bool:
    return Kind.SUM_EXP in program.online_kinds
