"""A CUDA kernel run on the host, a thread for each of a block's: its own text, but for what loads and stores.

For kernels that wait for one another at `__syncthreads` alone, in float32. It shows where their indices are
wrong, and misaligned vectors, which trap.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ksearch import backends, families
from ksearch.operators import Op
from ksearch.render import render
from ksearch.types import Config, Source, Target, Workload, digest

_HEAD = """
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#define __global__
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static
#define KS_FN inline
#define KS_INFINITY INFINITY
#define KS_NAN NAN
using u32 = uint32_t;
using std::max;
using std::min;
struct Index { int x; };
static thread_local Index threadIdx, blockIdx;
static void __syncthreads() {
#pragma omp barrier
}
namespace ks {
struct Float32 {
    using Storage = float;
    static float load(const float* p) { return *p; }
};
enum Load { LOAD_DEFAULT, LOAD_NC, LOAD_CS };
enum Store { STORE_DEFAULT, STORE_CS };
template <int BYTES> struct Raw { u32 word[(BYTES + 3) / 4]; };
template <int BYTES, Load POLICY> Raw<BYTES> load(const void* p) {
    if (uintptr_t(p) % BYTES) __builtin_trap();
    Raw<BYTES> r = {};
    memcpy(&r, p, BYTES);
    return r;
}
template <int BYTES, Store POLICY> void store(void* p, const Raw<BYTES>& r) {
    if (uintptr_t(p) % BYTES) __builtin_trap();
    memcpy(p, &r, BYTES);
}
template <class D, int BYTES> float element(const Raw<BYTES>& r, int lane) {
    float value;
    memcpy(&value, &r.word[lane], 4);
    return value;
}
template <class D, int VEC, int BYTES> Raw<BYTES> pack(const float (&value)[VEC]) {
    Raw<BYTES> r;
    memcpy(&r, value, BYTES);
    return r;
}
template <int BYTES> void launder(Raw<BYTES>&, u32) {}
template <class T> T splat(float a) { return a; }
inline float sigmoid(float a) { return 1.0f / (1.0f + std::exp(-a)); }
}
template <class F> void start(int blocks, int threads, F kernel) {
    for (int block = 0; block < blocks; ++block) {
#pragma omp parallel num_threads(threads)
        {
            blockIdx.x = block, threadIdx.x = omp_get_thread_num();
            kernel();
        }
    }
}
"""


def run_on_host(
    op: Op, workload: Workload, config: Config, device: Target, tensors: Sequence[Tensor], folder: Path
) -> Tensor:
    """What the kernel of this config, and those that are started before it, leave in the op's one output."""
    options = dict(workload.options)
    program, family = op.program(**options), families.find(op, "cuda", **options)
    launch = family.launch(config, program, workload, device)
    text = render(op, workload, config, device).text
    before, rest = text[: text.index("#define KS_FAST_MATH")], text[text.index("using D = ") :]
    inputs = ["const unsigned char*" if item.role == "mask" else "const float*" for item in program.inputs]
    names = [f"a{k}" for k in range(len(inputs) + 1)]
    parameters = ", ".join(f"{kind} {name}" for kind, name in zip([*inputs, "float*"], names, strict=True))
    arguments = ", ".join([*names, "rows", *(["scratch"] if launch.scratch_bytes else [])])
    starts = [
        f"start({step.grid(workload.rows)}, {step.block}, [&] {{ {step.entry}({arguments}); }});"
        for step in (*launch.before, launch)
    ]
    body = f'extern "C" void run({parameters}, long long rows, double* scratch) {{ {" ".join(starts)} }}\n'
    compiled = backends.get("cpu").compile(Source(before + _HEAD + rest + body, "cpu", "native"))
    binary = folder / f"{digest(text)[:12]}.so"
    binary.write_bytes(compiled.binary)
    output = torch.full(workload.shape, torch.nan)
    scratch = torch.full((launch.scratch_bytes,), 0xFF, dtype=torch.uint8)
    pointers = [ctypes.c_void_p(each.data_ptr()) for each in (*tensors, output)]
    rows, memory = ctypes.c_longlong(workload.rows), ctypes.c_void_p(scratch.data_ptr())
    ctypes.CDLL(str(binary)).run(*pointers, rows, memory)
    return output
