"""Rows that lie side by side, reduced and mapped on a GPU: neighbouring threads take neighbouring rows.

What matters is as in a copy: long pieces of memory, and many bytes in flight; the reduction of a row is of
threads one below the other.
"""

from __future__ import annotations

from typing import Any

from ksearch.families import cuda
from ksearch.families.base import Rule, Space, nearest
from ksearch.families.reduction_cuda import word_of, words_of
from ksearch.families.rowwise_cuda import cached_inputs, means_of, schedule_of
from ksearch.operators.program import Program, Role
from ksearch.types import ANY_ROWS, Config, ConfigValue, Launch, Target, Workload

SPARE_REGISTERS = 32
"""Registers beside the columns and what they come to (tests/families/test_strided.py)."""
_STATIC_BYTES = 48 << 10
"""Shared memory that a block may have without asking for it."""


class StridedCuda:
    name = "strided"
    template = "cuda/strided.cu.j2"

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        limits = Limits(program, workload)
        shape = ("across", "down", "vec")
        return Space(
            axes={
                **block_axes(workload),
                "storage": ("registers", "global"),
                "unroll": (1, 2, 4, 8, 16),
                "min_blocks": (1, 2, 3, 4, 6, 8),
                "reduction": ("online", "two_step") if program.online_kinds else ("two_step",),
                "math": cuda.math_axis(program),
            },
            rules=(
                Rule(shape, lambda config: is_block(config, workload)),
                Rule((*shape, "storage"), limits.is_stored),
                Rule(("down", "storage", "unroll", "reduction"), limits.loops),
                Rule((*shape, "reduction"), limits.has_shared_memory),
                Rule((*shape, "storage", "unroll", "min_blocks", "reduction", "math"), limits.has_room),
            ),
            free={
                "load": cuda.LOADS,
                "store": cuda.STORES[:1] if all(program.per_row) else cuda.STORES,
            },
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        """Some 32 registers of columns a thread, lines of 128 bytes to 2 KB; in two steps, as there is hardly
        anything to wait for between them."""
        return nearest(self.space(program, workload, target), *self._wishes(program, workload, target))

    def _wishes(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        vec = next(v for v in cuda.vectors(workload.stride, workload.itemsize) if workload.stride % v == 0)
        words = max(1, vec * workload.itemsize // 4)
        base: dict[str, ConfigValue] = {
            "across": 32, "down": 8, "vec": vec, "storage": "registers", "unroll": 1, "min_blocks": 2,
            "reduction": "two_step", "math": cuda.math_axis(program)[0],
            "load": "default", "store": "default",
        }  # fmt: skip
        downs = [1, 2, 4, 8, 16, 32]
        fitting = [n for n in downs if workload.cols / n * words <= 48 and n <= workload.cols]
        if all(program.per_row) or not fitting:
            loop = {**base, "storage": "global", "unroll": 8, "min_blocks": 4}
            return [
                loop,
                {**loop, "down": min(16, max(n for n in downs if n <= workload.cols)), "unroll": 4},
                {**loop, "vec": 1, "across": 64},
                {**loop, "reduction": "online" if program.online_kinds else "two_step", "unroll": 16},
            ]
        down = fitting[0]
        across = [n for n in (128, 64, 32, 16, 8, 4) if n * down <= 512]
        return [
            {**base, "down": down, "across": across[0], "min_blocks": 1},
            {**base, "down": min(2 * down, downs[-1]), "across": across[min(1, len(across) - 1)]},
            {**base, "down": down, "across": across[min(1, len(across) - 1)], "vec": max(1, vec // 2)},
            {**base, "down": down, "across": across[0], "storage": "global", "unroll": 8},
        ]

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        wide = int(config["across"]) * int(config["vec"])
        return Launch(
            work_per_row=-(-workload.stride // wide),  # each block of rows side by side is cut into as many
            work_per_block=workload.stride,
            block=int(config["across"]) * int(config["down"]),
            alignment=int(config["vec"]) * workload.itemsize,
            most_rows=ANY_ROWS,
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
            "widths": widths,
            "most_words": max(widths),
            "means_of": means_of,
            "word_of": word_of,
            "cached": cached_inputs(program),
            "launder": must_launder(config, program, workload),
            "per_row": all(program.per_row),
        }


def must_launder(config: Config, program: Program, workload: Workload) -> bool:
    """Whether passes must not share what they compute of an element (see `ks::launder`)."""
    words = -(-workload.cols // int(config["down"])) * max(1, int(config["vec"]) * workload.itemsize // 4)
    is_held = config["storage"] == "registers" and words * len(cached_inputs(program)) > 40
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


class Limits:
    """The constraints on one op's configs, one method each."""

    def __init__(self, program: Program, workload: Workload) -> None:
        self._program, self._workload = program, workload
        self._reads = len(cached_inputs(program))
        self._others = sum(item.role is not Role.FULL for item in program.inputs)
        self._outputs = len(program.outputs)
        self._per_row = all(program.per_row)
        self._has_functions = len(cuda.math_axis(program)) > 1
        self._words = {
            way: max(words_of(stage) for stage in schedule_of({"reduction": way}, program).stages)
            for way in ("online", "two_step")
        }

    def _items(self, config: Config) -> int:
        return -(-self._workload.cols // int(config["down"]))

    def is_stored(self, config: Config) -> bool:
        is_read_once = self._per_row and len(schedule_of({"reduction": "online"}, self._program).stages) == 1
        if config["storage"] == "global":
            return is_read_once or self._items(config) > 1
        return not is_read_once and self._items(config) <= 64

    def loops(self, config: Config) -> bool:
        """An online sum is rounded once more for each round of a loop: log_softmax over 4096 columns was 2.4
        times the error allowed."""
        if config["storage"] == "registers":
            return config["unroll"] == 1
        unroll, items = int(config["unroll"]), self._items(config)
        return unroll <= items and (config["reduction"] == "two_step" or unroll >= 8 or items <= 32)

    def has_shared_memory(self, config: Config) -> bool:
        if config["down"] == 1:
            return True
        floats = int(config["across"]) * int(config["down"]) * int(config["vec"])
        return 4 * floats * self._words[str(config["reduction"])] <= _STATIC_BYTES

    def has_room(self, config: Config) -> bool:
        threads = int(config["across"]) * int(config["down"])
        return threads * int(config["min_blocks"]) <= cuda.THREADS_PER_SM and self.slack(config) >= 0

    def slack(self, config: Config) -> int:
        """Registers that are left of what a thread may have."""
        vec = int(config["vec"])
        count = self._items(config) if config["storage"] == "registers" else int(config["unroll"])
        held = count * max(1, vec * self._workload.itemsize // 4) * self._reads
        partial = 2 * self._words[str(config["reduction"])] * vec
        words = held + partial + vec * (self._outputs - 1) + 8 * self._others
        if self._has_functions and config["math"] == "exact":
            words += 8
        if config["reduction"] == "online" and config["storage"] == "global":  # 16 bytes spilled with 32
            words += 16
        if config["storage"] == "registers" and held > 64:  # 488 bytes with 32, 56 with a row vector and 40
            words += 32 + count * self._others // 2
        if self._reads > 1:  # 36 bytes spilled with 32
            words += 32
        threads = int(config["across"]) * int(config["down"])
        return cuda.register_cap(threads, int(config["min_blocks"])) - words - SPARE_REGISTERS
