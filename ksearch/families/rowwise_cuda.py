"""Rows reduced and mapped on a GPU: softmax, norms, and whatever traces to that shape.

One space covers several rows a warp, a block or a cluster a row, persistent grids that prefetch, and a
loop for rows that fit nowhere. After QuACK's reductions over clusters and the online softmax of Milakov
and Gimelshein (arXiv 1805.02867).
"""

from __future__ import annotations

from typing import Any

from ksearch.families import cuda, kept, rowwise_guesses
from ksearch.families.base import Space
from ksearch.families.channels import channel_variables
from ksearch.families.rowwise_limits import Limits
from ksearch.families.rowwise_sizes import (
    CLUSTERS,
    MOST,
    Places,
    ahead_items,
    buffer_bytes,
    buffers,
    is_bulk,
    items,
    places,
    weight_bytes,
)
from ksearch.launch import ANY_ROWS, Launch
from ksearch.operators.program import Program, Role
from ksearch.operators.stages import Kind, Schedule, Stage
from ksearch.types import Config, ConfigValue, Target, Workload


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
        channels = sum(1 for i in program.inputs if i.role is Role.CHANNEL)
        has_many = channel_variables(program, workload)["spatial"] != cols  # else one value a row
        vectors_of_rows = weights + has_many * channels
        is_long = cols * itemsize > CLUSTERS[-1] * target.smem_bytes
        limits = Limits(
            *(workload, target, capability, reads, vectors_of_rows, stored, words),
            channels=channels > 0,
            stages={way: len(schedule_of({"reduction": way}, program).stages) for way in words},
            per_row=is_per_row,
            reduces_rows=any(
                item.name in stage.inputs
                for stage in program.schedule().stages
                for item in program.inputs
                if item.role is Role.ROW
            ),
            window=window(program),
        )
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
                    for n in sorted({1, 4, 8, 16, 32, units // 4, units // 2, units, 2 * units} - {0})
                    if n == 1
                    or (cols * itemsize >= 8192 * n and (workload.rows <= 8 * units // n or is_long))
                ),
                "vec": tuple(v for v in cuda.vectors(cols, itemsize) if workload.segment % v == 0),
                "storage": ("registers", "shared", "global") if bulk else ("registers", "global"),
                "prefetch": (0, 1, 2) if bulk else (0,),
                "min_blocks": (1, 2, 3, 4),
                "unroll": (1, 2, 4, 8),
                "order": ("static", "ticket", "paced", "lagged") if bulk else ("static",),
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
        return rowwise_guesses.guesses(program, workload, target)

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        reads = len(cached_inputs(program))
        smem_bytes = buffers(config) * reads * buffer_bytes(config, workload.cols, workload.itemsize)
        weights = sum(1 for i in program.inputs if i.role is Role.ROW)
        if config["weights"] == "shared":
            smem_bytes += weights * weight_bytes(config, workload.cols, workload.itemsize)
        if config["weights"] in MOST:
            kept_bytes = int(config["threads"]) * int(config["vec"]) * workload.itemsize
            found = weights_of(config, program, workload, target)
            smem_bytes += weights * kept_bytes * (found.shared + found.ring)
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
        found_places = weights_of(config, program, workload, target)
        return {
            **cuda.common_variables(program),
            "schedule": schedule,
            "widths": [width_of(stage) for stage in schedule.stages],
            "means_of": means_of,
            "word_of": None,  # no place among the columns is asked for here
            "kept": found,
            "output_inputs": found.inputs if found else schedule.output_inputs,
            "cached": cached_inputs(program),
            "kept_items": found_places.shared,
            "register_items": found_places.registers,
            "ring_items": found_places.ring,
            "far_items": found_places.far,
            "ahead_items": ahead_items(config, workload.cols),
            "launder": must_launder(config, program, workload),
            "per_row": all(program.per_row),
            "workspace_bytes": workspace_bytes(config, program),
            **channel_variables(program, workload),
        }


def weight_places(has_weights: bool, bulk: bool) -> tuple[ConfigValue, ...]:
    """Where row vectors wait for the output pass: read then, or held from before the reduction on."""
    if not has_weights:
        return ("global",)
    return ("global", "registers", "shared", *MOST) if bulk else ("global", "registers")


def weights_of(config: Config, program: Program, workload: Workload, target: Target) -> Places:
    """Where row vectors are, item by item, if as many as fit stay on the chip for all rows."""
    if config["weights"] not in MOST:
        return Places(0, 0, 0, 0)
    reads = sum(1 for i in program.inputs if i.role is Role.FULL)
    weights = sum(1 for i in program.inputs if i.role is Role.ROW)
    words = partial_words(config, program)
    return places(config, workload.cols, workload.itemsize, reads, weights, words, target.smem_bytes)


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
    sets = 4 if config["order"] == "lagged" else 2
    return 16 + 8 * sets * partial_words(config, program)


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
    has_direct = not is_bulk(config) or config["weights"] == "favored"
    return config["load"] == cuda.LOADS[0] or has_direct or has_late  # bulk copies take no policy
