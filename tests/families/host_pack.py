"""The steps that split operands beforehand, `prepare` and `pack`, run on the host: their text, one thread.

What a thread does for its share of a row, this one does for all of it, and there is nobody to wait for.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch
from torch import Tensor

from ksearch import backends
from ksearch.families.linear_tiles import SCHEMES, Tiles
from ksearch.types import Config, Source, digest
from tests.families.linear_cases import Case

_HEAD = """
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#define KS_FN static inline
#define KS_NAN NAN
#define __global__
#define __restrict__
#define __shared__ static
#define __launch_bounds__(n)
using std::max;
using std::min;
using u32 = uint32_t;
using E = float;
struct uint4 { u32 x, y, z, w; };
struct float4 { float x, y, z, w; };
struct Place { long long x; };
static Place threadIdx = {0}, blockIdx = {0}, gridDim = {0};
template <class To, class From> static To as(From a) {
    To b;
    static_assert(sizeof a == sizeof b);
    memcpy(&b, &a, sizeof b);
    return b;
}
static float __int_as_float(int a) { return as<float>(a); }
static float __uint_as_float(u32 a) { return as<float>(a); }
static int __float_as_int(float a) { return as<int>(a); }
static u32 __float_as_uint(float a) { return as<u32>(a); }
template <class T> static T __reduce_max_sync(u32, T a) { return a; }
static int __reduce_add_sync(u32, int a) { return a; }
static void atomicAdd(int* to, int a) { *to += a; }
static void __syncthreads() {}
namespace ks {
static float abs(float a) { return fabsf(a); }
struct Float16 {
    static u32 narrow(float a) { return as<uint16_t>((_Float16)a); }
    static u32 pack(float a, float b) { return narrow(a) | narrow(b) << 16; }
    static float get(u32 pair, int k) { return (float)as<_Float16>(uint16_t(pair >> 16 * k)); }
};
struct BFloat16 {
    static u32 narrow(float a) {
        const u32 bits = as<u32>(a);
        return a != a ? 0x7fff : std::isinf(a) ? bits >> 16 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
    static u32 pack(float a, float b) { return narrow(a) | narrow(b) << 16; }
    static float get(u32 pair, int k) { return as<float>(pair >> 16 * k << 16); }
};
}
"""
_RUN = """
using Bytes = unsigned char*;
extern "C" void split_both(const float* x, const float* weight, Bytes scratch, Bytes packed) {
    for (blockIdx.x = 0; blockIdx.x < MOST_ROWS; ++blockIdx.x) prepare(ARGUMENTS);
    gridDim.x = COLS;
    for (blockIdx.x = 0; blockIdx.x < COLS; ++blockIdx.x) pack(weight, packed, COLS);
}
"""
_HOST_ROUND = "word = std::isfinite(a) ? (as<u32>(a) + 0x1000) & ~0x1fffu : as<u32>(a);"
_ROUND = 'asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(a));'


class HostPack:
    """`prepare` and `pack` of one config of a prepacked case."""

    def __init__(self, case: Case, config: Config, folder: Path) -> None:
        self.case, self.scheme = case, SCHEMES[str(config["scheme"])]
        self.tiles = Tiles.of(config, case.program, case.workload)
        text = case.source(config).text
        constants = re.findall(
            r"^constexpr (?:int|long long) (?:COLS|INNER|TILE_M|FEATURE_TILES|BLOCK_K|TERMS|PADDED|MOST_ROWS|"
            r"PACKED_ROWS|OFFSET_SCALES|OFFSET_W_SCALES) = .*$",
            text,
            re.MULTILINE,
        )
        steps = text.partition("// ---- splitting")[2].partition("// ---- products")[0]
        steps = steps.partition("\n")[2].replace("PREPARE / 32", "1")
        steps = re.sub(r"constexpr int PREPARE = \d+;", "constexpr int PREPARE = 1;", steps)
        steps = steps.replace(_ROUND, _HOST_ROUND)
        count = len(case.program.inputs) + len(case.program.outputs)
        arguments = ", ".join(["x", *["nullptr"] * (count - 1), "MOST_ROWS", "scratch", "packed"])
        parts = [_HEAD, *constants, steps, _RUN.replace("ARGUMENTS", arguments)]
        compiled = backends.get("cpu").compile(Source("\n".join(parts), "cpu", "native"))
        binary = folder / f"{config['scheme']}-{digest(str(config))[:8]}.so"
        binary.write_bytes(compiled.binary)
        self._run = ctypes.CDLL(str(binary)).split_both

    def __call__(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The terms of x and of the weight, (term, row, column) in float32, and what undoes their scales."""
        tiles, rows = self.tiles, self.case.workload.rows
        scratch = torch.full((tiles.scratch_bytes,), 0xA5, dtype=torch.uint8)
        packed = torch.full((tiles.packed_bytes,), 0xA5, dtype=torch.uint8)
        places = [ctypes.c_void_p(each.data_ptr()) for each in (x, weight, scratch, packed)]
        self._run(*places)
        again = torch.full_like(packed, 0x5A)
        self._run(*places[:3], ctypes.c_void_p(again.data_ptr()))
        assert torch.equal(packed, again), "every byte of a packed weight is written"
        x_scales = scratch[tiles.offset_scales :].view(torch.float32)[:rows]
        scales_at = tiles.packed_bytes - 4 * tiles.packed_rows * self.scheme.scaled
        w_scales = packed[scales_at:].view(torch.float32)
        return self._terms(scratch, rows), self._terms(packed, tiles.packed_rows), x_scales, w_scales

    def _terms(self, memory: Tensor, rows: int) -> Tensor:
        dtype = torch.float32 if self.scheme.term == "tf32" else getattr(torch, self.scheme.term)
        count = self.scheme.terms * rows * self.tiles.padded
        found = memory[: count * dtype.itemsize].view(dtype).float()
        return found.view(self.scheme.terms, rows, self.tiles.padded)
