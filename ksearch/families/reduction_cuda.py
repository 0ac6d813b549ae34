"""Rows of which one value is left, on a GPU: sums, extremes and their places, norms, losses.

Nothing of a row is kept, so that what matters is how many bytes are on their way: threads of a row, vectors
that each asks for at once, blocks of a multiprocessor; and for few rows, in how many parts blocks share one.
"""

from __future__ import annotations

import math
import re
from typing import Any

from ksearch.families import cuda
from ksearch.families.base import Rule, Space
from ksearch.families.reduction_limits import items, plain_inputs, registers
from ksearch.families.rowwise_cuda import means_of, schedule_of, width_of
from ksearch.operators.program import Program, Role
from ksearch.operators.stages import Reduction, Schedule, Stage
from ksearch.types import ANY_ROWS, Config, ConfigValue, Launch, Target, Workload

_MOST_ELEMENTS = 1 << 30
"""Of a part of a row: its elements are counted in 32 bits, and beyond its end, too."""

_CLUSTERS = (2, 4, 8, 16)
"""Parts of a row that may be a cluster; 16 blocks are not portable, and must be asked for."""

_PART_BYTES = 4096
"""A block with less than that is done before it knows its next."""

_IN_TURN = 16
"""Parts for each block that runs at once: a block goes on with the next part when it is done with one. With
one each a sum of 100 million floats was at 0.885 of a copy's speed, because blocks are not equally fast."""

_SLOTS = 10 * _IN_TURN
"""Results of parts that each block has room for: enough on a device with a tenth of the multiprocessors, too,
such as a slice of the same GPU."""


