"""Rows reduced and mapped on a GPU: softmax, norms, and whatever traces to that shape.

One space covers several rows a warp, a block or a cluster a row, persistent grids that prefetch, and a
loop for rows that fit nowhere. After QuACK's reductions over clusters and the online softmax of Milakov
and Gimelshein (arXiv 1805.02867).
"""

from __future__ import annotations

import math
from typing import Any

from ksearch.families import cuda, kept
from ksearch.families.base import Space
from ksearch.families.channels import channel_variables
from ksearch.families.rowwise_limits import Limits, buffer_bytes, buffers, is_bulk, items, weight_bytes
from ksearch.operators.program import Kind, Program, Role, Schedule, Stage
from ksearch.types import ANY_ROWS, Config, ConfigValue, Launch, Target, Workload

CLUSTERS = (1, 2, 4, 6, 8, 12, 16)
"""Any size works; 8 is the largest portable one and 16 must be asked for."""


class RowwiseCuda:
    name = "rowwise"
    template = "cuda/rowwise.cu.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        cols, itemsize, units = workload.cols, workload.itemsize, target.units
        capability = cuda.compute_capability(target.arch)
        clusters = CLUSTERS if capability >= cuda.CLUSTER_ARCH else (1,)
        bulk = capability >= cuda.CLUSTER_ARCH and cols * itemsize % 16 == 0 and not workload.segment
        reads = max(1, sum(1 for i in program.inputs if i.role is Role.FULL))
        weights = sum(1 for i in program.inputs if i.role is Role.ROW)
        has_kept = kept.find(program.schedule(program.online_kinds), Kind.SUM_EXP) is not None
        words = {way: partial_words({"reduction": way}, program) for way in ("online", "two_step")}

        is_per_row = all(program.per_row)
        stored = 1 if is_per_row else len(program.outputs)
        vectors_of_rows = weights + sum(1 for i in program.inputs if i.role is Role.CHANNEL)
        limits = Limits(workload, target, capability, reads, vectors_of_rows, stored, words, window(program))
        has_late = reads > len(cached_inputs(program))
        is_read_again = not is_per_row or len(program.schedule().stages) > 1
        return Space(
            axes={
                "threads": tuple(
                    t for t in (4, 8, 16, 32, 64, 128, 256, 384, 512, 768, 1024) if t <= max(cols, 4)
                ),
                "rows": tuple(r for r in (1, 2, 4, 8, 16, 32) if r == 1 or cols <= 8192),
                "cluster": tuple(c for c in clusters if c == 1 or cols * itemsize >= 8192 * c),
                "split": tuple(
                    n
                    for n in sorted({1, 4, 8, 16, 32, units // 4, units // 2, units, 2 * units})
                    if n == 1 or (n > 1 and cols * itemsize >= 8192 * n and workload.rows * n <= 8 * units)
                ),
                "vec": tuple(v for v in cuda.vectors(cols, itemsize) if workload.segment % v == 0),
                "storage": ("registers", "shared", "global") if bulk else ("registers", "global"),
                "prefetch": (0, 1, 2) if bulk else (0,),
                "min_blocks": (1, 2, 3, 4),
                "unroll": (1, 2, 4, 8),
                "order": ("static", "ticket") if bulk else ("static",),
                "weights": weight_places(weights > 0, bulk),
                "reduction": ("online", "two_step") if program.online_kinds else ("two_step",),
                "keep": (False, True) if has_kept or (itemsize == 2 and is_read_again) else (False,),
                "math": cuda.math_axis(program),
            },
            rules=limits.rules(),
            free={
                "load": (*cuda.LOADS, "retain") if is_read_again else cuda.LOADS,
                "store": cuda.STORES[:1] if is_per_row else cuda.STORES,
            },
            matters=lambda config: has_load_policy(config, itemsize, has_late),
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
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

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        reads = len(cached_inputs(program))
        smem_bytes = buffers(config) * reads * buffer_bytes(config, workload.cols, workload.itemsize)
        if config["weights"] == "shared":
            weights = sum(1 for i in program.inputs if i.role is Role.ROW)
            smem_bytes += weights * weight_bytes(config, workload.cols, workload.itemsize)
        return Launch(
            work_per_row=1,
            work_per_block=int(config["rows"]),
            block=int(config["threads"]) * int(config["rows"]),
            cluster=int(config["cluster"]),
            split=int(config["split"]),
            smem_bytes=smem_bytes,
            persistent=int(config["prefetch"]) > 0 or int(config["split"]) > 1,
            workspace_bytes=workspace_bytes(config, program),
            alignment=int(config["vec"]) * workload.itemsize,
            most_rows=ANY_ROWS,
        )

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        schedule = schedule_of(config, program)
        found = kept.find(schedule, Kind.SUM_EXP) if config["keep"] else None
        return {
            **cuda.common_variables(program),
            "schedule": schedule,
            "widths": [width_of(stage) for stage in schedule.stages],
            "means_of": means_of,
            "word_of": None,  # no place among the columns is asked for here
            "kept": found,
            "output_inputs": found.inputs if found else schedule.output_inputs,
            "cached": cached_inputs(program),
            "launder": must_launder(config, program, workload),
            "per_row": all(program.per_row),
            "workspace_bytes": workspace_bytes(config, program),
            **channel_variables(program, workload),
        }


def weight_places(has_weights: bool, bulk: bool) -> tuple[ConfigValue, ...]:
    """Where row vectors wait for the output pass: read then, or held from before the reduction on."""
    if not has_weights:
        return ("global",)
    return ("global", "registers", "shared") if bulk else ("global", "registers")


def schedule_of(config: Config, program: Program) -> Schedule:
    return program.schedule(program.online_kinds if config["reduction"] == "online" else ())


def means_of(stage: Stage) -> list[int]:
    """Which of the stage's sums are kept as means, because squares are taken around them."""
    return [r.anchor for r in stage.reductions if r.kind is Kind.SUM_SQUARES and r.anchor is not None]


def width_of(stage: Stage) -> int:
    """Words of a partial result; one more where a mean needs to know of how many elements."""
    return len(stage.reductions) + bool(means_of(stage))


def partial_words(config: Config, program: Program) -> int:
    """Of all stages."""
    return sum(map(width_of, schedule_of(config, program).stages))


def workspace_bytes(config: Config, program: Program) -> int:
    """Global memory of each block: the ticket counter, or an epoch and two words for each partial value."""
    if config["order"] == "ticket":
        return 16
    if config["split"] == 1:
        return 0
    return 16 + 16 * partial_words(config, program)


def window(program: Program) -> int:
    """ROW inputs that are read by the pass of an online reduction."""
    names = {item.name for item in program.inputs if item.role is Role.ROW}
    stages = program.schedule(program.online_kinds).stages
    online = (stage for stage in stages if any(r.anchor is not None for r in stage.reductions))
    return max((len(names & set(stage.inputs)) for stage in online), default=0)


def cached_inputs(program: Program) -> list[str]:
    """Full inputs that a reduction reads: they wait between the passes. Others are read at the store."""
    read = {name for stage in program.schedule().stages for name in stage.inputs}
    return [i.name for i in program.inputs if i.role is Role.FULL and i.name in read]


def must_launder(config: Config, program: Program, workload: Workload) -> bool:
    """Whether passes must not share what they compute of an element (see `ks::launder`).

    Small float32 rows are better off sharing: an exponential then is computed once.
    """
    if config["keep"]:
        return False
    words = items(config, workload.cols) * max(1, int(config["vec"]) * workload.itemsize // 4)
    return workload.itemsize == 2 or words * len(cached_inputs(program)) > 40


def has_load_policy(config: Config, itemsize: int, has_late: bool) -> bool:
    """Whether the load policy changes anything; `has_late`: some input is read at the store only."""
    if config["load"] == "retain":  # only what is read twice can stay, and only whole vectors know how
        return config["storage"] == "global" and int(config["vec"]) * itemsize == 16
    return config["load"] == cuda.LOADS[0] or not is_bulk(config) or has_late  # bulk copies take no policy
