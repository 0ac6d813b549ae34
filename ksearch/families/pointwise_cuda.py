"""Elements mapped one by one on a GPU: a copy with arithmetic on the way.

Bound by memory: what matters is bytes in flight (vec x unroll x block) and the cache policies.
"""

from __future__ import annotations

from typing import Any

from ksearch.families import cuda
from ksearch.families.base import Space
from ksearch.families.channels import channel_variables
from ksearch.launch import ANY_ROWS, Launch
from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Target, Workload

SPARE_REGISTERS = 32
"""Registers beside the vectors in flight (tests/families/test_cuda_compile.py)."""


class PointwiseCuda:
    name = "pointwise"
    template = "cuda/pointwise.cu.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        reads = max(1, len(program.inputs))
        itemsize, numel = workload.itemsize, workload.numel

        def is_valid(config: Config) -> bool:
            block, vec, unroll, min_blocks = (
                int(config[n]) for n in ("block", "vec", "unroll", "min_blocks")
            )
            if block * min_blocks > cuda.THREADS_PER_SM or (
                unroll > 1 and block * vec * (unroll // 2) >= numel
            ):
                return False
            words = unroll * max(1, vec * itemsize // 4) * reads + vec * len(program.outputs)
            return words + SPARE_REGISTERS <= cuda.register_cap(block, min_blocks)

        return Space(
            axes={
                "block": (64, 128, 256, 512, 1024),
                "vec": cuda.vectors(numel, itemsize),
                "unroll": (1, 2, 4, 8),
                "grid": ("one_shot", "persistent"),
                "min_blocks": (1, 2, 4),
            },
            is_valid=is_valid,
            free={"load": cuda.LOADS, "store": (*cuda.STORES, "cg"), "math": cuda.math_axis(program)},
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        """What led for gelu, silu and swiglu on an H200: small blocks, 64 bytes in flight a thread."""
        vec = 16 // workload.itemsize
        base: dict[str, ConfigValue] = {
            "block": 128, "vec": vec, "unroll": workload.itemsize, "grid": "one_shot", "min_blocks": 1,
            "load": "default", "store": "cg", "math": cuda.math_axis(program)[0],
        }  # fmt: skip
        return [
            base,
            {**base, "block": 64, "vec": vec // 2, "unroll": 4},
            {**base, "block": 512, "unroll": 8, "store": "default"},
            {**base, "block": 256, "unroll": 2, "load": "nc", "store": "default"},
        ]

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        block, vec, unroll = int(config["block"]), int(config["vec"]), int(config["unroll"])
        return Launch(
            work_per_row=workload.cols,
            work_per_block=block * vec * unroll,
            block=block,
            persistent=config["grid"] == "persistent",
            alignment=vec * workload.itemsize,
            most_rows=ANY_ROWS,
            in_place=config["load"] != "nc",  # which wants memory that nobody writes
        )

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        return {
            **cuda.common_variables(program),
            **channel_variables(program, workload),
            "schedule": program.schedule(),
        }
