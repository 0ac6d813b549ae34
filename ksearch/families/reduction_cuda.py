"""Rows of which one value is left, on a GPU: sums, extremes and their places, norms, losses.

Nothing of a row is kept, so that what matters is how many bytes are on their way: threads of a row, vectors
that each asks for at once, blocks of a multiprocessor; and for few rows, in how many parts blocks share one.
"""

from __future__ import annotations

import re
from typing import Any

from ksearch.families import cuda, reduction_guesses
from ksearch.families.base import Rule, Space
from ksearch.families.reduction_limits import (
    CLUSTERS,
    PART_BYTES,
    is_whole,
    items,
    parts_of,
    plain_inputs,
    registers,
)
from ksearch.families.rowwise_cuda import means_of, schedule_of, width_of
from ksearch.launch import ANY_ROWS, Launch
from ksearch.operators.program import Program, Role
from ksearch.operators.stages import Reduction, Schedule, Stage
from ksearch.types import Config, ConfigValue, Target, Workload

_MOST_ELEMENTS = 1 << 30
"""Of a part of a row: its elements are counted in 32 bits, and beyond its end, too."""

_IN_TURN = 16
"""Parts for each block that runs at once: a block goes on with the next part when it is done with one. With
one each a sum of 100 million floats was at 0.885 of a copy's speed, because blocks are not equally fast."""

_SLOTS = 10 * _IN_TURN
"""Results of parts that each block has room for: enough on a device with a tenth of the multiprocessors, too,
such as a slice of the same GPU."""

_ORDERLESS = ("max", "min", "argmax", "argmin")
"""Kinds that are the same bits in whatever order values are joined."""

_MOST_EXACT = 32
"""Rows of a block that each have exact totals in shared memory."""

_COUNTERS, _COUNTERS_AT, _APART_BYTES = 8, 256, 1024
"""What rows are drawn from: how many there are, where in the workspace, and how far from one another. Exact
totals, of 80 bytes each, begin 128 bytes behind each of them."""


class ReductionCuda:
    name = "reduction"
    template = "cuda/reduction.cu.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        cols, itemsize, units, all_rows = workload.cols, workload.itemsize, target.units, workload.rows
        has_stages = len(program.schedule(program.online_kinds).stages) > 1
        has_clusters = cuda.compute_capability(target.arch) >= cuda.CLUSTER_ARCH
        draws = is_whole(program, workload) or program.is_total

        def is_block(config: Config) -> bool:
            threads, rows = int(config["threads"]), int(config["rows"])
            return threads * rows % 32 == 0 and threads * rows <= 1024 and (rows == 1 or threads <= 128)

        def has_parts(config: Config) -> bool:
            parts = int(config["parts"])
            if parts == 1:
                return cols < _MOST_ELEMENTS
            fits = cols * itemsize >= PART_BYTES * parts and -(-cols // parts) < _MOST_ELEMENTS
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
            has_slots = has_slots or config["grid"] == "drawn"
            return block * min_blocks <= cuda.THREADS_PER_SM and has_slots

        def is_gridded(config: Config) -> bool:
            if config["grid"] == "cluster":
                return has_clusters and config["parts"] in CLUSTERS and not program.is_total
            if config["grid"] == "drawn":  # for more turns than the two that are known from the start
                count = all_rows if config["parts"] == 1 else int(config["parts"])
                is_drawn = program.is_total == (config["parts"] == 1) and units >= _COUNTERS
                is_drawn = is_drawn and int(config["rows"]) <= _MOST_EXACT
                return is_drawn and count >= 2 * int(config["rows"]) * units
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
                "grid": ("one_shot", "persistent", "cluster", *(("drawn",) if draws else ())),
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
                Rule((*shape, "vec", "unroll", "min_blocks", "grid", "reduction"), has_registers),
            ),
            free={"load": cuda.LOADS, "math": cuda.math_axis(program)},
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        return reduction_guesses.guesses(program, workload, target)

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        parts, rows, is_apart = int(config["parts"]), int(config["rows"]), _is_apart(config)
        at_most = _IN_TURN * int(config["min_blocks"]) * target.units
        most_rows = at_most // parts if is_apart else ANY_ROWS
        return Launch(
            work_per_row=parts if is_apart else 1,
            work_per_block=rows,
            cluster=1 if is_apart else parts,
            block=int(config["threads"]) * rows,
            persistent=config["grid"] in ("persistent", "drawn"),
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
            "kept": all(str(each.kind) in _ORDERLESS for each in schedule.stages[0].reductions),
            "plain": plain,
            "plain_directions": directions,
            "staged": int(config["rows"]) >= 8 and not all(schedule.places),
            "slot_bytes": _slot_bytes(config, program),
            "slots": _SLOTS,
            "totals_at": _totals_at(config, program),
            "counters": _COUNTERS,
            "counters_at": _COUNTERS_AT,
            "apart_bytes": _APART_BYTES,
            "batch": workload.shape[0],
        }


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
    word_bytes = 8 if config["grid"] == "drawn" else 4  # with a tag each, perhaps
    return 16 + -(-word_bytes * words // 16) * 16


def _slot_bytes(config: Config, program: Program) -> int:
    totals = sum(node.op == "fold_sum" for node in program.nodes)
    if totals and config["grid"] == "drawn":  # for as many blocks as counters
        return -(-(_COUNTERS_AT + _COUNTERS * _APART_BYTES) // (16 * _COUNTERS)) * 16
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
