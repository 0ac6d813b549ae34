"""What to try first of reductions on a GPU: what led at such sizes on an H200."""

from __future__ import annotations

import math

from ksearch.families import cuda
from ksearch.families.reduction_limits import CLUSTERS, PART_BYTES, is_whole, parts_of
from ksearch.operators.program import Program, Role
from ksearch.types import ConfigValue, Target, Workload


def guesses(program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
    """64 to 128 bytes on their way for each thread."""
    cols, itemsize, units = workload.cols, workload.itemsize, target.units
    vec = 16 // itemsize
    base: dict[str, ConfigValue] = {
        "rows": 1, "parts": 1, "vec": vec, "unroll": 4, "min_blocks": 1, "load": "nc",
        "grid": "drawn" if program.is_total else "one_shot", "math": cuda.math_axis(program)[0],
        "reduction": "online" if program.online_kinds else "two_step",
    }  # fmt: skip
    per_row = max(1, -(-cols // vec))
    has_stages = len(program.schedule(program.online_kinds).stages) > 1
    if workload.rows < 2 * units and per_row > 2048 and not has_stages:  # too few to fill the device with
        return _few(base, program, workload, target) or [base]
    if per_row <= 128:  # several rows a block
        threads = min(32, 2 ** round(math.log2(max(1, per_row / 4))))
        short = {**base, "threads": threads, "rows": max(1, 128 // threads)}
        short["unroll"] = max(1, min(4, per_row // threads))
        return [
            short,
            {**short, "threads": min(32, 2 * threads)},
            {**short, "grid": "persistent", "unroll": 2},
        ]
    threads = min(512, max(32, 2 ** round(math.log2(per_row / 8))))
    # Rows of halves are short for what their ends cost: a warp or two each, and much on its way.
    warps = {**base, "threads": 32, "rows": 4, "unroll": 16}
    few = [{**warps, "unroll": 8, "min_blocks": 2}, warps]
    few = few if program.is_total else [{**warps, "threads": 64, "unroll": 8}, *few]
    # Half vectors won of cross_entropy: of 8192x128256 bfloat16, of 32768x4096 bfloat16 and float32.
    half = {**base, "threads": 128, "vec": max(1, vec // 2), "unroll": 8, "load": "default"}
    halves = [half]
    if itemsize == 2 and per_row > 2048:
        halves = [{**half, "unroll": 16, "min_blocks": 2}, half]
    elif itemsize == 2:
        halves = [{**half, "min_blocks": 8, "load": "cs"}, half]
    return [
        *(halves if program.is_total else []),
        *(few if itemsize == 2 and per_row <= 2048 else []),
        {**base, "threads": threads, "unroll": 8},
        {**base, "threads": min(1024, 2 * threads)},
        {**base, "threads": max(32, threads // 2), "unroll": 8},
        {**base, "threads": threads, "unroll": 8, "grid": "persistent", "load": "default"},
    ]


def _few(
    base: dict[str, ConfigValue], program: Program, workload: Workload, target: Target
) -> list[dict[str, ConfigValue]]:
    """For rows that are shared out."""
    cols, itemsize, units = workload.cols, workload.itemsize, target.units
    per_row = -(-cols * itemsize // 16)
    most = min(32 * units // workload.rows, cols * itemsize // (4 * PART_BYTES))
    counts_of = parts_of(workload.rows, units)
    counts = [n for n in counts_of if 1 < n <= most][-3:]
    whole: dict[str, ConfigValue] = {**base, "threads": 256, "grid": "persistent", "min_blocks": 2}
    found = [{**whole, "parts": n, "unroll": unroll} for n in reversed(counts) for unroll in (4, 8)]
    wide: dict[str, ConfigValue] = {**whole, "threads": 512, "unroll": 8, "min_blocks": 1}
    found = [{**wide, "parts": n} for n in (4 * units, 2 * units) if n in counts_of] + found
    if is_whole(program, workload):
        # A batch each: the least that can be left to the last. 1e8 bfloat16, amax: 53.8 us; 56.0 with two.
        # A search then found the second one, 53.0.
        unroll = max(1, 8 // sum(item.role is Role.FULL for item in program.inputs))
        drawn = {**wide, "grid": "drawn", "unroll": unroll}
        enough = [n for n in counts_of if n >= 2 * units]
        one = [n for n in enough if 512 * unroll * n >= per_row][:1]
        half = {**drawn, "threads": 256, "vec": max(1, 8 // itemsize), "unroll": 2 * unroll, "min_blocks": 2}
        found = [
            *({**drawn, "parts": n} for n in one),
            *({**half, "parts": n} for n in enough if 256 * unroll * n >= per_row > 256 * unroll * n // 2),
            *({**drawn, "parts": n} for n in enough[:-3:-1] if n not in one),
            *found,
        ]
    has_clusters = cuda.compute_capability(target.arch) >= cuda.CLUSTER_ARCH
    if has_clusters and not program.is_total and per_row <= CLUSTERS[-1] * 8192:
        # Short work, of which a way to global memory and back is much: 8x131072 float32.
        near = {**base, "threads": 512, "parts": 8, "grid": "cluster", "unroll": 8}
        found = [near, {**near, "threads": 256, "parts": 16}, *found]
    return found
