"""How many registers a thread of the CUDA rowwise family may need."""

from __future__ import annotations

import math

from ksearch.families.cuda import CLUSTER_ARCH
from ksearch.families.rowwise_sizes import items
from ksearch.types import Config

SPARE_REGISTERS = 32
"""Registers that a thread needs beside its part of the row, or beside the vectors of one round of a loop;
`registers` has the exceptions. Compiled over every region of the space, no config that keeps to
this spills (tests/families/test_cuda_compile.py)."""

LAG_REGISTERS = 28
"""The same where rows are stored a turn late; see `registers`."""


def registers(config: Config, cols: int, itemsize: int, reads: int, weights: int, capability: int) -> float:
    """How many a thread may need, infinite where no number was enough: a kernel that spills is slow.

    The exceptions are what NVRTC 13.0 showed: bytes spilled, with that many registers beside the row.
    """
    vec, has_weights = int(config["vec"]), weights > 0
    is_narrow = vec * itemsize < 16
    if config["order"] == "lagged":  # and the vectors of the next row that are summed up together
        words = max(1, vec * itemsize // 4) * reads
        row, spare = items(config, cols) * words, LAG_REGISTERS
        if config["reduction"] == "online":  # 4 to 208 bytes with 28
            spare += 8
            if row > 144:  # a layer norm's: 12 to 52 bytes with 40
                return math.inf
            if has_weights and itemsize == 4:  # 24 bytes with 68 and 80 words
                spare += 24
        if config["weights"] == "most" and (int(config["min_blocks"]) > 1 or int(config["unroll"]) > 4):
            return math.inf  # fewer fit in shared memory, more are under way: 20 to 36 bytes
        if has_weights and itemsize < 4:  # 72 bytes with 60 and 64 words, 48 with 72 and 96
            spare += 40 if row <= 64 else 72
        elif has_weights and config["weights"] == "global":  # 40 bytes with 28 and 128 words
            spare += 16
        elif itemsize < 4:  # 4 bytes with 36
            spare += 8
        return row + int(config["unroll"]) * words + spare
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
        # 8 bytes with 32; 88 with 40 and 128 words, 36 with a prefetch
        spare += 16 if row > 96 or int(config["prefetch"]) else 8
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
    if config["keep"] and row > 64:  # 184 bytes with 32 and 96 words; where rows are split 16 with 88 and 80
        spare += 24 if config["split"] == 1 else 32
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
