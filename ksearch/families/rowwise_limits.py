"""What a config of the CUDA rowwise family needs of a multiprocessor, and so which configs are valid."""

from __future__ import annotations

from dataclasses import dataclass, field

from ksearch.families.base import Rule
from ksearch.families.cuda import THREADS_PER_SM, register_cap
from ksearch.families.rowwise_registers import registers
from ksearch.families.rowwise_sizes import (
    MOST,
    RING_REGISTERS,
    Places,
    buffer_bytes,
    buffers,
    is_bulk,
    items,
    lag_registers,
    own_bytes,
    places,
    team,
    weight_bytes,
)
from ksearch.types import Config, Target, Workload


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
    channels: bool = False
    """Whether there are values of channels."""
    stages: dict[str, int] = field(default_factory=dict)
    """Reductions one after the other, by reduction."""
    per_row: bool = False
    """Whether all results are one value a row."""
    reduces_rows: bool = False
    """Whether a reduction reads ROW inputs."""
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
            Rule((*kept, "unroll", "order"), self._loops),
            Rule(("threads", "prefetch", "split", "order"), self._is_ordered),
            Rule(("split", "reduction", "keep", "weights", "order"), self._can_lag),
            Rule(("prefetch", "storage", "split", "vec", "weights"), self._can_hold_weights),
            Rule(("storage", "reduction", "keep"), self._can_keep),
            Rule((*kept, "min_blocks", "weights", "reduction", "order", "unroll"), self._has_shared_memory),
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
        if config["split"] != 1 and (config["storage"] != "registers" or config["prefetch"] != 1):
            return False  # a row that the device shares fills much of its memory: one more is all that fits
        return is_vector and config["storage"] != "global" and buffers(config) <= 2

    def _has_room(self, config: Config) -> bool:
        min_blocks, split = int(config["min_blocks"]), int(config["split"])
        fits = int(config["threads"]) * int(config["rows"]) * min_blocks <= THREADS_PER_SM
        return fits and (split == 1 or split <= min_blocks * self.target.units)

    def _loops(self, config: Config) -> bool:
        unroll = int(config["unroll"])
        return unroll == 1 or (
            (config["storage"] != "registers" or config["order"] == "lagged")
            and unroll <= items(config, self.workload.cols)
        )

    def _is_ordered(self, config: Config) -> bool:
        """Tickets are for a grid that fetches ahead, and counted in 32 bits."""
        if config["order"] == "static":
            return True
        if config["order"] == "paced":  # by a warp that does not itself ask for what other blocks have found
            asking = -(-int(config["split"]) // 32)
            return config["prefetch"] == 1 and config["split"] != 1 and int(config["threads"]) > 32 * asking
        if config["order"] == "lagged":
            return config["prefetch"] == 1 and config["split"] != 1
        return config["prefetch"] != 0 and config["split"] == 1 and self.workload.rows < 2**31

    def _can_lag(self, config: Config) -> bool:
        """A row stored a turn late has time for one exchange, and its elements wait as they came."""
        if config["order"] != "lagged":
            return True
        is_one = self.stages.get(str(config["reduction"])) == 1 and not self.per_row
        has_place = config["weights"] == "global" or (config["weights"] == "most" and not self.reduces_rows)
        return is_one and not config["keep"] and has_place

    def _can_hold_weights(self, config: Config) -> bool:
        """From before the row is reduced: in whole vectors, and beside a row that waits on the chip."""
        if config["weights"] == "global":
            return True
        vector_bytes = int(config["vec"]) * self.workload.itemsize
        if config["weights"] == "favored" and config["prefetch"] == 0:
            return False  # the same as most
        if config["weights"] in MOST:
            has_room = config["split"] != 1 and config["storage"] == "registers" and vector_bytes == 16
            return has_room and self.workload.cols % int(config["vec"]) == 0
        if config["split"] != 1 or self.workload.cols % int(config["vec"]):
            return False
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
        if not is_bulk(config) and config["weights"] not in ("shared", *MOST):
            return True
        cols, itemsize = self.workload.cols, self.workload.itemsize
        words = self.words[str(config["reduction"])]
        if config["weights"] in MOST:
            found = self._places(config)
            if config["weights"] == "favored" and self._places({**config, "weights": "most"}).shared == items(
                config, cols
            ):
                return False  # nothing is left to favor
            return found.shared > 0 and (found.far == 0 or found.ring > 0)
        needed = self.reads * buffer_bytes(config, cols, itemsize) * buffers(config)
        if config["weights"] == "shared":
            needed += self.weights * weight_bytes(config, cols, itemsize)
        needed += own_bytes(config, words)
        return needed * int(config["min_blocks"]) <= self.target.smem_bytes + 1024

    def _places(self, config: Config) -> Places:
        words = self.words[str(config["reduction"])]
        workload, smem_bytes = self.workload, self.target.smem_bytes
        return places(config, workload.cols, workload.itemsize, self.reads, self.weights, words, smem_bytes)

    def _has_registers(self, config: Config) -> bool:
        cap = register_cap(int(config["threads"]) * int(config["rows"]), int(config["min_blocks"]))
        stored = (self.outputs - 1) * int(config["vec"])  # floats that wait for their store
        workload = self.workload
        reads = self.reads + (self.window if config["reduction"] == "online" else 0)
        needed = registers(config, workload.cols, workload.itemsize, reads, self.weights, self.capability)
        if config["order"] == "lagged" and config["weights"] == "most":
            words = int(config["vec"]) * workload.itemsize // 4
            found = self._places(config)
            if found.far and int(config["unroll"]) > 4:
                return False  # 60 bytes beside 128 words of a row, with 127 registers to spare
            needed += found.registers * words * self.weights
            if found.registers or found.far:
                row = items(config, workload.cols) * words * self.reads
                beside = max(lag_registers(config, words), RING_REGISTERS if found.far else 0)
                needed = max(needed, row + found.registers * words * self.weights + beside)
        apart = 24 if workload.segment else 0  # an address each: 32 bytes spilled without
        if self.window and int(config["split"]) > 1:
            apart += 48  # the reduction reads row vectors too: 68 bytes with 11, 40 with 31
        if self.channels and (config["cluster"] != 1 or (config["split"] != 1 and config["min_blocks"] != 1)):
            apart += 16  # 20 bytes with 12; 8 with 8
        return needed + stored + apart <= cap
