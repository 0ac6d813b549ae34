"""Rows that lie side by side, reduced and mapped on a CPU: the lanes of a vector are neighbouring rows."""

from __future__ import annotations

from typing import Any

from ksearch.families import cpu
from ksearch.families.base import Space, nearest
from ksearch.operators.program import Kind, Program
from ksearch.types import Config, ConfigValue, Launch, Target, Workload

_CACHE_BYTES = 1 << 20
"""Of a task's columns that may stay in the caches of a core, from which a second pass takes them."""


class StridedCpu:
    name = "strided"
    template = "cpu/strided.cpp.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        stride = workload.stride
        is_per_row = all(program.per_row)

        def is_valid(config: Config) -> bool:
            if not cpu.is_streamable(config, workload) or not cpu.is_block(config, stride):
                return False
            return config["tasks"] == "static" or int(config["threads"]) > 1

        return Space(
            axes={
                "reduction": ("online", "two_step") if _is_online(program) else ("two_step",),
                "simd": cpu.simd_bytes(target, stride),
                "block": (4, 8, 16, 64, 256, 1024),
                "run": (8, 16, 32),
                "threads": cpu.thread_counts(workload, target),
                "tasks": ("static", "dynamic"),
                "store": ("temporal",) if is_per_row else cpu.stores(target),
            },
            is_valid=is_valid,
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        fitting = _CACHE_BYTES // (workload.cols * workload.itemsize)
        block = next((n for n in (1024, 256, 64) if n <= fitting and n <= workload.stride), 16)
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
        online = {Kind.SUM_EXP} if config["reduction"] == "online" else ()
        return {
            **cpu.common_variables(program, workload),
            "schedule": program.schedule(online, wide=True),
            "stride": workload.stride,
            "per_row": all(program.per_row),
        }


def _is_online(program: Program) -> bool:
    return Kind.SUM_EXP in program.online_kinds
