"""What a config for rows side by side needs of a multiprocessor, and so which configs are valid."""

from __future__ import annotations

from ksearch.families import cuda
from ksearch.families.reduction_cuda import words_of
from ksearch.families.rowwise_cuda import cached_inputs, schedule_of
from ksearch.operators.program import Program, Role
from ksearch.types import Config, Target, Workload

SPARE_REGISTERS = 32
"""Registers beside the columns and what they come to (tests/families/test_strided.py)."""
HALVED = ("both", "refilled")
"""Where columns of a thread wait in shared memory, too."""

_STATIC_BYTES = 48 << 10
"""Shared memory that a block may have without asking for it."""

_RESERVED_BYTES = 1 << 10
"""Shared memory of every block that it cannot use."""

_IN_TURN = 16
"""Parts for each block that runs at once; see `reduction_cuda`."""

_FOUND_SHARE = 64
"""Bytes that are read for each of those that parts leave in the scratch, at least."""


def items(config: Config, workload: Workload) -> int:
    """Columns of a thread."""
    return -(-workload.cols // (int(config["down"]) * int(config["cluster"]) * int(config["parts"])))


def held_items(config: Config, workload: Workload) -> int:
    """Columns of a thread that wait in registers."""
    count = items(config, workload)
    if config["storage"] == "refilled":
        # Half of them spilled 8 to 24 bytes, and so did 5 of 16 in float32 (4 bytes, and 30 us slower), and 6
        # of 16 of narrower vectors (8 to 24 bytes).
        is_broad = workload.itemsize == 4 and config["vec"] == 4
        return count * (6 if is_broad else 5) // 16
    return {"registers": count, "both": count // 2, "global": 0}[str(config["storage"])]


def waiting_bytes(config: Config, workload: Workload, reads: int) -> int:
    """Shared memory of the columns of a block that wait there."""
    if config["storage"] not in HALVED:
        return 0
    waiting = items(config, workload) - held_items(config, workload)
    threads = int(config["across"]) * int(config["down"])
    return reads * waiting * threads * int(config["vec"]) * workload.itemsize


def wide(config: Config) -> int:
    """Rows of a block."""
    return int(config["across"]) * int(config["vec"])


class Limits:
    """The constraints on one op's configs, one method each."""

    def __init__(self, program: Program, workload: Workload, target: Target) -> None:
        self._program, self._workload, self._units = program, workload, target.units
        self._smem_bytes = target.smem_bytes
        self._reads = len(cached_inputs(program))
        self._others = sum(item.role is not Role.FULL for item in program.inputs)
        self._outputs = len(program.outputs)
        self._per_row = all(program.per_row)
        self._has_functions = len(cuda.math_axis(program)) > 1
        stages = {way: schedule_of({"reduction": way}, program).stages for way in ("online", "two_step")}
        self._words = {way: max(map(words_of, found)) for way, found in stages.items()}
        self._stages = {way: len(found) for way, found in stages.items()}

    @property
    def is_read_once(self) -> bool:
        """Whether there is a way to be done after one pass over the columns, so that nothing need wait."""
        return self._per_row and self._stages["online"] == 1

    def _items(self, config: Config) -> int:
        return items(config, self._workload)

    def _is_even(self, config: Config) -> bool:
        """Whether all threads have as many columns, so that none is masked."""
        return self._workload.cols % (int(config["down"]) * int(config["cluster"])) == 0

    def found_bytes(self, config: Config) -> int:
        """Of what all parts come to."""
        words = self._words[str(config["reduction"])] * wide(config)
        return 4 * words * self.tiles(config) * int(config["parts"])

    def tiles(self, config: Config) -> int:
        """Blocks of rows side by side."""
        stride = self._workload.stride
        return self._workload.rows // stride * -(-stride // wide(config))

    def is_shared_out(self, config: Config) -> bool:
        """Among blocks: rows that are long for one block, in lines of 128 bytes or more where there are so
        many."""
        if config["cluster"] == config["parts"] == 1:
            return True
        is_long = self._items(config) >= 8 and self._workload.cols >= 64 * int(config["down"])
        has_all = wide(config) >= self._workload.stride
        is_wide = has_all or wide(config) * self._workload.itemsize >= 128
        threads = int(config["across"]) * int(config["down"])
        return is_long and is_wide and (threads >= 128 or has_all)

    def is_stored(self, config: Config) -> bool:
        if config["storage"] in HALVED:
            return self._is_stored_in_both(config)
        if config["storage"] == "global":
            return self.is_read_once or self._items(config) > 1
        return not self.is_read_once and self._items(config) <= 64

    def _is_stored_in_both(self, config: Config) -> bool:
        """What is much for registers, in whole sectors of memory."""
        bytes_each = int(config["vec"]) * self._workload.itemsize
        held = self._items(config) * bytes_each // 4 * self._reads
        is_much = 32 <= held <= 144 and 8 <= self._items(config) <= 48  # of 64, 56 bytes spilled
        is_wide = wide(config) * self._workload.itemsize >= 32 and bytes_each >= 4
        if self.is_read_once or not is_much or not is_wide:
            return False
        if config["storage"] == "both":
            return True
        # Blocks that are ahead by a turn would take the only exchange of the others' turn for that of theirs.
        is_apart = config["cluster"] == 1 or self._stages["two_step"] > 1
        turns = self.tiles(config) * int(config["cluster"]) // self._units
        # Blocks of 128 threads spilled 4 to 8 bytes of vectors of 16, with 12 and with 52 registers to spare.
        is_large = bytes_each < 16 or int(config["across"]) * int(config["down"]) >= 256
        return is_apart and is_large and turns >= 4 and int(config["down"]) > 1 and not self._per_row

    def has_parts(self, config: Config) -> bool:
        """Where blocks are too few, and what parts leave is little beside what they read."""
        parts, workload = int(config["parts"]), self._workload
        if parts == 1:
            return True
        reduction = str(config["reduction"])
        if self._stages[reduction] > 1 or workload.cols >= 2**30:
            return False
        running, tiles = int(config["min_blocks"]) * self._units, self.tiles(config)
        found_bytes = 4 * self._words[reduction] * parts  # of a row
        is_worth_it = workload.cols * workload.itemsize >= _FOUND_SHARE * found_bytes
        return is_worth_it and tiles <= 8 * running and tiles * parts <= _IN_TURN * running

    def loops(self, config: Config) -> bool:
        """An online sum is rounded once more for each round of a loop: log_softmax over 4096 columns was 2.4
        times the error allowed."""
        if config["storage"] in HALVED:
            return config["unroll"] == 1 and config["reduction"] == "two_step"
        if config["storage"] == "registers":
            return config["unroll"] == 1
        unroll, items = int(config["unroll"]), self._items(config)
        return unroll <= items and (config["reduction"] == "two_step" or unroll >= 8 or items <= 32)

    def has_shared_memory(self, config: Config) -> bool:
        if config["down"] == config["cluster"] == 1:
            return True
        return self._static_bytes(config) <= _STATIC_BYTES

    def _static_bytes(self, config: Config) -> int:
        """Shared memory of what threads and blocks have found."""
        reduction = str(config["reduction"])
        cluster, down = int(config["cluster"]), int(config["down"])
        groups = down + (cluster * self._stages[reduction] if cluster > 1 else 0)
        barriers = 0 if cluster == config["parts"] == 1 else 64
        return 4 * wide(config) * groups * self._words[reduction] + barriers

    def has_room(self, config: Config) -> bool:
        threads, blocks = int(config["across"]) * int(config["down"]), int(config["min_blocks"])
        if config["storage"] in HALVED:
            held = waiting_bytes(config, self._workload, self._reads) + self._static_bytes(config)
            if (held + _RESERVED_BYTES) * blocks > self._smem_bytes + _RESERVED_BYTES:
                return False
        return threads * blocks <= cuda.THREADS_PER_SM and self.slack(config) >= 0

    def slack(self, config: Config) -> int:
        """Registers that are left of what a thread may have."""
        vec = int(config["vec"])
        count = held_items(config, self._workload) or int(config["unroll"])
        held = count * max(1, vec * self._workload.itemsize // 4) * self._reads
        partial = 2 * self._words[str(config["reduction"])] * vec
        words = held + partial + vec * (self._outputs - 1) + 8 * self._others
        is_half, is_online = self._workload.itemsize == 2, config["reduction"] == "online"
        if self._has_functions and config["math"] == "exact":
            words += 8
            if is_half:  # 16 bytes spilled; online, 16 with 40
                words += 24 if is_online else 8
        if int(config["cluster"]) > 1:  # 16 bytes spilled with 43; in a loop 52 with 44
            words += 12 + (int(config["unroll"]) if config["storage"] == "global" else 0)
        if is_half and config["storage"] == "registers" and held >= 64:  # 4 to 20 bytes spilled with 60
            words += 28 if config["math"] == "fast" else 32  # 4 to 12 with 20
            is_much = held > 96 or count > 32 or config["math"] == "exact"
            if self._has_functions and config["cluster"] == 1 and is_much:
                return -1  # 4 to 476 bytes, whatever the number
        if config["storage"] in HALVED and is_half and held >= 48:  # 76 to 136 bytes spilled
            words += 20 if config["math"] == "fast" else 32
        if config["storage"] == "both" and is_half and vec == 4 and config["math"] == "fast":
            words -= 20  # none spilled with 24 fewer
        if config["storage"] == "refilled":  # 16 to 24 bytes spilled with masks; without, none with 8 fewer
            words += 0 if vec * self._workload.itemsize == 16 else -8 if self._is_even(config) else 8
        if is_online and config["storage"] == "global":  # 16 bytes spilled with 32
            words += 16
        if config["storage"] == "registers" and held > 64:  # 488 bytes with 32, 56 with a row vector and 40
            words += 32 + count * self._others // 2
        if self._reads > 1:  # 36 bytes spilled with 32
            words += 32
        threads = int(config["across"]) * int(config["down"])
        return cuda.register_cap(threads, int(config["min_blocks"])) - words - SPARE_REGISTERS
