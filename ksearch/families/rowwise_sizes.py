"""How much of a row, and of row vectors, a thread and a block of the CUDA rowwise family hold."""

from __future__ import annotations

from dataclasses import dataclass

from ksearch.families.cuda import register_cap
from ksearch.types import Config

CLUSTERS = (1, 2, 4, 6, 8, 12, 16)
"""Any size works; 8 is the largest portable one and 16 must be asked for."""

MOST = ("most", "favored")
"""Where as many row vectors as fit stay in shared memory for all rows."""

RING_REGISTERS = 62
"""Of a thread, beside its part of a row, where row vectors come again for every row: 16 bytes spilled
with 60, 88 with 48."""

RING_BYTES = 32768
"""On their way to a block at any time."""


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
    return ahead_items(config, cols) * int(config["threads"]) * int(config["vec"]) * itemsize


def weight_bytes(config: Config, cols: int, itemsize: int) -> int:
    """Shared memory of one block's part of a row vector."""
    return items(config, cols) * int(config["threads"]) * int(config["vec"]) * itemsize


def ahead_items(config: Config, cols: int) -> int:
    """Items of a row that are in shared memory: half of it where row vectors are favored."""
    count = items(config, cols)
    return -(-count // 2) if config["weights"] == "favored" else count


@dataclass(frozen=True, slots=True)
class Places:
    """Where the row vectors are, by items of a row, if as many as fit stay on the chip for all rows."""

    registers: int
    shared: int
    ring: int
    """Slots in shared memory, of those that come again for every row."""
    far: int
    """How many do, by way of the ring; without it any others are read where they are needed."""


def places(
    config: Config, cols: int, itemsize: int, reads: int, weights: int, words: int, smem_bytes: int
) -> Places:
    """Those that fit beside what is fetched ahead; see MOST."""
    room = (smem_bytes + 1024) // int(config["min_blocks"]) - own_bytes(config, words)
    room -= reads * buffer_bytes(config, cols, itemsize) * buffers(config)
    count, item_bytes = items(config, cols), int(config["threads"]) * int(config["vec"]) * itemsize * weights
    fit = max(0, min(count, room // item_bytes))
    if config["order"] != "lagged":
        return Places(0, fit, 0, 0)
    words_each = max(1, int(config["vec"]) * itemsize // 4)
    spare = register_cap(int(config["threads"]), int(config["min_blocks"])) - count * words_each * reads
    beside = lag_registers(config, words_each)
    held = max(0, spare - beside) // (words_each * weights)
    if fit > 0 and held + fit >= count:
        return Places(count - fit, fit, 0, 0)
    held = max(0, spare - max(beside, RING_REGISTERS)) // (words_each * weights)
    missing = count - held - fit
    if missing <= 0 or fit == 0:
        return Places(0, 0, 0, count)
    ring = min(fit, max(2, min(missing, RING_BYTES // item_bytes)))
    far = -(-(count - held - fit + ring) // ring) * ring  # an item keeps its slot of the ring from row to row
    if far > count:
        return Places(0, 0, 0, count)
    shared = min(fit - ring, count - far)
    return Places(count - far - shared, shared, ring, far)


def lag_registers(config: Config, words: int) -> int:
    """Beside a thread's part of a row that is stored a turn late; `words` are of a vector."""
    unroll, is_online = int(config["unroll"]), config["reduction"] == "online"
    return 38 + 8 * is_online + words * unroll + 24 * (is_online and unroll == 8)  # 16 bytes without the 24


def own_bytes(config: Config, words: int) -> int:
    """What a block has beside rows and weights: two copies of `words` of each warp's partial results, tickets
    and barriers; 1 KB of every block is reserved."""
    warps = int(config["rows"]) * int(config["cluster"]) * -(-int(config["threads"]) // 32)
    return 8 * words * warps + 256 + 1024


def buffers(config: Config) -> int:
    """Rows in shared memory at once: those fetched ahead, and the one at work if it stays there."""
    return int(config["prefetch"]) + (config["storage"] == "shared")


def is_bulk(config: Config) -> bool:
    """Whether rows come by bulk copies into shared memory."""
    return bool(config["prefetch"]) or config["storage"] == "shared"
