"""Rows reduced and mapped on a GPU: softmax, norms, and whatever traces to that shape.

One space covers several rows a warp, a block or a cluster a row, persistent grids that prefetch, and a
loop for rows that fit nowhere. `research`: QuACK's cluster reductions and the online softmax of
Milakov and Gimelshein (arXiv 1805.02867).
"""

from __future__ import annotations

import math
from typing import Any

from ksearch.families.base import Space
from ksearch.families.cuda import (
    CLUSTER_ARCH,
    LOADS,
    STORES,
    THREADS_PER_SM,
    common_variables,
    compute_capability,
    math_axis,
    register_cap,
    vectors,
)
from ksearch.operators.program import Program, Role
from ksearch.types import Config, ConfigValue, Launch, Target, Workload

CLUSTERS = (1, 2, 4, 6, 8, 12, 16)
"""Any size works; 8 is the largest portable one and 16 must be asked for."""

SPARE_REGISTERS = 32
"""Registers beside the row itself. Compiled over every region of the space, no config that keeps
row + spare within the cap spills (tests/families/test_cuda_compile.py)."""


class RowwiseCuda:
    name = "rowwise"
    template = "cuda/rowwise.cu.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        cols, itemsize = workload.cols, workload.itemsize
        clusters = CLUSTERS if compute_capability(target.arch) >= CLUSTER_ARCH else (1,)
        bulk = compute_capability(target.arch) >= CLUSTER_ARCH and cols * itemsize % 16 == 0
        reads = max(1, sum(1 for i in program.inputs if i.role is Role.FULL))
        return Space(
            axes={
                "threads": tuple(
                    t for t in (4, 8, 16, 32, 64, 128, 256, 384, 512, 768, 1024) if t <= max(cols, 4)
                ),
                "rows": tuple(r for r in (1, 2, 4, 8, 16, 32) if r == 1 or cols <= 8192),
                "cluster": tuple(c for c in clusters if c == 1 or cols * itemsize >= 8192 * c),
                "vec": vectors(cols, itemsize),
                "storage": ("registers", "shared", "global") if bulk else ("registers", "global"),
                "prefetch": (0, 1, 2) if bulk else (0,),
                "unroll": (1, 2, 4, 8),
                "min_blocks": (1, 2, 3, 4, 8),
                "reduction": ("online", "two_step") if program.can_online else ("two_step",),
                "math": math_axis(program),
            },
            is_valid=lambda config: is_valid(config, cols, itemsize, reads, target.smem_bytes),
            free={"load": LOADS, "store": STORES},
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        """Nearest valid points to what is known to do well at this row length, best first."""
        row_bytes = workload.cols * workload.itemsize
        vec = 16 // workload.itemsize
        base: dict[str, ConfigValue] = {
            "rows": 1, "cluster": 1, "vec": vec, "storage": "registers", "prefetch": 0, "unroll": 1,
            "min_blocks": 1, "reduction": "online", "load": "default", "store": "default", "math": "fast",
        }  # fmt: skip
        per_thread = max(1, row_bytes // 16)
        if row_bytes <= 4096:  # a warp or less a row, several rows a block
            threads = min(32, max(4, 2 ** round(math.log2(per_thread / 4))))
            return [{**base, "threads": threads, "rows": max(1, 128 // threads)}]
        if row_bytes <= 131072:  # a block a row
            threads = min(1024, max(64, 2 ** round(math.log2(per_thread / 4))))
            return [
                {**base, "threads": threads, "reduction": "two_step"},
                {**base, "threads": threads},
                {
                    **base,
                    "threads": max(64, threads // 2),
                    "reduction": "two_step",
                    "storage": "shared",
                    "unroll": 2,
                },
                {**base, "threads": max(64, threads // 2), "prefetch": 1},
            ]
        cluster = next((c for c in CLUSTERS if row_bytes <= c * 131072), 8)
        large = next((c for c in (8, 16) if row_bytes <= c * 196608), 16)
        threads = min(512, max(128, 2 ** round(math.log2(per_thread / 16 / cluster))))
        return [
            {**base, "threads": 512, "cluster": large, "prefetch": 1},
            {**base, "threads": 384, "cluster": large, "prefetch": 1, "load": "cs"},
            {**base, "threads": threads, "cluster": cluster},
            {**base, "threads": 512, "cluster": cluster, "prefetch": 1},
            {**base, "threads": 512, "cluster": 16, "storage": "global", "unroll": 4},
        ]

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        reads = len(cached_inputs(program))
        buffers = int(config["prefetch"]) + (config["storage"] == "shared")
        return Launch(
            work_per_row=1,
            work_per_block=int(config["rows"]),
            block=int(config["threads"]) * int(config["rows"]),
            cluster=int(config["cluster"]),
            smem_bytes=buffers * reads * buffer_bytes(config, workload.cols, workload.itemsize),
            persistent=int(config["prefetch"]) > 0,
            alignment=int(config["vec"]) * workload.itemsize,
        )

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        return {
            **common_variables(program, workload),
            "schedule": program.schedule(online=config["reduction"] == "online"),
            "cached": cached_inputs(program),
            "launder": must_launder(config, program, workload),
        }


def cached_inputs(program: Program) -> list[str]:
    """Full inputs that a reduction reads: they wait between the passes. Others are read at the store."""
    read = {name for stage in program.schedule(online=False).stages for name in stage.inputs}
    return [i.name for i in program.inputs if i.role is Role.FULL and i.name in read]


def must_launder(config: Config, program: Program, workload: Workload) -> bool:
    """Whether passes must not share what they compute of an element (see `ks::launder`).

    Small float32 rows are better off sharing: an exponential then is computed once.
    """
    words = items(config, workload.cols) * max(1, int(config["vec"]) * workload.itemsize // 4)
    return workload.itemsize == 2 or words * len(cached_inputs(program)) > 40


def items(config: Config, cols: int) -> int:
    """Vectors of a row that one thread holds."""
    vec = int(config["vec"])
    count = -(-cols // vec) + (cols % vec != 0)
    return -(-count // (int(config["threads"]) * int(config["cluster"])))


def buffer_bytes(config: Config, cols: int, itemsize: int) -> int:
    """Shared memory of one input's rows of one block."""
    if config["cluster"] == 1:
        return int(config["rows"]) * cols * itemsize
    return items(config, cols) * int(config["threads"]) * int(config["vec"]) * itemsize


def is_valid(config: Config, cols: int, itemsize: int, reads: int, smem_limit: int) -> bool:
    """The one statement of the constraints of this family; `reads` is the number of full inputs."""
    threads, rows, cluster, vec = (int(config[name]) for name in ("threads", "rows", "cluster", "vec"))
    storage, prefetch, min_blocks = config["storage"], int(config["prefetch"]), int(config["min_blocks"])
    block = threads * rows
    if cols >= 2**31:  # columns are counted in 32 bits
        return False
    if block % 32 or block > 1024 or block * min_blocks > THREADS_PER_SM:
        return False
    if (cluster > 1 and (rows > 1 or threads < 128)) or (rows > 1 and threads > 256):
        return False
    held = items(config, cols)
    # Threads without a vector, or with a mostly empty last round, do no work; small rows are exempt.
    if (held - 1) * threads * cluster * vec >= cols or (
        held == 1 and threads * cluster * vec >= 2 * cols and threads > 4
    ):
        return False
    loops = storage != "registers"
    if config["unroll"] != 1 and (not loops or int(config["unroll"]) > held):
        return False
    if prefetch or storage == "shared":
        if storage == "global" or vec * itemsize != 16:
            return False
        if prefetch + (storage == "shared") > 2:
            return False
        # 1 KB of every block is reserved; 2 KB more for partials and barriers
        shared = reads * buffer_bytes(config, cols, itemsize) * (prefetch + (storage == "shared"))
        if (shared + 3072) * min_blocks > smem_limit + 1024 or shared >= 2**20:
            return False
    cap = register_cap(block, min_blocks)
    if loops:
        # the vectors of an unrolled round, their floats, and the sums
        return int(config["unroll"]) * vec * reads + SPARE_REGISTERS <= cap and (
            storage == "shared" or held > 1
        )
    row_registers = held * max(1, vec * itemsize // 4) * reads
    spare = SPARE_REGISTERS
    if cluster > 1 and prefetch:
        # a persistent cluster keeps more state; 192 words spilled even at 255 registers
        if row_registers > 160:
            return False
        spare += 8 if config["math"] == "exact" or row_registers > 128 else 0
    return row_registers + spare <= cap
