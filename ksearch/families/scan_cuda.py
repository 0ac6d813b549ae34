"""Sums and products along rows on a GPU: a block, several rows' share of a block, or blocks all over the
device go along a row tile by tile.

A copy that carries something on: what matters is bytes in flight, as in a copy, and few steps between a
tile's loads and its stores.
"""

from __future__ import annotations

from typing import Any

from ksearch.families import cuda
from ksearch.families.base import Rule, Space, nearest
from ksearch.launch import ANY_ROWS, Launch
from ksearch.operators.program import SCANNED, Program, Role
from ksearch.types import Config, ConfigValue, Target, Workload

SPARE_REGISTERS = 32
"""Registers beside the vectors in flight and what they come to (tests/families/test_scan.py)."""
_SPLIT_THREADS = 128
"""Fewer threads of a block that shares its row would wait longer for the other blocks than they work."""


class ScanCuda:
    name = "scan"
    template = "cuda/scan.cu.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        cols, itemsize, units = workload.cols, workload.itemsize, target.units
        kind = parts(program)["kind"]
        splits = {1, 8, 16, units // 4, units // 2, units, 2 * units} if kind == "sum" else {1}
        limits = Limits(program, workload, target)
        shape = ("threads", "rows", "split", "vec", "items")
        return Space(
            axes={
                "threads": tuple(t for t in (8, 16, 32, 64, 128, 256, 512, 1024) if t == 8 or t <= cols),
                "rows": tuple(r for r in (1, 2, 4, 8, 16, 32) if r == 1 or cols <= 16384),
                "split": tuple(
                    n
                    for n in sorted(splits)
                    if n == 1 or (n > 1 and cols * itemsize >= 4096 * n and workload.rows * n <= 8 * units)
                ),
                "vec": cuda.vectors(cols, itemsize),
                "items": (1, 2, 4, 8),
                "prefetch": (False, True),
                "min_blocks": (1, 2, 4, 8),
                "math": cuda.math_axis(program),
            },
            rules=(
                Rule(("threads", "rows"), limits.is_block),
                Rule(("threads", "rows", "split"), limits.is_team),
                Rule(shape, limits.is_filled),
                Rule((*shape, "prefetch"), limits.goes_on),
                Rule((*shape, "prefetch", "min_blocks", "math"), limits.has_room),
            ),
            free={"load": cuda.LOADS, "store": cuda.STORES},
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        """Blocks of a few warps, 64 bytes in flight a thread; threads and items as the row fills them."""
        return nearest(self.space(program, workload, target), *self._wishes(program, workload, target))

    def _wishes(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        cols, vec = workload.cols, max(v for v in cuda.vectors(workload.cols, workload.itemsize))
        reads = sum(1 for item in program.inputs if item.role is Role.FULL)
        base: dict[str, ConfigValue] = {
            "threads": 256, "rows": 1, "split": 1, "vec": vec, "items": 2, "prefetch": True,
            "min_blocks": 4 if reads == 1 else 2, "math": cuda.math_axis(program)[0],
            "load": "default", "store": "default",
        }  # fmt: skip
        if cols <= 128 * vec:
            threads = max(8, min(32, 1 << (max(1, cols // vec) - 1).bit_length()))
            items = 1 << max(1, min(4, cols // (threads * vec))).bit_length() - 1
            short = {**base, "threads": threads, "rows": min(32, 128 // threads), "prefetch": False}
            return [{**short, "items": items}, {**short, "items": 1}]
        if cols <= 2048 * vec:
            threads = min(512, 1 << (cols // (2 * vec) - 1).bit_length())
            single = {**base, "threads": threads, "prefetch": False, "min_blocks": 2}
            return [single, {**single, "threads": threads // 2, "items": 4}, {**base, "threads": 128}]
        splits = [int(n) for n in self.space(program, workload, target).axes["split"]]
        if workload.rows * 4 <= target.units and len(splits) > 1:  # too few rows for a block each
            all_at_once = [n for n in splits if workload.rows * n <= 2 * target.units]
            alone = {**base, "threads": 512, "split": all_at_once[-1], "min_blocks": 2}
            smaller = {**alone, "threads": 256, "items": 4}
            return [alone, smaller, {**alone, "items": 1}, {**smaller, "split": splits[-1]}, base]
        return [
            base,
            {**base, "threads": 128, "items": 4},
            {**base, "threads": 512, "min_blocks": 2},
            {**base, "prefetch": False, "items": 4},
        ]

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        split = int(config["split"])
        return Launch(
            work_per_row=1,
            work_per_block=int(config["rows"]),
            block=int(config["threads"]) * int(config["rows"]),
            split=split,
            persistent=split > 1,
            workspace_bytes=_workspace_bytes(split),
            alignment=int(config["vec"]) * workload.itemsize,
            most_rows=ANY_ROWS,
        )

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        threads, split = int(config["threads"]), int(config["split"])
        return {
            **cuda.common_variables(program),
            **scan_variables(program),
            "warps": max(1, threads // 32),
            "turns": -(-workload.cols // (threads * int(config["items"]) * int(config["vec"]) * split)),
            "workspace_bytes": _workspace_bytes(split),
        }


def parts(program: Program) -> dict[str, Any]:
    """The `kind` of the scan, sum or prod; whether it is `reverse`, and `exclusive`."""
    words = program.scan.op.split("_") if program.scan is not None else []
    return {"kind": words[1], "reverse": "reverse" in words, "exclusive": "exclusive" in words}


def scan_variables(program: Program, *, wide: bool = False) -> dict[str, Any]:
    """What the templates of scans read; `wide`: lanes are rows."""
    before, after = (part.schedule(wide=wide) for part in program.around_scan)
    return {
        **parts(program),
        "mask_inputs": mask_inputs(program),
        "before": before,
        "after": after,
        "after_inputs": [name for name in after.output_inputs if name != SCANNED],
        "wide": wide,
    }


def mask_inputs(program: Program) -> list[str]:
    """Names of the inputs of bool."""
    return [item.name for item in program.inputs if item.role is Role.MASK]


def _workspace_bytes(split: int) -> int:
    """Of each block: an epoch, and four words for what it posts."""
    return 48 if split > 1 else 0


class Limits:
    """The constraints on one op's configs, one method each."""

    def __init__(self, program: Program, workload: Workload, target: Target) -> None:
        self._workload, self._target = workload, target
        self._reads = max(1, sum(1 for item in program.inputs if item.role is Role.FULL))
        self._outputs = len(program.outputs)
        self._masks = len(mask_inputs(program))
        self._others = len(program.inputs) - self._reads - self._masks
        self._has_functions = len(cuda.math_axis(program)) > 1
        self._words = 2 if parts(program)["kind"] == "prod" else 1

    def is_block(self, config: Config) -> bool:
        threads, rows = int(config["threads"]), int(config["rows"])
        is_whole = threads * rows % 32 == 0 and threads * rows <= 1024
        return is_whole and (rows == 1 or threads <= 128) and self._workload.cols < 2**31  # 32-bit columns

    def is_team(self, config: Config) -> bool:
        return config["split"] == 1 or (config["rows"] == 1 and int(config["threads"]) >= _SPLIT_THREADS)

    def _turns(self, config: Config) -> float:
        tile = int(config["threads"]) * int(config["items"]) * int(config["vec"]) * int(config["split"])
        return self._workload.cols / tile

    def is_filled(self, config: Config) -> bool:
        """Threads without a vector do no work, and a short tile for a long row is all waiting.

        A warp's product must not leave the range of double, or it would turn an infinity before it into NaN:
        that of 1170 normally distributed numbers does.
        """
        if (
            self._words == 2
            and int(config["items"]) * int(config["vec"]) * min(32, int(config["threads"])) > 512
        ):
            return False
        turns = self._turns(config)
        is_least = config["items"] == 1 and config["threads"] == 8
        return (turns > 0.5 or is_least) and (turns <= 64 or int(config["threads"]) >= _SPLIT_THREADS)

    def goes_on(self, config: Config) -> bool:
        """Whether there is a next tile to fetch."""
        return not config["prefetch"] or self._turns(config) > 1

    def has_room(self, config: Config) -> bool:
        block, min_blocks = int(config["threads"]) * int(config["rows"]), int(config["min_blocks"])
        split = int(config["split"])
        if block * min_blocks > cuda.THREADS_PER_SM or (
            split > 1 and split > min_blocks * self._target.units
        ):
            return False
        return self.slack(config) >= 0

    def slack(self, config: Config) -> int:
        """Registers that are left of what a thread may have."""
        vec, items = int(config["vec"]), int(config["items"])
        held = items * max(1, vec * self._workload.itemsize // 4) * self._reads
        held += items * max(1, vec // 4) * self._masks
        words = held * (2 if config["prefetch"] else 1) + items * self._words + vec * self._outputs
        if self._words == 2:  # doubles: 24 bytes spilled with 32
            words += 8
        is_narrow = vec * self._workload.itemsize < 16
        if self._reads + self._masks > 1 and is_narrow:  # an address each: 20 bytes with 32
            words += 8
        if int(config["split"]) > 1:  # 4 bytes with 32
            words += 8
        if self._others:  # an address each, and those of a row vector once more for each item
            words += 8 * self._others + items
        if self._has_functions and config["math"] == "exact":
            words += 8
        block = int(config["threads"]) * int(config["rows"])
        return cuda.register_cap(block, int(config["min_blocks"])) - words - SPARE_REGISTERS
