"""What a config of the CUDA rowwise family needs of a multiprocessor, and so which configs are valid."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ksearch.families.base import Rule
from ksearch.families.cuda import CLUSTER_ARCH, THREADS_PER_SM, register_cap
from ksearch.types import Config, Target, Workload

SPARE_REGISTERS = 32
"""Registers that a thread needs beside its part of the row, or beside the vectors of one round of a loop;
`registers` has the exceptions. Compiled over every region of the space, no config that keeps to
this spills (tests/families/test_cuda_compile.py)."""


def items(config: Config, cols: int) -> int:
    """Vectors of a row that one thread holds."""
    vec = int(config["vec"])
    count = -(-cols // vec) + (cols % vec != 0)
    return -(-count // (int(config["threads"]) * team(config)))


def team(config: Config) -> int:
    """Blocks that share a row."""
    return int(config["cluster"]) * int(config["split"])


def buffer_bytes(config: Config, cols: int, itemsize: int) -> int:
    """Shared memory of one input's rows of one block."""
    if team(config) == 1:
        return int(config["rows"]) * cols * itemsize
    return weight_bytes(config, cols, itemsize)


def weight_bytes(config: Config, cols: int, itemsize: int) -> int:
    """Shared memory of one block's part of a row vector."""
    return items(config, cols) * int(config["threads"]) * int(config["vec"]) * itemsize


def buffers(config: Config) -> int:
    """Rows in shared memory at once: those fetched ahead, and the one at work if it stays there."""
    return int(config["prefetch"]) + (config["storage"] == "shared")


def is_bulk(config: Config) -> bool:
    """Whether rows come by bulk copies into shared memory."""
    return bool(config["prefetch"]) or config["storage"] == "shared"


