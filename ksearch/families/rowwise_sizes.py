"""How much of a row, and of row vectors, a thread and a block of the CUDA rowwise family hold."""

from __future__ import annotations

from ksearch.types import Config

CLUSTERS = (1, 2, 4, 6, 8, 12, 16)
"""Any size works; 8 is the largest portable one and 16 must be asked for."""

MOST = ("most", "favored")
"""Where as many row vectors as fit stay in shared memory for all rows."""


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


def kept_items(
    config: Config, cols: int, itemsize: int, reads: int, weights: int, words: int, smem_bytes: int
) -> int:
    """Items of which all row vectors fit in shared memory beside what is fetched ahead; see MOST."""
    room = (smem_bytes + 1024) // int(config["min_blocks"]) - own_bytes(config, words)
    room -= reads * buffer_bytes(config, cols, itemsize) * buffers(config)
    item_bytes = int(config["threads"]) * int(config["vec"]) * itemsize * weights
    return max(0, min(items(config, cols), room // item_bytes))


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
