"""Rows that lie side by side, reduced and mapped on a GPU: neighbouring threads take neighbouring rows.

What matters is as in a copy: long pieces of memory, and many bytes in flight; the reduction of a row is of
threads one below the other. Blocks of a cluster share the columns of rows too long for one block's registers;
where rows are few and one value of each is left, their columns are cut into parts.
"""

from __future__ import annotations

from typing import Any

from ksearch.families import cuda
from ksearch.families.base import Rule, Space, nearest
from ksearch.families.reduction_cuda import word_of, words_of
from ksearch.families.rowwise_cuda import cached_inputs, means_of, schedule_of
from ksearch.families.strided_limits import HALVED, Limits, held_items, items, waiting_bytes, wide
from ksearch.launch import ANY_ROWS, Launch
from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Target, Workload

_COUNTERS = 80
"""Of parts that are done, which each block has room for: ten times as many as there can be for each, as on a
device with a tenth of the multiprocessors."""


class StridedCuda:
    name = "strided"
    template = "cuda/strided.cu.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        limits = Limits(program, workload, target)
        is_sm_90 = cuda.compute_capability(target.arch) >= cuda.CLUSTER_ARCH
        shape, shared = ("across", "down", "vec"), ("cluster", "parts")
        return Space(
            axes={
                **block_axes(workload),
                "cluster": (1, 2, 4, 8, 16) if is_sm_90 and not limits.is_read_once else (1,),
                "parts": tuple(1 << n for n in range(13)) if limits.is_read_once else (1,),
                "storage": ("registers", *(() if limits.is_read_once else HALVED), "global"),
                "unroll": (1, 2, 4, 8, 16),
                "min_blocks": (1, 2, 3, 4, 6, 8),
                "reduction": ("online", "two_step") if program.online_kinds else ("two_step",),
                "math": cuda.math_axis(program),
            },
            rules=(
                Rule(shape, lambda config: is_block(config, workload)),
                Rule((*shape, *shared), limits.is_shared_out),
                Rule((*shape, *shared, "storage"), limits.is_stored),
                Rule(("down", *shared, "storage", "unroll", "reduction"), limits.loops),
                Rule((*shape, *shared, "reduction"), limits.has_shared_memory),
                Rule((*shape, "parts", "min_blocks", "reduction"), limits.has_parts),
                Rule(
                    (*shape, *shared, "storage", "unroll", "min_blocks", "reduction", "math"), limits.has_room
                ),
            ),
            free={
                "load": cuda.LOADS,
                "store": cuda.STORES[:1] if all(program.per_row) else cuda.STORES,
            },
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        """Some 32 registers of columns a thread, lines of 128 bytes to 2 KB; in two steps, as there is hardly
        anything to wait for between them."""
        space = self.space(program, workload, target)
        return nearest(space, *self._wishes(space, program, workload, target))

    def _wishes(
        self, space: Space, program: Program, workload: Workload, target: Target
    ) -> list[dict[str, ConfigValue]]:
        vec = next(v for v in cuda.vectors(workload.stride, workload.itemsize) if workload.stride % v == 0)
        words = max(1, vec * workload.itemsize // 4)
        base: dict[str, ConfigValue] = {
            "across": 32, "down": 8, "vec": vec, "cluster": 1, "parts": 1, "storage": "registers",
            "unroll": 1, "min_blocks": 2, "reduction": "two_step",
            "math": cuda.math_axis(program)[0], "load": "default", "store": "default",
        }  # fmt: skip
        downs = [1, 2, 4, 8, 16, 32]
        fitting = [n for n in downs if workload.cols / n * words <= 48 and n <= workload.cols]
        if all(program.per_row) or not fitting:
            limits = Limits(program, workload, target)
            most = max(n for n in downs if n <= workload.cols)
            loop = {**base, "down": min(8, most), "storage": "global", "unroll": 8}
            return [
                *_parts_wishes(base, limits, program, workload, target),
                *_waiting_wishes(base, space, workload),
                *_cluster_wishes(base, limits, workload, target),
                loop,
                {**loop, "down": min(16, most), "unroll": 4},
                {**loop, "vec": 1, "across": 64, "min_blocks": 4},
                {**loop, "reduction": "online" if program.online_kinds else "two_step", "unroll": 16},
            ]
        down = fitting[0]
        across = [n for n in (128, 64, 32, 16, 8, 4) if n * down <= 512]
        return [
            {**base, "down": down, "across": across[0], "min_blocks": 1},
            {**base, "down": min(2 * down, downs[-1]), "across": across[min(1, len(across) - 1)]},
            {**base, "down": down, "across": across[min(1, len(across) - 1)], "vec": max(1, vec // 2)},
            *_waiting_wishes(base, space, workload)[:1],
            {**base, "down": down, "across": across[0], "storage": "global", "unroll": 8},
        ]

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        limits, parts = Limits(program, workload, target), int(config["parts"])
        is_refilled = config["storage"] == "refilled"
        # Each block of rows side by side is cut into as many, and each of these into parts.
        return Launch(
            work_per_row=-(-workload.stride // wide(config)) * parts,
            work_per_block=workload.stride,
            block=int(config["across"]) * int(config["down"]),
            cluster=int(config["cluster"]),
            persistent=parts > 1 or is_refilled,
            smem_bytes=waiting_bytes(config, workload, len(cached_inputs(program))),
            workspace_bytes=16 + 4 * _COUNTERS if parts > 1 else 16 if is_refilled else 0,
            scratch_bytes=-(-limits.found_bytes(config) // 256) * 256 if parts > 1 else 0,
            alignment=int(config["vec"]) * workload.itemsize,
            most_rows=ANY_ROWS if parts == 1 else workload.rows,
        )

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        schedule = schedule_of(config, program)
        widths = [words_of(stage) for stage in schedule.stages]
        return {
            **cuda.common_variables(program),
            "schedule": schedule,
            "stride": workload.stride,
            "counters": _COUNTERS,
            "widths": widths,
            "most_words": max(widths),
            "means_of": means_of,
            "word_of": word_of,
            "cached": cached_inputs(program),
            "held": held_items(config, workload),
            "launder": must_launder(config, program, workload),
            "per_row": all(program.per_row),
        }


def _parts_wishes(
    base: Config, limits: Limits, program: Program, workload: Workload, target: Target
) -> list[dict[str, ConfigValue]]:
    """Where rows side by side are too few: blocks of 512 threads, and four parts for each that runs."""
    vec, online = int(base["vec"]), bool(program.online_kinds)
    across = next((n for n in (128, 64, 32, 16, 8) if n * vec <= workload.stride), 4)
    down = min(32, 512 // across)
    loop = {
        **base, "across": across, "down": down, "storage": "global",
        "reduction": "online" if online else "two_step",
    }  # fmt: skip
    blocks = limits.tiles(loop)
    if not limits.is_read_once or blocks >= 2 * target.units:
        return []
    counts = [1 << n for n in reversed(range(1, 13)) if blocks << n <= 8 * target.units]
    wishes = [{**loop, "unroll": 8, "min_blocks": 1, "parts": parts} for parts in counts]
    found = [wish for wish in wishes if limits.is_shared_out(wish) and limits.has_parts(wish)][:2]
    return found if online else [{**wish, "unroll": 4, "min_blocks": 2} for wish in found[:1]] + found


def _waiting_wishes(base: Config, space: Space, workload: Workload) -> list[dict[str, ConfigValue]]:
    """Blocks of 256 threads that fill a multiprocessor by twos to fours, with lines of 256 bytes: a copy in
    this order takes 531 us at 16x4096x4096 float32, with lines of 128 bytes 576, and copy_ 507. Halves are
    bound by what is computed, too: four blocks that start and end apart took 300 us, and three that are
    filled again 325."""
    vec = int(base["vec"])
    half = max(1, vec // 2)
    shapes = [("refilled", vec, 128, 2, 256), ("refilled", half, 64, 3, 256)]
    if workload.itemsize == 2:
        shapes = [("both", half, 64, 4, 128), ("refilled", half, 64, 3, 128), shapes[0]]
    found: list[dict[str, ConfigValue]] = []
    for storage, width, words, blocks, line in shapes:  # words of a thread, bytes of a line
        bytes_each = width * workload.itemsize
        across = line // bytes_each
        items = words // max(1, bytes_each // 4)
        wish = {
            **base, "across": across, "down": 256 // across, "vec": width, "storage": storage,
            "cluster": max(1, workload.cols * across // (256 * items)), "min_blocks": blocks,
        }  # fmt: skip
        found += [wish] if space.allows(wish) else []
    return found


def _cluster_wishes(
    base: Config, limits: Limits, workload: Workload, target: Target
) -> list[dict[str, ConfigValue]]:
    """Where a block's registers are too few for its rows, what led at 4096 columns on an H200 of those that
    hold all of them there (607 us, where columns that are read twice took 796, in float32): lines of 128
    bytes. And in a loop, where rows side by side are too few for the device."""
    if limits.is_read_once or cuda.compute_capability(target.arch) < cuda.CLUSTER_ARCH:
        return []
    word = min(int(base["vec"]), 4 // workload.itemsize)
    shapes = [(16, 16, 8, 2), (32, 8, 8, 2), (32, 8, 16, 3), (32, 16, 8, 1)]
    names = ("across", "down", "cluster", "min_blocks")
    kept: list[dict[str, ConfigValue]] = [
        {**base, "vec": word * 32 // shape[0], **dict(zip(names, shape, strict=True))} for shape in shapes
    ]
    loop = {**base, "storage": "global", "unroll": 8, "cluster": 16}
    return [
        *(
            wish
            for wish in kept
            if 4 <= items(wish, workload) <= 64 and workload.stride % int(wish["vec"]) == 0
        ),
        *([loop] if limits.tiles(loop) < target.units else []),
    ]


def must_launder(config: Config, program: Program, workload: Workload) -> bool:
    """Whether passes must not share what they compute of an element (see `ks::launder`)."""
    words = held_items(config, workload) * max(1, int(config["vec"]) * workload.itemsize // 4)
    is_held = words * len(cached_inputs(program)) > 40
    return workload.itemsize == 2 or is_held


def block_axes(workload: Workload) -> dict[str, tuple[ConfigValue, ...]]:
    """Threads along the memory and down the columns, and the neighbouring rows that each takes."""
    stride = workload.stride
    return {
        "across": tuple(n for n in (4, 8, 16, 32, 64, 128, 256, 512) if n <= 32 or n < 2 * stride),
        "down": tuple(n for n in (1, 2, 4, 8, 16, 32) if n <= workload.cols),
        "vec": tuple(v for v in cuda.vectors(stride, workload.itemsize) if stride % v == 0),
    }


def is_block(config: Config, workload: Workload) -> bool:
    """Whole warps, of which most have rows; 32-bit columns."""
    across, vec = int(config["across"]), int(config["vec"])
    threads = across * int(config["down"])
    if threads % 32 or threads > 1024 or workload.cols >= 2**31:
        return False
    return threads == 32 or across * vec < 2 * workload.stride
