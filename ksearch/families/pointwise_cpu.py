"""Elements mapped one by one on a CPU: a copy with arithmetic on the way.

Bound by memory for cheap functions, where streamed stores matter; by arithmetic for the others, where
the vector width does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ksearch.families import cpu
from ksearch.families.base import Space, nearest
from ksearch.launch import Launch
from ksearch.operators.program import Program, Role
from ksearch.types import Config, ConfigValue, Target, Workload

_BLOCKS = (4096, 16384, 65536)
"""Elements of a task."""


def _is_flat(program: Program) -> bool:
    """Whether no input differs by row or column alone, so that rows need not be told apart."""
    return all(item.role in (Role.FULL, Role.SCALAR) for item in program.inputs)


class PointwiseCpu:
    name = "pointwise"
    template = "cpu/pointwise.cpp.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        length = workload.numel if _is_flat(program) else workload.cols

        def is_valid(config: Config) -> bool:
            threads, block = int(config["threads"]), int(config["block"])
            if not cpu.is_filled(config, length) or not cpu.is_streamable(config, workload):
                return False
            if block > _BLOCKS[0] and block >= 2 * length:
                return False
            return not (config["tasks"] == "dynamic" and (threads == 1 or block * threads > workload.numel))

        return Space(
            axes={
                "simd": cpu.simd_bytes(target, length),
                "unroll": (1, 2, 4, 8),
                "threads": cpu.thread_counts(workload, target),
                "block": _BLOCKS,
                "tasks": ("static", "dynamic"),
                "store": cpu.stores(target),
            },
            is_valid=is_valid,
            free={"prefetch": (0, 512, 2048)},
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        return nearest(
            self.space(program, workload, target),
            {"unroll": 4, "block": 16384, "tasks": "static", "prefetch": 2048, **cpu.for_size(workload)},
            {"unroll": 2, "block": 16384, "tasks": "dynamic", "prefetch": 0},
            {"unroll": 4, "block": 4096, "tasks": "static", "prefetch": 0, "store": "temporal"},
        )

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        return replace(cpu.launch(config, workload), in_place=True)

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        schedule = program.schedule()
        return {
            **cpu.common_variables(program, workload),
            "schedule": schedule,
            "text": schedule.text,
            "flat": _is_flat(program),
        }