class ReductionCuda:
    name = "reduction"
    template = "cuda/reduction.cu.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        cols, itemsize, units, all_rows = workload.cols, workload.itemsize, target.units, workload.rows
        has_stages = len(program.schedule(program.online_kinds).stages) > 1
        has_clusters = cuda.compute_capability(target.arch) >= cuda.CLUSTER_ARCH

        def is_block(config: Config) -> bool:
            threads, rows = int(config["threads"]), int(config["rows"])
            return threads * rows % 32 == 0 and threads * rows <= 1024 and (rows == 1 or threads <= 128)

        def has_parts(config: Config) -> bool:
            parts = int(config["parts"])
            if parts == 1:
                return cols < _MOST_ELEMENTS
            fits = cols * itemsize >= _PART_BYTES * parts and -(-cols // parts) < _MOST_ELEMENTS
            return fits and config["rows"] == 1 and int(config["threads"]) >= 64

        def is_filled(config: Config) -> bool:
            """Threads without a vector do no work, and no batch may be half empty all the time."""
            threads, count, unroll = int(config["threads"]), items(config, cols), int(config["unroll"])
            stride = threads * int(config["parts"]) * int(config["vec"])
            return (stride < 2 * cols or threads == 1) and unroll < 2 * count

        def has_room(config: Config) -> bool:
            block, min_blocks = int(config["threads"]) * int(config["rows"]), int(config["min_blocks"])
            parts = int(config["parts"])
            has_slots = not _is_apart(config) or all_rows * parts <= _IN_TURN * min_blocks * units
            return block * min_blocks <= cuda.THREADS_PER_SM and has_slots

        def is_gridded(config: Config) -> bool:
            if config["grid"] == "cluster":
                return has_clusters and config["parts"] in _CLUSTERS and not program.is_total
            if config["parts"] != 1 or program.is_total:  # memory that stays is that of a persistent grid
                return config["grid"] == "persistent"
            return config["grid"] == "one_shot" or all_rows > int(config["rows"]) * units

        def has_registers(config: Config) -> bool:
            cap = cuda.register_cap(int(config["threads"]) * int(config["rows"]), int(config["min_blocks"]))
            return registers(config, program, workload) <= cap

        shape = ("threads", "rows", "parts")
        return Space(
            axes={
                "threads": tuple(t for t in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if t <= cols),
                "rows": tuple(r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256) if r == 1 or cols <= 16384),
                "parts": (1,) if has_stages else parts_of(all_rows, units),
                "vec": cuda.vectors(cols, itemsize),
                "unroll": (1, 2, 4, 8, 16),
                "min_blocks": (1, 2, 4, 8, 16),
                "grid": ("one_shot", "persistent", "cluster"),
                "reduction": ("online", "two_step") if program.online_kinds else ("two_step",),
            },
            rules=(
                Rule(("threads", "rows"), is_block),
                Rule(shape, has_parts),
                Rule((*shape, "vec", "unroll"), is_filled),
                Rule((*shape, "min_blocks", "grid"), has_room),
                Rule(("rows", "parts", "grid"), is_gridded),
                Rule(
                    ("parts", "reduction"),
                    lambda config: config["parts"] == 1 or not _has_two(config, program),
                ),
                Rule((*shape, "vec", "unroll", "min_blocks", "reduction"), has_registers),
            ),
            free={"load": cuda.LOADS, "math": cuda.math_axis(program)},
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        """What led at such sizes on an H200: 64 to 128 bytes on their way for each thread."""
        cols, itemsize, units = workload.cols, workload.itemsize, target.units
        vec = 16 // itemsize
        base: dict[str, ConfigValue] = {
            "rows": 1, "parts": 1, "vec": vec, "unroll": 4, "min_blocks": 1, "load": "nc",
            "grid": "persistent" if program.is_total else "one_shot", "math": cuda.math_axis(program)[0],
            "reduction": "online" if program.online_kinds else "two_step",
        }  # fmt: skip
        per_row = max(1, -(-cols // vec))
        has_stages = len(program.schedule(program.online_kinds).stages) > 1
        if workload.rows < 2 * units and per_row > 2048 and not has_stages:  # too few to fill the device with
            most = min(32 * units // workload.rows, cols * itemsize // (4 * _PART_BYTES))
            counts_of = parts_of(workload.rows, units)
            counts = [n for n in counts_of if 1 < n <= most][-3:]
            whole: dict[str, ConfigValue] = {**base, "threads": 256, "grid": "persistent", "min_blocks": 2}
            found = [{**whole, "parts": n, "unroll": unroll} for n in reversed(counts) for unroll in (4, 8)]
            wide: dict[str, ConfigValue] = {**whole, "threads": 512, "unroll": 8, "min_blocks": 1}
            found = [{**wide, "parts": n} for n in (4 * units, 2 * units) if n in counts_of] + found
            has_clusters = cuda.compute_capability(target.arch) >= cuda.CLUSTER_ARCH
            if has_clusters and not program.is_total and per_row <= _CLUSTERS[-1] * 8192:
                # Short work, of which a way to global memory and back is much: 8x131072 float32.
                near = {**base, "threads": 512, "parts": 8, "grid": "cluster", "unroll": 8}
                found = [near, {**near, "threads": 256, "parts": 16}, *found]
            return found or [base]
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
        few = [{**warps, "threads": 64, "unroll": 8}, {**warps, "unroll": 8, "min_blocks": 2}, warps]
        return [
            *(few if itemsize == 2 and per_row <= 2048 else []),
            {**base, "threads": threads, "unroll": 8},
            {**base, "threads": min(1024, 2 * threads)},
            {**base, "threads": max(32, threads // 2), "unroll": 8},
            {**base, "threads": threads, "unroll": 8, "grid": "persistent", "load": "default"},
        ]

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        parts, rows, is_apart = int(config["parts"]), int(config["rows"]), _is_apart(config)
        at_most = _IN_TURN * int(config["min_blocks"]) * target.units
        most_rows = at_most // parts if is_apart else ANY_ROWS
        return Launch(
            work_per_row=parts if is_apart else 1,
            work_per_block=rows,
            cluster=1 if is_apart else parts,
            block=int(config["threads"]) * rows,
            persistent=config["grid"] == "persistent",
            workspace_bytes=workspace_bytes(config, program),
            alignment=int(config["vec"]) * workload.itemsize,
            most_rows=most_rows if workload.over else 1,
        )

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        schedule = schedule_of(config, program)
        plain = [plain_inputs(schedule, number) for number in range(len(schedule.stages))]
        directions = {
            str(reduction.kind)[-3:]
            for stage, names in zip(schedule.stages, plain, strict=True)
            for reduction, name in zip(stage.reductions, names, strict=True)
            if name
        }
        return {
            **cuda.common_variables(program),
            "index_inputs": [item.name for item in program.inputs if item.role is Role.INDEX],
            "output_dtypes": program.output_dtypes(workload.dtype),
            "schedule": schedule,
            "totals": schedule.totals,
            "has_rows": any(node.op == "rows" for node in program.nodes),
            "widths": [words_of(stage) for stage in schedule.stages],
            "means_of": means_of,
            "word_of": word_of,
            "early_picks": has_early_picks(schedule),
            "plain": plain,
            "plain_directions": directions,
            "staged": int(config["rows"]) >= 8 and not all(schedule.places),
            "slot_bytes": _slot_bytes(config, program),
            "slots": _SLOTS,
            "totals_at": _totals_at(config, program),
            "batch": workload.shape[0],
        }


def parts_of(rows: int, units: int) -> tuple[int, ...]:
    """Parts of a row: powers of two, and so many that each unit has a whole number of them."""
    counts = {units * each // rows for each in (1, 2, 4, 8, 16, 32, 64)} | {2, 4, 8, 16, 32, 64}
    return (1, *sorted(n for n in counts if 1 < n <= 64 * units // rows))


def words_of(stage: Stage) -> int:
    """Of a partial result: a place takes two more."""
    return width_of(stage) + 2 * len(_places(stage))


def word_of(stage: Stage, reduction: Reduction) -> int:
    """Where the place of an extreme begins in a partial result."""
    return len(stage.reductions) + 2 * _places(stage).index(reduction)


def _places(stage: Stage) -> list[Reduction]:
    return [each for each in stage.reductions if each.kind in ("argmax", "argmin")]


def _is_apart(config: Config) -> bool:
    """Whether a row's parts meet in global memory: not where they are one, or the blocks of a cluster."""
    return config["parts"] != 1 and config["grid"] != "cluster"


def _has_two(config: Config, program: Program) -> bool:
    """Whether there are several passes over a row, so that its parts would have to meet between them."""
    return len(schedule_of(config, program).stages) > 1


def _totals_at(config: Config, program: Program) -> int:
    """Where a block keeps what its rows add to the totals: after counters and its part of a row."""
    if not _is_apart(config):
        return 16
    words = words_of(schedule_of(config, program).stages[0])
    return 16 + -(-4 * words // 16) * 16


def _slot_bytes(config: Config, program: Program) -> int:
    totals = sum(node.op == "fold_sum" for node in program.nodes)
    return _totals_at(config, program) + -(-8 * totals // 16) * 16


def workspace_bytes(config: Config, program: Program) -> int:
    """Global memory of each block."""
    is_apart = _is_apart(config)
    if not is_apart and not program.is_total:
        return 0
    return _slot_bytes(config, program) * (_SLOTS if is_apart else 1)


def has_early_picks(schedule: Schedule) -> bool:
    """Whether a pass over a row needs what was picked by an index, or anything computed from it."""
    head, *passes = re.split(r"(?=template <class T> KS_FN void stage\d+\()", schedule.text)
    _, _, picked = head.partition("void finish_pick(")
    names = [pick.name for pick in schedule.picks] + re.findall(r"row\.(v\d+) =", picked)
    stages = [each.partition("\n}")[0] for each in passes]
    return any(re.search(rf"\brow\.{name}\b", stage) for name in names for stage in stages)
