"""A CUDA kernel run on the host, a thread for each of a block's: its own text, but for what loads and stores.

For kernels whose threads wait for one another at `__syncthreads` and at the barriers of a cluster alone, in
float32. Blocks run one after the other, but those of a cluster together: each has a copy of the library, and
so its own shared memory. It shows where their indices are wrong, and misaligned vectors, which trap.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from ksearch import backends, families
from ksearch.operators import Op
from ksearch.operators.program import Role
from ksearch.render import render
from ksearch.types import Config, Source, Target, Workload, digest

_COUNTING = re.compile(r'asm volatile\("atom\.acq_rel[^;]*;[^;]*;')
_COPYING = re.compile(r'asm volatile\("cp\.async[^;]*;[^;]*;')
_DYNAMIC = re.compile(r"extern __shared__ (.*?)\[\];")

_HEAD = """
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <pthread.h>
#include <unistd.h>
#define __global__
#define __restrict__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static
#define KS_FN inline
#define KS_INFINITY INFINITY
#define KS_NAN NAN
using u32 = uint32_t;
using u64 = uint64_t;
using std::max;
using std::min;
struct Index { int x; };
static thread_local Index threadIdx, blockIdx;
static Index gridDim;
inline u32 atomicAdd(u32* counter, u32 more) {
    const u32 before = *counter;
    *counter += more;
    return before;
}
inline float __uint_as_float(u32 word) {
    float value;
    memcpy(&value, &word, 4);
    return value;
}
inline u32 __float_as_uint(float value) {
    u32 word;
    memcpy(&word, &value, 4);
    return word;
}
// The libraries of a cluster's blocks, this one's place among them, and how many threads have come by.
extern "C" {
char library;
char* libraries[16];
int rank_here = 0, cluster_size = 1;
long arrived;
}
static long turns;  // blocks that this library has been
inline void __trap() { __builtin_trap(); }
// Threads are many more than cores, so that who waits sleeps.
static pthread_barrier_t of_block;
static void __syncthreads() { pthread_barrier_wait(&of_block); }
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
template <int BYTES> void launder_copy(Raw<BYTES>&, u32) {}
template <class T> T splat(float a) { return a; }
inline float max(float a, float b) { return a != a ? a : b != b ? b : std::max(a, b); }
inline u32 load_relaxed(const u32* p) { return *p; }
inline float exp(float a) { return std::exp(a); }
// An address: which library, and how far from its `library`.
inline u32 remote_address(u32 address, u32 rank) { return (address & 0xffffff) | rank << 24; }
constexpr int MIDDLE = 1 << 23;
inline u32 shared_address(const void* p) {
    return remote_address(u32((const char*)p - &library) + MIDDLE, rank_here);
}
inline char* there(u32 address) { return libraries[address >> 24] + int(address & 0xffffff) - MIDDLE; }
inline long* word_there(u32 address) { return (long*)there(address); }
inline u32 cluster_rank() { return rank_here; }
inline void cluster_fence_init() {}
inline void copy(u32 to, const void* from, u32 bytes, u32 all) {
    if (uintptr_t(there(to)) % all || uintptr_t(from) % all) __builtin_trap();
    memset(there(to), 0, all);
    memcpy(there(to), from, bytes);
}
inline void async_wait() {}
inline long* arrivals() { return (long*)there(remote_address(shared_address(&arrived), 0)); }
inline void cluster_arrive() { __atomic_fetch_add(arrivals(), 1, __ATOMIC_ACQ_REL); }
inline void cluster_wait() {
    const long wanted = turns * cluster_size * omp_get_num_threads();
    while (__atomic_load_n(arrivals(), __ATOMIC_ACQUIRE) < wanted) usleep(100);
}
// A barrier counts how often bytes were waited for, and those that have come, less those that are to come.
constexpr long ONE = 1l << 40;
inline void barrier_init(u32 barrier, u32) { *word_there(barrier) = 0; }
inline void barrier_count(u32 barrier, long more) {
    __atomic_fetch_add(word_there(barrier), more, __ATOMIC_ACQ_REL);
}
inline void barrier_expect(u32 barrier, u32 bytes) { barrier_count(barrier, ONE - bytes); }
inline void barrier_wait_cluster(u32 barrier, u32 parity) {
    for (;; usleep(100)) {
        const long now = __atomic_load_n(word_there(barrier), __ATOMIC_ACQUIRE), uses = (now + ONE / 2) / ONE;
        if (uses % 2 != parity && now >= uses * ONE) return;
    }
}
inline void remote_send(u32 address, u32 word, u32 barrier) {
    memcpy(there(address), &word, 4);
    barrier_count(barrier, 4);
}
inline void remote_send(u32 address, u32 word, u32 next_word, u32 barrier) {
    if (address % 8) __builtin_trap();
    remote_send(address, word, barrier);
    remote_send(address + 4, next_word, barrier);
}
inline float sigmoid(float a) { return 1.0f / (1.0f + std::exp(-a)); }
}
template <class F> void start(int blocks, int threads, F kernel) {
    gridDim.x = blocks;
    pthread_barrier_init(&of_block, nullptr, threads);
    for (int block = rank_here; block < blocks; block += cluster_size) {
        ++turns;
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
    """What the kernel of this config, and those that are started before it, leave in the op's one output.

    A persistent grid is of three blocks or clusters, and is started twice, as its workspace stays. Raises
    AssertionError where the second time gives other bits.
    """
    options = dict(workload.options)
    program, family = op.program(**options), families.find(op, "cuda", **options)
    launch = family.launch(config, program, workload, device)
    text = render(op, workload, config, device).text
    before, rest = text[: text.index("#define KS_FAST_MATH")], text[text.index("using D = ") :]
    inputs = ["const unsigned char*" if item.role == "mask" else "const float*" for item in program.inputs]
    names = [f"a{k}" for k in range(len(inputs) + 1)]
    parameters = ", ".join(f"{kind} {name}" for kind, name in zip([*inputs, "float*"], names, strict=True))
    extras = {"scratch": launch.scratch_bytes, "(u32*)workspace": launch.workspace_bytes}
    kinds = {"scratch": "(double*)" if launch.before else "(float*)"}
    arguments = ", ".join([*names, "rows", *(kinds.get(k, "") + k for k, size in extras.items() if size)])
    starts = [
        f"start({3 * step.cluster if step.persistent else step.grid(workload.rows)}, {step.block}, "
        f"[&] {{ {step.entry}({arguments}); }});"
        for step in (*launch.before, launch)
    ]
    rest = _COPYING.sub("ks::copy(to, from, bytes, BYTES);", rest)
    rest = _DYNAMIC.sub(rf"static \1[{launch.smem_bytes}];", rest)
    rest = _COUNTING.sub("before = *counter, *counter = before == count - 1 ? 0 : before + 1;", rest)
    head = f'extern "C" void run({parameters}, long long rows, void* scratch, void* workspace)'
    body = f"{head} {{ {' '.join(starts)} }}\n"
    compiled = backends.get("cpu").compile(Source(before + _HEAD + rest + body, "cpu", "native"))
    count = workload.numel if program.output_roles[0] is Role.FULL else workload.rows
    output = torch.full((count,), torch.nan)
    scratch = torch.full((launch.scratch_bytes,), 0xFF, dtype=torch.uint8)
    workspace = torch.zeros(3 * launch.workspace_bytes, dtype=torch.uint8)
    memory = [ctypes.c_void_p(each.data_ptr()) for each in (*tensors, output, scratch, workspace)]
    arguments_now = (*memory[:-2], ctypes.c_longlong(workload.rows), *memory[-2:])
    calls = _load(compiled.binary, launch.cluster, folder / digest(text)[:12])
    _call_all(calls, arguments_now)
    if launch.persistent:
        first = output.clone()
        _call_all(calls, arguments_now)
        assert torch.equal(first, output), "what a launch leaves in its workspace leads the next one astray"
    return output.view(workload.shape) if count == workload.numel else output


def _load(binary: bytes, count: int, stem: Path) -> list[Callable[..., object]]:
    """The function of as many copies of a library, each of which knows its place among them."""
    files = [stem.with_suffix(f".{rank}.so") for rank in range(count)]
    for file in files:
        file.write_bytes(binary)
    found = [ctypes.CDLL(str(file)) for file in files]
    starts = [ctypes.addressof(ctypes.c_char.in_dll(each, "library")) for each in found]
    for rank, each in enumerate(found):
        ctypes.c_int.in_dll(each, "rank_here").value = rank
        ctypes.c_int.in_dll(each, "cluster_size").value = count
        (ctypes.c_void_p * 16).in_dll(each, "libraries")[:count] = starts
    return [each.run for each in found]


def _call_all(calls: Sequence[Callable[..., object]], arguments: Sequence[object]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call, *arguments) for call in calls]:
            done.result()
