"""What to try first of rows reduced and mapped on a GPU: what led at such lengths on an H200."""

from __future__ import annotations

import math

from ksearch.families import cuda
from ksearch.families.rowwise_sizes import CLUSTERS
from ksearch.operators.program import Program, Role
from ksearch.types import ConfigValue, Target, Workload

_SHARE_BYTES = 512 * 64 * 4
"""Of a row, in the registers of one block of 512 threads."""


def guesses(program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
    """Nearest valid points to what is known to do well at this row length, best first."""
    row_bytes = workload.cols * workload.itemsize
    vec = 16 // workload.itemsize
    base: dict[str, ConfigValue] = {
        "rows": 1, "cluster": 1, "split": 1, "vec": vec, "storage": "registers", "prefetch": 0,
        "order": "static", "weights": "global", "unroll": 1, "min_blocks": 1, "keep": False,
        "reduction": "online" if program.online_kinds else "two_step",
        "load": "default", "store": "default", "math": cuda.math_axis(program)[0],
    }  # fmt: skip
    per_thread = max(1, row_bytes // 16)
    has_weights = any(i.role is Role.ROW for i in program.inputs)
    has_early = (
        has_weights and row_bytes % 16 == 0 and cuda.compute_capability(target.arch) >= cuda.CLUSTER_ARCH
    )
    shared: dict[str, ConfigValue] = {"storage": "shared", "weights": "shared"}
    if row_bytes <= 4096:  # a warp or less a row, several rows a block
        threads = min(32, max(4, 2 ** round(math.log2(per_thread / 4))))
        several = {**base, "threads": threads, "rows": max(1, 128 // threads)}
        early = [{**several, **shared, "reduction": "two_step"}] if has_early else []
        return [several, {**several, "keep": True}, {**several, "reduction": "two_step"}, *early]
    threads = min(1024, max(64, 2 ** round(math.log2(per_thread / 4))))
    blocks: list[dict[str, ConfigValue]] = [  # a block a row
        {**base, "threads": threads, "keep": True},
        {**base, "threads": threads, "reduction": "two_step"},
        {**base, "threads": 384, "min_blocks": 2, "reduction": "two_step"},
        {**base, "threads": 2 * threads, "reduction": "two_step", "storage": "shared", "unroll": 2},
    ]
    if cuda.compute_capability(target.arch) < cuda.CLUSTER_ARCH:
        loops = [{**base, "threads": 1024, "storage": "global", "unroll": unroll} for unroll in (4, 2)]
        return blocks if row_bytes <= 131072 else loops
    clusters: list[dict[str, ConfigValue]] = [
        {**base, "threads": 512, "cluster": 8, "keep": True},
        {**base, "threads": 256, "cluster": 16},
    ]
    # Beyond what a cluster holds: the device shares a row, half of it where that is enough.
    shares = [n for n in (target.units // 2, target.units) if row_bytes <= n * _SHARE_BYTES]
    if row_bytes > CLUSTERS[-1] * target.smem_bytes and row_bytes % 16 == 0 and shares:
        whole: dict[str, ConfigValue] = {**base, "threads": 512, "split": shares[0], "store": "cs"}
        kept: dict[str, ConfigValue] = {"weights": "most", "load": "cs"} if has_weights else {"keep": True}
        ahead = {**whole, "prefetch": 1, "weights": "favored" if has_weights else "global"}
        late = {**whole, "prefetch": 1, "order": "lagged", "weights": "most" if has_weights else "global"}
        late |= {} if has_weights else {"store": "default"}
        if has_weights or workload.rows <= target.units:  # else two teams, whose waits lie across each other
            late["split"] = target.units
        sizes = ((256, 4), (256, 8), (512, 2)) if has_weights else ((256, 8), (512, 2))
        ways = [{**late, "threads": threads, "unroll": unroll} for threads, unroll in sizes]
        ways += [{**whole, **kept}, {**ahead, "reduction": "two_step"}, {**ahead, "order": "paced"}]
        return [*ways, {**ahead, "order": "paced", "reduction": "two_step"}, *clusters]
    if workload.rows * 4 <= target.units:  # too few rows to fill the device with, or to fetch ahead
        alone = {**base, "threads": 512, "split": 2 * target.units, "min_blocks": 2, "storage": "global"}
        return [alone, *clusters] if row_bytes > 4 << 20 else clusters
    # What led at 64 KB to 1.5 MB a row (H200): small blocks, many of them, the next row on its way.
    ahead = dict(base)
    if row_bytes % 16 == 0:  # else no bulk copies
        ahead |= {"prefetch": 1, "order": "ticket", "weights": "shared" if has_weights else "global"}
    if row_bytes <= 32768:
        few = {**ahead, "threads": 128, "cluster": 4, "reduction": "two_step", "keep": vec == 8}
        more = [*blocks, {**ahead, "threads": max(64, threads // 2)}, few]
        if has_early:  # led at 8 to 32 KB a row; registers at 256x4096 and 16384x4096 float32
            plain = {**base, "threads": threads, "reduction": "two_step"}
            more = [{**plain, **shared}, {**plain, "weights": "registers"}, *more]
        if workload.rows > 4 * target.units:
            return more
        # All rows at once, and latency is all: a vector or two a thread (256x4096 on an H200).
        wide = {**base, "threads": min(1024, 2 ** round(math.log2(per_thread))), "load": "nc"}
        half = {**wide, "threads": max(64, int(wide["threads"]) // 2)}
        return [{**wide, "reduction": "two_step"}, half, {**half, "reduction": "two_step"}, *more]
    small = {**ahead, "threads": 128, "cluster": 8 if row_bytes <= 131072 else 16, "keep": True}
    two_step = {**small, "reduction": "two_step", "keep": False}
    if row_bytes <= 131072:
        return [small, two_step, {**two_step, "prefetch": 2}, {**small, "cluster": 16}, *blocks]
    if row_bytes <= 1 << 20:
        return [small, two_step, {**two_step, "threads": 256, "keep": True}, *clusters]
    return [
        {**ahead, "threads": 256, "cluster": 16, "min_blocks": 2},
        {**ahead, "threads": 512, "cluster": 8},
        {**ahead, "threads": 256, "cluster": 16, "storage": "shared", "unroll": 4},
        {**ahead, "threads": 384, "cluster": 8},
        {**base, "threads": 512, "cluster": 16, "storage": "global", "unroll": 4, "load": "retain"},
    ]
