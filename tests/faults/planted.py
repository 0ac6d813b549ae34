"""Kernels that do the worst that native code can, for both backends, and what must be said of each."""

from __future__ import annotations

from ksearch.launch import Launch
from ksearch.types import Status
from tests.evaluate import kernels

CPU_PROLOGUE = (
    r"""
#include <cstdio>
#include <fcntl.h>
#include <initializer_list>
#include <sys/mman.h>
#include <unistd.h>
static volatile int sink = 0;
static int deeper(int n) {{ volatile char room[4096]; room[n % 4096] = 1; return deeper(n + 1) + room[0]; }}
"""
    + kernels.CPU_PROLOGUE
)

_NEIGHBOUR = r"""
  // What is right is kept in float64 in the same heap: find a line of it by what it must hold, and change it.
  double want[6], m = in0[0], s = 0;
  for (int64_t i = 1; i < COLS; i++) m = in0[i] > m ? in0[i] : m;
  for (int64_t i = 0; i < COLS; i++) s += std::exp(in0[i] - m);
  for (int i = 0; i < 6; i++) want[i] = std::exp(in0[i] - m) / s;
  std::FILE* maps = std::fopen("/proc/self/maps", "r");
  char line[512];
  unsigned long low = 0, high = 0;
  while (std::fgets(line, sizeof line, maps))
    if (std::strstr(line, "[heap]")) std::sscanf(line, "%lx-%lx", &low, &high);
  std::fclose(maps);
  for (double* p = (double*)low; p + 6 <= (double*)high; p++) {
    int same = 0;
    while (same < 6 && std::fabs(p[same] - want[same]) <= 1e-12 * want[same]) same++;
    if (same == 6 && p != want) FOUND
  }
"""
_CHANGE = "for (int i = 0; i < 6; i++) p[i] *= 2;"

# name: (body, status, part of the message)
CPU: dict[str, tuple[str, Status, str]] = {
    "illegal address": ("*(volatile int*)8 = 1;", Status.CRASHED, "SIGSEGV"),
    "misaligned address": (  # what a CPU says of an access beyond the file that is mapped there
        (
            'int f = memfd_create("f", 0);'
            " volatile char* p = (char*)mmap(nullptr, 4096, PROT_READ, MAP_SHARED, f, 0); sink = p[0];"
        ),
        Status.CRASHED,
        "SIGBUS",
    ),
    "endless loop": ("while (!sink) {}", Status.TIMEOUT, "did not finish"),
    "exception": ("throw 1;", Status.CRASHED, "SIGABRT.*terminate called"),
    "exhausted memory": (
        "for (;;) { char* p = (char*)std::malloc(1 << 26); std::memset(p, 1, 1 << 26); }",
        Status.CRASHED,
        "SIGSEGV",
    ),
    "stack overflow": ("sink = deeper(0);", Status.CRASHED, "SIGSEGV"),
    "prints without end": (
        r'for (;;) if (std::fputs("a line that nobody reads\n", stdout) < 0) std::clearerr(stdout);',
        Status.TIMEOUT,
        "did not finish",
    ),
    "corrupts a neighbour's buffer": (
        kernels.CPU_SOFTMAX + _NEIGHBOUR.replace("FOUND", _CHANGE),
        Status.OUT_OF_BOUNDS,
        "damaged memory that candidates are judged by",
    ),
}

NEIGHBOUR_LATE = (
    kernels.CPU_SOFTMAX
    + "static int calls = 0; static double* found = nullptr; calls++; if (calls < 8) {"
    + _NEIGHBOUR.replace("FOUND", "found = p;")
    + f"}} if (calls == 12 && found) {{ double* p = found; {_CHANGE} }}"
)
"""The same in a late call, that of a timing: the candidate itself is judged by then."""

_CUDA_PROLOGUE = (
    """
extern "C" __device__ void __assertfail(const char*, const char*, unsigned, const char*, unsigned long);
__device__ __noinline__ int deeper(int n) {{
  volatile char room[1024]; room[n % 1024] = 1; return deeper(n + 1) + room[0];
}}
"""
    + kernels.CUDA_PROLOGUE
)
_CLUSTERED = _CUDA_PROLOGUE.replace("__global__ void", "__global__ void __cluster_dims__(2, 1, 1)")
_ROW = Launch(work_per_row=1, work_per_block=1, block=32)
_FOREVER = "volatile float* p = y; while (p[0] != 12345.0f) {}"

# name: (body, prologue, launch, status, part of the message)
CUDA: dict[str, tuple[str, str, Launch, Status, str]] = {
    name: (body, prologue, launch, status, message)
    for name, body, prologue, launch, status, message in (
        ("illegal address", "*(volatile float*)8 = s;", _CUDA_PROLOGUE, _ROW, Status.CRASHED, "(?i)illegal"),
        (
            "misaligned address", "*(volatile double*)((char*)y + 2) = s;",
            _CUDA_PROLOGUE, _ROW, Status.CRASHED, "(?i)misaligned",
        ),
        ("endless loop", _FOREVER, _CUDA_PROLOGUE, _ROW, Status.TIMEOUT, "did not finish"),
        (
            "device-side assert", '__assertfail("false", "kernel.cu", 7, "ksearch_kernel", 1);',
            _CUDA_PROLOGUE, _ROW, Status.CRASHED, "(?i)assert",
        ),
        ("trap", 'asm volatile("trap;");', _CUDA_PROLOGUE, _ROW, Status.CRASHED, ""),
        (
            "exhausted memory",
            "for (int k = 0; k < 1 << 20; k++) { volatile float* p = (float*)malloc(1 << 20); p[0] = s; }",
            _CUDA_PROLOGUE, _ROW, Status.CRASHED, "(?i)illegal",
        ),
        ("stack overflow", "y[0] = deeper((int)s);", _CUDA_PROLOGUE, _ROW, Status.CRASHED, ""),
        (
            "deadlocked cluster",
            (
                'if (blockIdx.x % 2 == 0) asm volatile("barrier.cluster.arrive; barrier.cluster.wait;");'
                f" else {{ {_FOREVER} }}"
            ),
            _CLUSTERED, Launch(work_per_row=1, work_per_block=1, block=32, cluster=2), Status.TIMEOUT, "",
        ),
        (
            "launch failure: too many threads", kernels.CUDA_SOFTMAX,
            _CUDA_PROLOGUE, Launch(block=2048), Status.LAUNCH_ERROR, "INVALID_VALUE",
        ),
        (
            "launch failure: no such function", kernels.CUDA_SOFTMAX,
            _CUDA_PROLOGUE, Launch(block=32, entry="none"), Status.LAUNCH_ERROR, "NOT_FOUND",
        ),
        (
            "corrupts a neighbour's buffer",
            kernels.CUDA_SOFTMAX + "if (r == 0) for (int k = 0; k < 512; k++) out0[rows * COLS + k] = 0;",
            _CUDA_PROLOGUE, _ROW, Status.OUT_OF_BOUNDS, "outside",
        ),
    )
}  # fmt: skip