@dataclass(frozen=True, slots=True)
class Limits:
    """The constraints on one op's configs, one method each."""

    workload: Workload
    target: Target
    capability: int
    reads: int
    """FULL inputs."""
    weights: int
    """ROW inputs."""
    outputs: int
    """Values that are stored of each element."""
    words: dict[str, int]
    """Of a warp's partial results, by reduction."""
    window: int = 0
    """ROW inputs that an online reduction reads, and so holds beside the row: 84 bytes spilled (logsumexp of
    a sum with a bias, 16 vectors a thread)."""

    def rules(self) -> tuple[Rule, ...]:
        shape = ("threads", "rows", "cluster", "split")
        kept = (*shape, "vec", "storage", "prefetch")
        return (
            Rule(("threads", "rows"), self._is_block),
            Rule(shape, self._is_team),
            Rule((*shape, "vec"), self._is_filled),
            Rule(kept, self._is_stored),
            Rule((*kept, "min_blocks"), self._has_room),
            Rule((*kept, "unroll"), self._loops),
            Rule(("prefetch", "order"), self._is_ordered),
            Rule(("prefetch", "storage", "split", "vec", "weights"), self._can_hold_weights),
            Rule(("storage", "reduction", "keep"), self._can_keep),
            Rule((*kept, "min_blocks", "weights", "reduction"), self._has_shared_memory),
            Rule(
                (*kept, "min_blocks", "weights", "reduction", "unroll", "keep", "order", "math"),
                self._has_registers,
            ),
        )

    def _is_block(self, config: Config) -> bool:
        threads, rows = int(config["threads"]), int(config["rows"])
        is_whole = threads * rows % 32 == 0 and threads * rows <= 1024
        return is_whole and (rows == 1 or threads <= 256) and self.workload.cols < 2**31  # 32-bit columns

    def _is_team(self, config: Config) -> bool:
        if team(config) == 1:
            return True
        return (
            config["rows"] == 1
            and int(config["threads"]) >= 128
            and 1 in (config["cluster"], config["split"])
        )

    def _is_filled(self, config: Config) -> bool:
        """Threads without a vector do no work: nothing under half of a round, but for the smallest rows."""
        cols, threads, held = self.workload.cols, int(config["threads"]), items(config, self.workload.cols)
        stride = threads * team(config) * int(config["vec"])
        if (held - 1) * stride >= cols or (held == 1 and stride >= 2 * cols and threads > 4):
            return False
        return held <= 64 or threads >= 512  # a loop that long wants more threads

    def _is_stored(self, config: Config) -> bool:
        if not is_bulk(config):
            return config["storage"] != "global" or items(config, self.workload.cols) > 1
        is_vector = int(config["vec"]) * self.workload.itemsize == 16
        return is_vector and config["storage"] != "global" and config["split"] == 1 and buffers(config) <= 2

    def _has_room(self, config: Config) -> bool:
        min_blocks, split = int(config["min_blocks"]), int(config["split"])
        fits = int(config["threads"]) * int(config["rows"]) * min_blocks <= THREADS_PER_SM
        return fits and (split == 1 or split <= min_blocks * self.target.units)

    def _loops(self, config: Config) -> bool:
        unroll = int(config["unroll"])
        return unroll == 1 or (
            config["storage"] != "registers" and unroll <= items(config, self.workload.cols)
        )

    def _is_ordered(self, config: Config) -> bool:
        """Tickets are for a grid that fetches ahead, and counted in 32 bits."""
        return config["order"] == "static" or (config["prefetch"] != 0 and self.workload.rows < 2**31)

    def _can_hold_weights(self, config: Config) -> bool:
        """From before the row is reduced: in whole vectors, and beside a row that waits on the chip."""
        if config["weights"] == "global":
            return True
        if config["split"] != 1 or self.workload.cols % int(config["vec"]):
            return False
        vector_bytes = int(config["vec"]) * self.workload.itemsize
        if config["weights"] == "registers":
            return config["prefetch"] == 0 and config["storage"] == "registers" and vector_bytes >= 8
        return config["prefetch"] != 0 or (config["storage"] != "global" and vector_bytes == 16)

    def _can_keep(self, config: Config) -> bool:
        """Floats of halves, or exponentials that an online sum has taken."""
        if not config["keep"]:
            return True
        is_useful = self.workload.itemsize == 2 or config["reduction"] == "online"
        return is_useful and config["storage"] == "registers"

    def _has_shared_memory(self, config: Config) -> bool:
        if not is_bulk(config) and config["weights"] != "shared":
            return True
        cols, itemsize = self.workload.cols, self.workload.itemsize
        needed = self.reads * buffer_bytes(config, cols, itemsize) * buffers(config)
        if config["weights"] == "shared":
            needed += self.weights * weight_bytes(config, cols, itemsize)
        # Two copies of the partial results, tickets and barriers; 1 KB of every block is reserved.
        warps = int(config["rows"]) * int(config["cluster"]) * -(-int(config["threads"]) // 32)
        needed += 8 * self.words[str(config["reduction"])] * warps + 256 + 1024
        return needed * int(config["min_blocks"]) <= self.target.smem_bytes + 1024

    def _has_registers(self, config: Config) -> bool:
        cap = register_cap(int(config["threads"]) * int(config["rows"]), int(config["min_blocks"]))
        stored = (self.outputs - 1) * int(config["vec"])  # floats that wait for their store
        workload = self.workload
        reads = self.reads + (self.window if config["reduction"] == "online" else 0)
        needed = registers(config, workload.cols, workload.itemsize, reads, self.weights, self.capability)
        apart = 24 if workload.segment else 0  # an address each: 32 bytes spilled without
        return needed + stored + apart <= cap


def registers(config: Config, cols: int, itemsize: int, reads: int, weights: int, capability: int) -> float:
    """How many a thread may need, infinite where no number was enough: a kernel that spills is slow.

    The exceptions are what NVRTC 13.0 showed: bytes spilled, with that many registers beside the row.
    """
    vec, has_weights = int(config["vec"]), weights > 0
    is_narrow = vec * itemsize < 16
    if config["storage"] != "registers":  # the floats of an unrolled round
        unroll = int(config["unroll"])
        spare = SPARE_REGISTERS + (8 if cols % vec else 0)  # masked ends: 16 bytes with 32
        spare += 16 if is_narrow and unroll == 8 else 0  # an address each: 128 bytes with 32
        return unroll * vec * reads + spare
    held = items(config, cols)
    row = held * (vec if config["keep"] else max(1, vec * itemsize // 4)) * reads
    if is_narrow and held >= 24:  # 8 bytes with 51 and 29 vectors; and nobody wants that many narrow loads
        return math.inf
    if config["weights"] == "registers":
        row += held * max(1, vec * itemsize // 4) * weights
        if row > 96:  # 328 bytes with 96 and 192 words
            return math.inf
    spare = SPARE_REGISTERS
    is_exact_online = config["math"] == "exact" and config["reduction"] == "online"  # expf twice
    if is_narrow or has_weights or (itemsize < 4 and (is_exact_online or held >= 32)):
        spare += 16 if held >= 32 else 8  # 4 to 150 bytes with up to 37, 8 with 40 from 32 vectors on
    if config["keep"] and is_exact_online:
        spare += 16  # 40 bytes with 40
    if int(config["split"]) > 1:
        spare += 8  # 8 bytes with 32
    if reads > 1 and row > 96:
        spare += 32  # 312 bytes with 40 and 128 words of two inputs
    if has_weights and row > 64:
        spare += 32  # 248 bytes with 40 and 88 words
    if cols % vec:  # masked ends
        # 588 bytes with 65 and 63 vectors, 520 with 55 and 200 words; on sm_80 24 with 96 and 32 vectors
        if held > (24 if capability >= CLUSTER_ARCH else 12) or row > 96:
            return math.inf
        # 20 bytes with 48; on sm_80 8 with 64
        spare = max(spare, SPARE_REGISTERS + (24 if capability >= CLUSTER_ARCH else 40))
    if int(config["prefetch"]) == 0:
        if config["weights"] == "shared":  # an address each: 40 bytes with 40, 36 with 48 and 32 words
            spare += 24 if row >= 32 else 8
        if config["weights"] == "registers":  # 28 bytes with 44
            spare += 8
        return row + spare
    return row + _persistent_spare(config, row, spare, has_weights, itemsize < 4)


def _persistent_spare(config: Config, row: int, spare: int, has_weights: bool, is_half: bool) -> float:
    """Registers beside the row where a grid is persistent and so keeps more state."""
    online = config["reduction"] == "online"
    if config["order"] == "ticket":  # 32 bytes with 32
        spare += (0 if online else 8) + (8 if config["prefetch"] == 2 else 0)
    if config["keep"] and row > 64:
        spare += 24  # 184 bytes with 32 and 96 words
    if config["cluster"] == 1:
        return spare
    if has_weights and config["weights"] == "shared":
        # 64 words spilled 8 bytes at 168 registers in two steps, none at 128 in one; 96 192 at 168
        return math.inf if row > 64 else max(spare, 48 if row <= 48 else 64 if online else 144)
    if has_weights:  # 64 words spilled 52 bytes with 104, 44 online 100 with 80
        return math.inf if row > 48 else spare + (56 if online else 40)
    if row > 160:  # 192 words spilled even at 255 registers
        return math.inf
    # 128 words spilled 92 bytes with 40; 88 words of bfloat16 76 with 40
    return spare + (8 if config["math"] == "exact" or row >= 128 else 0) + (16 if is_half and row > 64 else 0)
