"""Rows reduced and mapped on a GPU: softmax, norms, and whatever traces to that shape.

One space covers several rows a warp, a block or a cluster a row, persistent grids that prefetch, and a
loop for rows that fit nowhere. After QuACK's reductions over clusters and the online softmax of Milakov
and Gimelshein (arXiv 1805.02867).
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
"""Registers that a thread needs beside its part of the row, or beside the vectors of one round of a loop;
`registers` has the exceptions. Compiled over every region of the space, no config that keeps to
this spills (tests/families/test_cuda_compile.py)."""


class RowwiseCuda:
    name = "rowwise"
    template = "cuda/rowwise.cu.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        cols, itemsize = workload.cols, workload.itemsize
        capability = compute_capability(target.arch)
        clusters = CLUSTERS if capability >= CLUSTER_ARCH else (1,)
        bulk = capability >= CLUSTER_ARCH and cols * itemsize % 16 == 0
        reads = max(1, sum(1 for i in program.inputs if i.role is Role.FULL))
        has_weights = any(i.role is Role.ROW for i in program.inputs)

        def valid(config: Config) -> bool:
            if not is_valid(config, cols, itemsize, reads, target.smem_bytes):
                return False
            cap = register_cap(int(config["threads"]) * int(config["rows"]), int(config["min_blocks"]))
            return registers(config, cols, itemsize, reads, has_weights, capability) <= cap

        has_late = reads > len(cached_inputs(program))
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
                "min_blocks": (1, 2, 3, 4),
                "reduction": ("online", "two_step") if program.can_online else ("two_step",),
                "math": math_axis(program),
            },
            is_valid=valid,
            free={"load": LOADS, "store": STORES},
            # bulk copies take no cache policy, and only an input that is read at the store has another way
            matters=lambda config: config["load"] == LOADS[0] or not is_bulk(config) or has_late,
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        """Nearest valid points to what is known to do well at this row length, best first."""
        row_bytes = workload.cols * workload.itemsize
        vec = 16 // workload.itemsize
        base: dict[str, ConfigValue] = {
            "rows": 1, "cluster": 1, "vec": vec, "storage": "registers", "prefetch": 0, "unroll": 1,
            "min_blocks": 1, "reduction": "online" if program.can_online else "two_step",
            "load": "default", "store": "default", "math": math_axis(program)[0],
        }  # fmt: skip
        per_thread = max(1, row_bytes // 16)
        if row_bytes <= 4096:  # a warp or less a row, several rows a block
            threads = min(32, max(4, 2 ** round(math.log2(per_thread / 4))))
            return [{**base, "threads": threads, "rows": max(1, 128 // threads)}]
        if row_bytes <= 131072:  # a block a row
            threads = min(1024, max(64, 2 ** round(math.log2(per_thread / 4))))
            return [
                {**base, "threads": threads, "reduction": "two_step"},
                {**base, "threads": 384, "min_blocks": 2, "reduction": "two_step"},
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
        if compute_capability(target.arch) < CLUSTER_ARCH:
            return [{**base, "threads": 1024, "storage": "global", "unroll": unroll} for unroll in (4, 2)]
        cluster = next((c for c in CLUSTERS if row_bytes <= c * 131072), 8)
        large = next((c for c in (8, 16) if row_bytes <= c * 196608), 16)
        threads = min(512, max(128, 2 ** round(math.log2(per_thread / 16 / cluster))))
        return [
            {**base, "threads": 512, "cluster": large, "prefetch": 1},
            {**base, "threads": 384, "cluster": large, "prefetch": 1},
            {**base, "threads": threads, "cluster": cluster},
            {**base, "threads": 512, "cluster": cluster, "prefetch": 1},
            {**base, "threads": 512, "cluster": 16, "storage": "global", "unroll": 4},
        ]

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        reads = len(cached_inputs(program))
        return Launch(
            work_per_row=1,
            work_per_block=int(config["rows"]),
            block=int(config["threads"]) * int(config["rows"]),
            cluster=int(config["cluster"]),
            smem_bytes=_buffers(config) * reads * buffer_bytes(config, workload.cols, workload.itemsize),
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


def is_bulk(config: Config) -> bool:
    """Whether rows come by bulk copies into shared memory."""
    return bool(config["prefetch"]) or config["storage"] == "shared"


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
    """The constraints of this family but for registers; `reads` is the number of full inputs."""
    threads, rows, cluster, vec = (int(config[name]) for name in ("threads", "rows", "cluster", "vec"))
    block = threads * rows
    if block % 32 or block > 1024 or cols >= 2**31:  # columns are counted in 32 bits
        return False
    if (cluster > 1 and (rows > 1 or threads < 128)) or (rows > 1 and threads > 256):
        return False
    min_blocks, unroll = int(config["min_blocks"]), int(config["unroll"])
    loops = config["storage"] != "registers"
    if block * min_blocks > THREADS_PER_SM or (unroll > 1 and not loops):
        return False
    held = items(config, cols)
    stride = threads * cluster * vec
    # Threads without a vector do no work: nothing under half of a round, but for the smallest rows.
    if (held - 1) * stride >= cols or (held == 1 and stride >= 2 * cols and threads > 4):
        return False
    if unroll > held or (held > 64 and threads < 512):  # a loop that long wants more threads
        return False
    if is_bulk(config):
        if config["storage"] == "global" or vec * itemsize != 16 or _buffers(config) > 2:
            return False
        # 1 KB of every block is reserved, 2 KB more hold partials and barriers
        shared = reads * buffer_bytes(config, cols, itemsize) * _buffers(config)
        if (shared + 3072) * min_blocks > smem_limit + 1024:
            return False
    return held > 1 or config["storage"] != "global"


def registers(
    config: Config, cols: int, itemsize: int, reads: int, has_weights: bool, capability: int
) -> float:
    """How many a thread may need, infinite where no number was enough: a kernel that spills is slow.

    The exceptions are what NVRTC 13.0 showed: bytes spilled, with that many registers beside the row.
    """
    vec = int(config["vec"])
    if config["storage"] != "registers":  # the floats of an unrolled round; masked ends spilled 16 bytes
        return int(config["unroll"]) * vec * reads + SPARE_REGISTERS + (8 if cols % vec else 0)
    held = items(config, cols)
    row = held * max(1, vec * itemsize // 4) * reads
    is_narrow = vec * itemsize < 16
    is_long = config["math"] == "exact" and config["reduction"] == "online"  # expf twice, each of 8 lanes
    spare = SPARE_REGISTERS
    if is_narrow and held >= 24:  # 8 bytes with 51 and 29 vectors; and nobody wants that many narrow loads
        return math.inf
    if is_narrow or has_weights or (itemsize < 4 and (is_long or held >= 32)):
        spare += 16 if held >= 32 else 8  # 4 to 150 bytes with up to 37, 8 with 40 from 32 vectors on
    if has_weights and row > 64:
        spare += 32  # 248 bytes with 40 and 88 words
    if cols % vec:  # masked ends
        # 588 bytes with 65 and 63 vectors, 520 with 55 and 200 words; on sm_80 24 with 96 and 32 vectors
        if held > (24 if capability >= CLUSTER_ARCH else 12) or row > 96:
            return math.inf
        # 20 bytes with 48; on sm_80 8 with 64
        spare = max(spare, SPARE_REGISTERS + (24 if capability >= CLUSTER_ARCH else 40))
    if int(config["cluster"]) > 1 and int(config["prefetch"]) > 0:  # a persistent cluster keeps more state
        # 192 words spilled even at 255 registers, 128 92 bytes with 40; with weights 64 52 bytes with 104
        if row > (48 if has_weights else 160):
            return math.inf
        spare += 40 if has_weights else 8 if config["math"] == "exact" or row >= 128 else 0
    return row + spare


def _buffers(config: Config) -> int:
    """Rows in shared memory at once: those fetched ahead, and the one at work if it stays there."""
    return int(config["prefetch"]) + (config["storage"] == "shared")
