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
from ksearch.families.rowwise_cuda import means_of, schedule_of, width_of
from ksearch.operators.program import Program, Reduction, Role, Schedule, Stage
from ksearch.types import ANY_ROWS, Config, ConfigValue, Launch, Target, Workload

SPARE_REGISTERS = 32
"""Registers beside the vectors of one batch (tests/families/test_cuda_compile.py)."""

_MOST_ELEMENTS = 1 << 30
"""Of a part of a row: its elements are counted in 32 bits, and beyond its end, too."""

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
            has_slots = parts == 1 or all_rows * parts <= _IN_TURN * min_blocks * units
            return block * min_blocks <= cuda.THREADS_PER_SM and has_slots

        def is_gridded(config: Config) -> bool:
            if config["parts"] != 1 or program.is_total:  # memory that stays is that of a persistent grid
                return config["grid"] == "persistent"
            return config["grid"] == "one_shot" or all_rows > int(config["rows"]) * units

        def has_registers(config: Config) -> bool:
            cap = cuda.register_cap(int(config["threads"]) * int(config["rows"]), int(config["min_blocks"]))
            return registers(config, program, itemsize) <= cap

        shape = ("threads", "rows", "parts")
        return Space(
            axes={
                "threads": tuple(t for t in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if t <= cols),
                "rows": tuple(r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256) if r == 1 or cols <= 16384),
                "parts": (1,) if has_stages else parts_of(all_rows, units),
                "vec": cuda.vectors(cols, itemsize),
                "unroll": (1, 2, 4, 8, 16),
                "min_blocks": (1, 2, 4, 8, 16),
                "grid": ("one_shot", "persistent"),
                "reduction": ("online", "two_step") if program.online_kinds else ("two_step",),
            },
            rules=(
                Rule(("threads", "rows"), is_block),
                Rule(shape, has_parts),
                Rule((*shape, "vec", "unroll"), is_filled),
                Rule((*shape, "min_blocks"), has_room),
                Rule(("rows", "parts", "grid"), is_gridded),
                Rule(
                    ("parts", "reduction"),
                    lambda config: config["parts"] == 1 or not _has_two(config, program),
                ),
                Rule(("threads", "rows", "vec", "unroll", "min_blocks", "reduction"), has_registers),
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
            counts = [n for n in parts_of(workload.rows, units) if 1 < n <= most][-3:]
            whole: dict[str, ConfigValue] = {**base, "threads": 256, "grid": "persistent", "min_blocks": 2}
            found = [{**whole, "parts": n, "unroll": unroll} for n in reversed(counts) for unroll in (4, 8)]
            return [*found, {**whole, "parts": counts[-1], "threads": 512}] if counts else [base]
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
        return [
            {**base, "threads": threads, "unroll": 8},
            {**base, "threads": min(1024, 2 * threads)},
            {**base, "threads": max(32, threads // 2), "unroll": 8},
            {**base, "threads": threads, "unroll": 8, "grid": "persistent", "load": "default"},
        ]

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        parts, rows = int(config["parts"]), int(config["rows"])
        at_most = _IN_TURN * int(config["min_blocks"]) * target.units
        most_rows = ANY_ROWS if parts == 1 else at_most // parts
        return Launch(
            work_per_row=parts,
            work_per_block=rows,
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
            "staged": int(config["rows"]) >= 8 and not all(schedule.places),
            "slot_bytes": _slot_bytes(config, program),
            "slots": _SLOTS,
            "totals_at": _totals_at(config, program),
            "batch": workload.shape[0],
        }


def items(config: Config, cols: int) -> int:
    """Vectors of a row that one thread takes."""
    vec = int(config["vec"])
    count = -(-cols // vec) + (cols % vec != 0)
    return -(-count // (int(config["threads"]) * int(config["parts"])))


def parts_of(rows: int, units: int) -> tuple[int, ...]:
    """Parts of a row: powers of two, and so many that each unit has a whole number of them."""
    counts = {units * each // rows for each in (1, 2, 4, 8, 16, 32, 64)} | {2, 4, 8, 16, 32, 64}
    return (1, *sorted(n for n in counts if 1 < n <= 64 * units // rows))


def registers(config: Config, program: Program, itemsize: int) -> int:
    """How many a thread may need. Bytes that NVRTC 13.0 spilled on sm_80 stand beside what they led to."""
    vec, unroll = int(config["vec"]), int(config["unroll"])
    reads = max(1, sum(1 for item in program.inputs if item.role in (Role.FULL, Role.ROW)))
    # What is online goes through a batch twice, and its floats stay from one time to the other: 416. Halves
    # of two inputs are all made floats before any is used: 184.
    are_floats = config["reduction"] == "online" or reads > 1
    words = vec if are_floats else max(1, vec * itemsize // 4)
    places = sum(node.op in ("reduce_argmax", "reduce_argmin") for node in program.nodes)
    sums = min(vec, 4) * sum(node.op.startswith("reduce_") for node in program.nodes)
    spare = SPARE_REGISTERS + (16 if program.is_total else 0)  # 112 without
    return unroll * words * reads + 4 * vec * places + 3 * sums + spare  # 16 with 2 * vec, 56 with 2 * sums


def words_of(stage: Stage) -> int:
    """Of a partial result: a place takes two more."""
    return width_of(stage) + 2 * len(_places(stage))


def word_of(stage: Stage, reduction: Reduction) -> int:
    """Where the place of an extreme begins in a partial result."""
    return len(stage.reductions) + 2 * _places(stage).index(reduction)


def _places(stage: Stage) -> list[Reduction]:
    return [each for each in stage.reductions if each.kind in ("argmax", "argmin")]


def _has_two(config: Config, program: Program) -> bool:
    """Whether there are several passes over a row, so that its parts would have to meet between them."""
    return len(schedule_of(config, program).stages) > 1


def _totals_at(config: Config, program: Program) -> int:
    """Where a block keeps what its rows add to the totals: after counters and its part of a row."""
    if config["parts"] == 1:
        return 16
    words = words_of(schedule_of(config, program).stages[0])
    return 16 + -(-4 * words // 16) * 16


def _slot_bytes(config: Config, program: Program) -> int:
    totals = sum(node.op == "fold_sum" for node in program.nodes)
    return _totals_at(config, program) + -(-8 * totals // 16) * 16


def workspace_bytes(config: Config, program: Program) -> int:
    """Global memory of each block."""
    if config["parts"] == 1 and not program.is_total:
        return 0
    return _slot_bytes(config, program) * (_SLOTS if config["parts"] != 1 else 1)


def has_early_picks(schedule: Schedule) -> bool:
    """Whether a pass over a row needs what was picked by an index, or anything computed from it."""
    head, *passes = re.split(r"(?=template <class T> KS_FN void stage\d+\()", schedule.text)
    _, _, picked = head.partition("void finish_pick(")
    names = [pick.name for pick in schedule.picks] + re.findall(r"row\.(v\d+) =", picked)
    stages = [each.partition("\n}")[0] for each in passes]
    return any(re.search(rf"\brow\.{name}\b", stage) for name in names for stage in stages)
