"""Sums and products along rows that lie side by side, on a GPU: neighbouring threads take neighbouring rows.

A block goes down the columns tile by tile, as a copy would, and carries on what its rows have come to. What
matters: long pieces of memory, bytes in flight, and blocks enough to fill the device; few rows are cut into
parts for that, whose sums a first kernel takes.
"""

from __future__ import annotations

from typing import Any

from ksearch.families import cuda
from ksearch.families.base import Rule, Space, nearest
from ksearch.families.scan_cuda import mask_inputs, parts, scan_variables
from ksearch.families.strided_cuda import block_axes, is_block
from ksearch.launch import ANY_ROWS, Launch
from ksearch.operators.program import Program, Role
from ksearch.types import Config, ConfigValue, Target, Workload

SPARE_REGISTERS = 48
"""Registers beside the columns in flight and what rows come to (tests/families/test_strided_scan.py)."""
_STATIC_BYTES = 48 << 10
"""Shared memory that a block may have without asking for it."""
_SUM_BYTES = 8
"""Of a part of a row: a double."""
_CHEAP = ("input", "const", "+", "-", "*", "neg", "where")


class StridedScanCuda:
    name = "strided_scan"
    template = "cuda/strided_scan.cu.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        limits = Limits(program, workload, target)
        shape = ("across", "down", "vec")
        return Space(
            axes={
                **block_axes(workload),
                "items": (1, 2, 4, 8, 16),
                # A product of thousands of elements is 0 where their scan is not.
                "parts": (1, 2, 4, 8, 16, 32, 64, 128) if parts(program)["kind"] == "sum" else (1,),
                "prefetch": (False, True),
                "min_blocks": (1, 2, 3, 4, 6, 8),
                "math": cuda.math_axis(program),
            },
            rules=(
                Rule(shape, lambda config: is_block(config, workload)),
                Rule(shape, limits.has_shared_memory),
                Rule(("down", "items"), limits.is_filled),
                Rule((*shape, "items", "parts"), limits.has_parts),
                Rule(("down", "items", "parts", "prefetch"), limits.goes_on),
                Rule((*shape, "items", "prefetch", "min_blocks", "math"), limits.has_room),
            ),
            free={"load": cuda.LOADS, "store": cuda.STORES},
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        """Lines of 512 bytes, 8 vectors in flight a thread; parts until a multiprocessor has two blocks."""
        stride = workload.stride
        vec = next(v for v in cuda.vectors(stride, workload.itemsize) if stride % v == 0)
        across = next(n for n in (32, 16, 8, 4) if n == 4 or n * vec <= stride)
        down = max(n for n in (1, 2, 4, 8, 16, 32) if n * across <= 256 and n <= workload.cols)
        blocks = workload.rows // stride * -(-stride // (across * vec))
        wanted = min(max(1, 2 * target.units // blocks), max(1, workload.cols // (2 * 8 * down)), 128)
        cut = 1 << (wanted.bit_length() - 1)
        base: dict[str, ConfigValue] = {
            "across": across, "down": down, "vec": vec, "items": 8, "parts": cut, "prefetch": False,
            "min_blocks": 2, "math": cuda.math_axis(program)[0], "load": "default", "store": "default",
        }  # fmt: skip
        return nearest(
            self.space(program, workload, target),
            base,
            {**base, "items": 4, "prefetch": True},
            {**base, "down": max(1, down // 2), "min_blocks": 4},
            {**base, "across": 2 * across, "parts": 2 * cut, "items": 4},
            {**base, "parts": 1},
        )

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        wide, count = int(config["across"]) * int(config["vec"]), int(config["parts"])
        # Each block of rows side by side is cut into as many, and each of these into parts.
        work_per_row, block = -(-workload.stride // wide) * count, int(config["across"]) * int(config["down"])
        sums = Launch(
            work_per_row=work_per_row, work_per_block=workload.stride, block=block, entry="ksearch_sums"
        )
        return Launch(
            work_per_row=work_per_row,
            work_per_block=workload.stride,
            block=block,
            alignment=int(config["vec"]) * workload.itemsize,
            scratch_bytes=-(-count * workload.rows * _SUM_BYTES // 256) * 256 if count > 1 else 0,
            before=(sums,) if count > 1 else (),
            most_rows=ANY_ROWS if count == 1 else workload.rows,
        )

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        return {
            **cuda.common_variables(program),
            **scan_variables(program),
            "stride": workload.stride,
            "launder": must_launder(program, workload),
        }


def must_launder(program: Program, workload: Workload) -> bool:
    """Whether floats or doubles that were made of a column would wait in registers beside it."""
    return workload.itemsize == 2 or parts(program)["kind"] == "prod" or has_functions(program)


def has_functions(program: Program) -> bool:
    """Whether what is summed up takes long to compute again: the compilers keep a column's sigmoids instead
    (36 bytes spilled), not its products."""
    before, _ = program.around_scan
    wanted = set(before.outputs)
    for place in reversed(range(len(before.nodes))):
        if place in wanted:
            wanted.update(before.nodes[place].operands)
    return any(before.nodes[place].op not in _CHEAP for place in wanted)


class Limits:
    """The constraints on one op's configs, one method each."""

    def __init__(self, program: Program, workload: Workload, target: Target) -> None:
        self._workload, self._target = workload, target
        self._reads = max(1, sum(1 for item in program.inputs if item.role is Role.FULL))
        self._masks = len(mask_inputs(program))
        self._others = len(program.inputs) - self._reads - self._masks
        self._outputs = len(program.outputs)
        self._has_functions = len(cuda.math_axis(program)) > 1
        self._is_laundered = has_functions(program)
        self._words = 2 if parts(program)["kind"] == "prod" else 1

    def _tiles(self, config: Config) -> int:
        return -(-self._workload.cols // (int(config["down"]) * int(config["items"])))

    def has_shared_memory(self, config: Config) -> bool:
        """Two copies of what each thread's columns come to; one of doubles where parts are summed up."""
        threads = int(config["across"]) * int(config["down"])
        return config["down"] == 1 or 2 * 4 * self._words * threads * int(config["vec"]) <= _STATIC_BYTES

    def is_filled(self, config: Config) -> bool:
        tile = int(config["down"]) * int(config["items"])
        return config["items"] == 1 or tile < 2 * self._workload.cols

    def has_parts(self, config: Config) -> bool:
        """Where blocks are too few, and each part has tiles enough that its sum is worth the reading."""
        count, workload = int(config["parts"]), self._workload
        if count == 1:
            return True
        wide = int(config["across"]) * int(config["vec"])
        blocks = workload.rows // workload.stride * -(-workload.stride // wide)
        return self._tiles(config) >= 2 * count and blocks * count <= 8 * self._target.units

    def goes_on(self, config: Config) -> bool:
        """Whether there is a next tile to fetch."""
        return not config["prefetch"] or self._tiles(config) > int(config["parts"])

    def has_room(self, config: Config) -> bool:
        threads = int(config["across"]) * int(config["down"])
        return threads * int(config["min_blocks"]) <= cuda.THREADS_PER_SM and self.slack(config) >= 0

    def slack(self, config: Config) -> int:
        """Registers that are left of what a thread may have."""
        vec, items = int(config["vec"]), int(config["items"])
        held = items * max(1, vec * self._workload.itemsize // 4) * self._reads
        held += items * (max(1, vec // 4) + 4) * self._masks  # with their addresses: 36 bytes spilled
        # What the rows have come to, in double; what is before this thread's columns; a result.
        rows = vec * (2 + 2 * self._words + self._outputs)
        words = held * (2 if config["prefetch"] else 1) + rows + 8 * (self._others + self._masks)
        if self._workload.itemsize == 2:  # floats that are made of them: 56 bytes spilled
            words += vec * items // 4
        if vec * self._workload.itemsize < 16:  # an address for each column: 12 bytes spilled
            words += 8
        if self._has_functions and config["math"] == "exact":
            words += 8
        if self._is_laundered and config["down"] == 1:  # no barrier keeps two passes apart: 4 bytes spilled
            words += 16
        threads = int(config["across"]) * int(config["down"])
        return cuda.register_cap(threads, int(config["min_blocks"])) - words - SPARE_REGISTERS
