"""What configs of the CUDA reduction family need of a multiprocessor's registers, and how rows may be cut."""

from __future__ import annotations

import functools
import re

from ksearch.families.rowwise_cuda import schedule_of
from ksearch.operators.program import Program, Role
from ksearch.operators.stages import Schedule
from ksearch.types import Config, Workload

CLUSTERS = (2, 4, 8, 16)
"""Parts of a row that may be a cluster; 16 blocks are not portable, and must be asked for."""

PART_BYTES = 4096
"""A block with less than that is done before it knows its next."""

SPARE_REGISTERS = 32
"""Registers beside the vectors of one batch (tests/families/test_cuda_compile.py)."""


def is_whole(program: Program, workload: Workload) -> bool:
    """Whether there is one row in whatever tensor a kernel is started on, and nothing is picked out of it."""
    has_picks = any(item.role is Role.INDEX for item in program.inputs)
    return workload.rows == 1 and not workload.over and not program.is_total and not has_picks


def parts_of(rows: int, units: int) -> tuple[int, ...]:
    """Parts of a row: powers of two, and so many that each unit has a whole number of them."""
    counts = {units * each // rows for each in (1, 2, 4, 8, 16, 32, 64)} | {2, 4, 8, 16, 32, 64}
    return (1, *sorted(n for n in counts if 1 < n <= 64 * units // rows))


def items(config: Config, cols: int) -> int:
    """Vectors of a row that one thread takes."""
    vec = int(config["vec"])
    count = -(-cols // vec) + (cols % vec != 0)
    return -(-count // (int(config["threads"]) * int(config["parts"])))


def registers(config: Config, program: Program, workload: Workload) -> int:
    """How many a thread may need. Bytes that NVRTC 13.0 spilled on sm_80 stand beside what they led to."""
    vec, unroll, itemsize = int(config["vec"]), int(config["unroll"]), workload.itemsize
    reads = max(1, sum(1 for item in program.inputs if item.role in (Role.FULL, Role.ROW)))
    places = sum(node.op in ("reduce_argmax", "reduce_argmin") for node in program.nodes)
    way = str(config["reduction"])
    if itemsize == 2 and vec > 1 and is_exact(config, workload.cols) and is_plain(program, way):
        held = unroll * vec // 2 + (8 if program.is_total and config["grid"] == "drawn" else 0)  # 22 without
        if way == "online":
            return held + (32 if held <= 40 else 64)  # 64 words: 4 bytes with 64 of float16 on sm_90
        return held + 24 + 8 * places
    # What is online goes through a batch twice, and its floats stay from one time to the other: 416. Halves
    # of two inputs are all made floats before any is used: 184.
    are_floats = way == "online" or reads > 1
    words = vec if are_floats else max(1, vec * itemsize // 4)
    sums = min(vec, 4) * sum(node.op.startswith("reduce_") for node in program.nodes)
    spare = SPARE_REGISTERS + (16 if program.is_total else 0)  # 112 without
    found = max(16, 4 * vec) * places  # 16 bytes with 2 * vec, 8 with 8
    # Parts of one batch, masked or not: both are made at once, and what was read is held twice: 372.
    is_one_batch = items(config, workload.cols) <= unroll and not is_exact(config, workload.cols)
    twice = 2 if config["grid"] != "cluster" and config["parts"] != 1 and is_one_batch else 1
    return twice * unroll * words * reads + found + 3 * sums + spare  # 56 with 2 * sums


def is_exact(config: Config, cols: int) -> bool:
    """Whether every thread has whole batches of whole vectors, so that nothing is masked."""
    batch = int(config["vec"]) * int(config["unroll"]) * int(config["threads"])
    if config["grid"] == "drawn" and config["parts"] != 1:  # whole batches, and fewer parts
        return cols % (batch * -(-items(config, cols) // int(config["unroll"]))) == 0
    return cols % (batch * int(config["parts"])) == 0


@functools.lru_cache(maxsize=64)
def is_plain(program: Program, way: str) -> bool:
    """Whether a row takes one pass over one input, whose halves are only compared at first."""
    stages = schedule_of({"reduction": way}, program).stages
    if len(stages) != 1 or len(stages[0].inputs) != 1:
        return False
    names = plain_inputs(schedule_of({"reduction": way}, program), 0)
    late = ("sum_exp", "sum_squares")
    return all(name or each.kind in late for name, each in zip(names, stages[0].reductions, strict=True))


def plain_inputs(schedule: Schedule, stage: int) -> list[str]:
    """For each reduction of a stage the input of which it is the extreme; empty where it is anything else."""
    body = re.search(rf"KS_FN void stage{stage}\(.*?\n\}}", schedule.text, re.DOTALL)
    found = dict(re.findall(r"value\[(\d+)\] = e\.(\w+);", body[0])) if body else {}
    kinds = ("max", "min", "argmax", "argmin")
    reductions = schedule.stages[stage].reductions
    return [found.get(str(k), "") if each.kind in kinds else "" for k, each in enumerate(reductions)]
