"""Right and wrong kernels by hand, for both backends, and what the worker must say of each."""

from __future__ import annotations

from pathlib import Path

from ksearch import backends
from ksearch.launch import Launch
from ksearch.types import Artifact, Candidate, Source, Status, digest

CPU_PROLOGUE = """
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <limits>
constexpr int64_t COLS = {cols};
static inline void softmax_row(const float* x, float* y) {{
  float m = -std::numeric_limits<float>::infinity();
  double s = 0;  // one float after the other would lose 1e-6 over 1000 columns
  for (int64_t i = 0; i < COLS; i++) m = (x[i] > m || x[i] != x[i]) ? x[i] : m;
  for (int64_t i = 0; i < COLS; i++) s += std::exp(x[i] - m);
  for (int64_t i = 0; i < COLS; i++) y[i] = std::exp(x[i] - m) / (float)s;
}}
extern "C" void ksearch_kernel(const float* in0, float* out0, int64_t rows, int32_t threads) {{
"""

CPU_SIGMOID = "for (int64_t i = 0; i < rows * COLS; i++) out0[i] = 1.0f / (1.0f + std::exp(-in0[i]));"
_ROWS = "for (int64_t r = 0; r < rows; r++) softmax_row(in0 + r * COLS, out0 + r * COLS);"
CPU_SOFTMAX = _ROWS

# name: (body, status, part of the message). Each computes softmax, but for one thing.
CPU_WRONG = {
    "zeros": ("std::memset(out0, 0, rows * COLS * 4);", Status.WRONG, "times the allowed|misplaced"),
    "lost tail": (
        _ROWS.replace("r < rows", "r < rows - 1"),
        Status.WRONG,
        "unwritten",
    ),
    "lost last column": (
        (
            "std::memset(out0, 0, rows * COLS * 4);"
            "for (int64_t r = 0; r < rows; r++) { float y[COLS]; softmax_row(in0 + r * COLS, y);"
            " std::memcpy(out0 + r * COLS, y, (COLS - 1) * 4); }"
        ),
        Status.WRONG,
        "times the allowed|misplaced",
    ),
    "no max subtraction": (
        (
            "for (int64_t r = 0; r < rows; r++) { const float* x = in0 + r * COLS; float s = 0;"
            " for (int64_t i = 0; i < COLS; i++) s += std::exp(x[i]);"
            " for (int64_t i = 0; i < COLS; i++) out0[r * COLS + i] = std::exp(x[i]) / s; }"
        ),
        Status.WRONG,
        "",
    ),
    "reads the row before": (_ROWS.replace("in0 + r", "in0 + (r - 1)"), Status.WRONG, ""),
    "writes past the end": (_ROWS + " out0[rows * COLS] = 0;", Status.OUT_OF_BOUNDS, "outside"),
    "writes before the start": (_ROWS + " out0[-1] = 0;", Status.OUT_OF_BOUNDS, "outside"),
    "writes one row too many": (
        _ROWS + " std::memcpy(out0 + rows * COLS, out0, COLS * 4);",
        Status.OUT_OF_BOUNDS,
        "outside",
    ),
    "modifies its input": (
        _ROWS + " const_cast<float*>(in0)[7] += 1;",
        Status.OUT_OF_BOUNDS,
        "input modified",
    ),
    "swallows NaN": (
        _ROWS + " for (int64_t i = 0; i < rows * COLS; i++) if (out0[i] != out0[i]) out0[i] = 0;",
        Status.WRONG,
        "misplaced",
    ),
    "does not write": ("", Status.WRONG, "unwritten"),
    "writes once": (
        "static int calls = 0; if (calls++ % 2) return;" + _ROWS,
        Status.WRONG,
        "unwritten",
    ),
    "random": (
        _ROWS + " static std::mt19937 g(1); out0[g() % COLS] *= 1 + 1e-6f * (g() % 7 + 1);",
        Status.NONDETERMINISTIC,
        "differ",
    ),
    "wrong on special values only": (
        # The sum of a row of -inf alone is NaN; this one makes it uniform, as a guard against 0/0 would.
        _ROWS
        + " for (int64_t r = 0; r < rows; r++) if (in0[r * COLS] == -INFINITY && in0[r * COLS + 1] < -1e38f)"
        " for (int64_t i = 0; i < COLS; i++) out0[r * COLS + i] = 1.0f / COLS;",
        Status.WRONG,
        "misplaced.*all -inf",
    ),
    "small elements flushed": (
        _ROWS + " for (int64_t i = 0; i < rows * COLS; i++) if (out0[i] < 1e-9f) out0[i] = 0;",
        Status.WRONG,
        "times the allowed",
    ),
    "sum in low precision": (
        (
            "for (int64_t r = 0; r < rows; r++) { const float* x = in0 + r * COLS; float m = x[0];"
            " for (int64_t i = 0; i < COLS; i++) m = (x[i] > m || x[i] != x[i]) ? x[i] : m;"
            " float s = 0; for (int64_t i = 0; i < COLS; i++) { s += std::exp(x[i] - m);"
            " uint32_t b; std::memcpy(&b, &s, 4); b &= 0xffffff00u; std::memcpy(&s, &b, 4); }"
            " for (int64_t i = 0; i < COLS; i++) out0[r * COLS + i] = std::exp(x[i] - m) / s; }"
        ),
        Status.WRONG,
        "times the allowed",
    ),
    "hangs": ("volatile bool go = true; while (go) {}", Status.TIMEOUT, "did not finish"),
    "segfaults": ("*(volatile int*)8 = 1;", Status.CRASHED, "SIGSEGV"),
    "aborts": ("std::abort();", Status.CRASHED, "SIGABRT"),
    "exits": ("std::_Exit(7);", Status.CRASHED, "exit status 7"),
}

CPU_PAIR_PROLOGUE = """
#include <cstdint>
constexpr int64_t COLS = {cols};
extern "C" void ksearch_kernel(
    const float* in0, const float* in1, float* out0, float* out1, int64_t rows, int32_t threads) {{
  const int64_t size = rows * COLS;
"""
_SUM = "for (int64_t i = 0; i < size; i++) out0[i] = in0[i] + in1[i];"
_DIFFERENCE = "for (int64_t i = 0; i < size; i++) out1[i] = in0[i] - in1[i];"
CPU_PAIR = _SUM + _DIFFERENCE

# Each computes a sum and a difference, but for one thing.
CPU_PAIR_WRONG = {
    "second unwritten": (_SUM, Status.WRONG, "output 1: left elements of the result unwritten"),
    "first unwritten": (_DIFFERENCE, Status.WRONG, "output 0: left elements of the result unwritten"),
    "second wrong": (
        CPU_PAIR + "out1[size - 1] += 1 + out1[size - 1];",
        Status.WRONG,
        "output 1: error is",
    ),
    "swapped": (
        CPU_PAIR.replace("out0", "other").replace("out1", "out0").replace("other", "out1"),
        Status.WRONG,
        "output [01]: (error is|NaN or)",
    ),
    "all in the first": (CPU_PAIR.replace("out1", "out0"), Status.WRONG, "output 1: left elements"),
    "second too long": (CPU_PAIR + "out1[size] = 0;", Status.OUT_OF_BOUNDS, "output 1: wrote outside"),
    "second random": (
        CPU_PAIR + "static int calls = 0; out1[7] = ++calls;",
        Status.NONDETERMINISTIC,
        "output 1: two runs",
    ),
}

CPU_LINEAR_PROLOGUE = """
#include <cmath>
#include <cstdint>
#include <cstring>
constexpr int64_t COLS = {cols}, INNER = 300;
static inline float exact(float v) {{ return v; }}
static inline float rounded(float v) {{  // to the digits of TF32 and float16
  uint32_t b; std::memcpy(&b, &v, 4); b = (b + 0x1000) & 0xffffe000u; std::memcpy(&v, &b, 4); return v;
}}
static inline double sigmoid(double y) {{ return 1.0 / (1.0 + std::exp(-y)); }}
extern "C" void ksearch_kernel(
    const float* x, const float* weight, const float* bias, float* out, int64_t rows, int32_t threads) {{
"""
_LINEAR = """
  constexpr int64_t WIDTH = VALUES;
  for (int64_t r = 0; r < rows; r++) {
    double sum = 0;
    for (int64_t c = 0; c < COLS; c++) {
      double acc = 0;
      const float* w = weight + c * INNER;
      for (int64_t k = 0; k < INNER; k++) acc += (double)exact(x[r * INNER + k]) * exact(w[k]);
      const float y = (float)acc + bias[c];
      AT_THE_END
    }
    PER_ROW
  }
"""
CPU_LINEAR = {
    "linear_sigmoid_scale_residual": _LINEAR.replace("VALUES", "COLS")
    .replace("AT_THE_END", "out[r * COLS + c] = 2 * sigmoid(y) + y;")
    .replace("PER_ROW", ""),
    "linear_sigmoid_sum": _LINEAR.replace("VALUES", "1")
    .replace("AT_THE_END", "sum += sigmoid(y);")
    .replace("PER_ROW", "out[r] = sum;"),
}

# What of a right kernel is replaced by what, and what is to be said of it then.
CPU_LINEAR_WRONG = {
    "last feature lost": ("k < INNER", "k < INNER - 1", Status.WRONG, "times the allowed|misplaced"),
    "last column lost": ("c < COLS", "c < COLS - 1", Status.WRONG, "times the allowed|misplaced|unwritten"),
    "last row lost": ("r < rows", "r < rows - 1", Status.WRONG, "unwritten"),
    "bias dropped": ("+ bias[c]", "", Status.WRONG, "times the allowed"),
    "bias of another column": ("bias[c]", "bias[COLS - 1 - c]", Status.WRONG, "times the allowed"),
    "another row of the input": ("x[r *", "x[r / 2 * 2 *", Status.WRONG, "times the allowed|misplaced"),
    "operands of few digits": ("exact(", "rounded(", Status.WRONG, "times the allowed"),
    "product of few digits": ("(float)acc", "rounded(acc)", Status.WRONG, "times the allowed"),
    "what is not finite left out": (
        "double acc = 0;",
        "double acc = 0; if (!std::isfinite(weight[c * INNER] + weight[c * INNER + INNER - 1])) continue;",
        Status.WRONG,
        "misplaced|times the allowed|unwritten",
    ),
    "weight changed": (
        "double sum = 0;",
        "double sum = 0; const_cast<float*>(weight)[COLS * INNER - 1] *= 1.5f;",
        Status.OUT_OF_BOUNDS,
        "input modified",
    ),
    "written past the end": (
        "double sum = 0;",
        "double sum = 0; out[rows * WIDTH] = 0;",
        Status.OUT_OF_BOUNDS,
        "outside",
    ),
    "another result each time": (
        "const float y = (float)acc",
        "static int calls = 0; const float y = (float)acc * (1 + 1e-7f * (++calls % 7))",
        Status.NONDETERMINISTIC,
        "differ",
    ),
}

CUDA_PROLOGUE = """
constexpr long long COLS = {cols};
__device__ unsigned int calls = 0;
extern "C" __global__ void ksearch_kernel(const float* in0, float* out0, long long rows) {{
  const long long r = blockIdx.x;
  if (r >= rows || threadIdx.x != 0) return;
  const float* x = in0 + r * COLS; float* y = out0 + r * COLS;
  const float inf = __int_as_float(0x7f800000);
  float m = -inf;
  double s = 0;
  for (long long i = 0; i < COLS; i++) m = (x[i] > m || x[i] != x[i]) ? x[i] : m;
  for (long long i = 0; i < COLS; i++) s += expf(x[i] - m);
"""
CUDA_PAIR_PROLOGUE = """
constexpr long long COLS = {cols};
extern "C" __global__ void ksearch_kernel(
    const float* in0, const float* in1, float* out0, float* out1, long long rows) {{
  const long long first = blockIdx.x * COLS, end = first + COLS;
  if (blockIdx.x >= rows) return;
"""
_CUDA_SUM = "for (long long i = first + threadIdx.x; i < end; i += blockDim.x) out0[i] = in0[i] + in1[i];"
_CUDA_DIFFERENCE = _CUDA_SUM.replace("out0", "out1").replace("+ in1", "- in1")
CUDA_PAIR = _CUDA_SUM + _CUDA_DIFFERENCE
CUDA_PAIR_WRONG = {
    "second unwritten": (_CUDA_SUM, Status.WRONG, "output 1: left elements of the result unwritten"),
    "second wrong": (
        CUDA_PAIR
        + "if (end == rows * COLS && threadIdx.x == (COLS - 1) % blockDim.x) out1[end - 1] += 1e6f;",
        Status.WRONG,
        "output 1: (error is|NaN or)",
    ),
    "swapped": (
        CUDA_PAIR.replace("out0", "other").replace("out1", "out0").replace("other", "out1"),
        Status.WRONG,
        "output [01]: (error is|NaN or)",
    ),
    "second too long": (
        CUDA_PAIR + "if (first == 0) out1[rows * COLS] = 0;",
        Status.OUT_OF_BOUNDS,
        "output 1: wrote outside",
    ),
}

_CUDA_OUT = "for (long long i = 0; i < COLS; i++) y[i] = expf(x[i] - m) / (float)s; "
CUDA_SOFTMAX = _CUDA_OUT
CUDA_WRONG = {
    "zeros": ("for (long long i = 0; i < COLS; i++) y[i] = 0;", Status.WRONG, ""),
    "lost tail": ("if (r == rows - 1) return; " + _CUDA_OUT, Status.WRONG, "unwritten"),
    "no max subtraction": (
        (
            "s = 0; for (long long i = 0; i < COLS; i++) s += expf(x[i]);"
            " for (long long i = 0; i < COLS; i++) y[i] = expf(x[i]) / (float)s;"
        ),
        Status.WRONG,
        "",
    ),
    "writes past the end": (
        _CUDA_OUT + "if (r == 0) out0[rows * COLS] = 0;",
        Status.OUT_OF_BOUNDS,
        "outside",
    ),
    "writes before the start": (_CUDA_OUT + "if (r == 0) out0[-1] = 0;", Status.OUT_OF_BOUNDS, "outside"),
    "modifies its input": (
        _CUDA_OUT + "if (r == 0) const_cast<float*>(in0)[7] += 1;",
        Status.OUT_OF_BOUNDS,
        "input modified",
    ),
    "swallows NaN": (
        _CUDA_OUT + "for (long long i = 0; i < COLS; i++) if (y[i] != y[i]) y[i] = 0;",
        Status.WRONG,
        "misplaced",
    ),
    "does not write": ("", Status.WRONG, "unwritten"),
    "random": (
        _CUDA_OUT + "if (r == 0) y[3] *= 1 + 1e-6f * (atomicAdd(&calls, 1) % 7 + 1);",
        Status.NONDETERMINISTIC,
        "differ",
    ),
    "illegal address": (_CUDA_OUT + "*(volatile float*)8 = s;", Status.CRASHED, ""),
    "traps": (_CUDA_OUT + 'if (r == 0) asm volatile("trap;");', Status.CRASHED, ""),
    "hangs": (
        "volatile float* p = y; while (p[0] != 12345.0f) {}",
        Status.TIMEOUT,
        "did not finish",
    ),
}


def source(body: str, cols: int, arch: str = "", prologue: str = "") -> Source:
    """The source of a kernel by its body; for the CPU unless an architecture is given."""
    prologue = prologue or (CUDA_PROLOGUE if arch else CPU_PROLOGUE)
    text = prologue.format(cols=cols) + body + "\n}\n"
    return Source(text, "cuda", arch) if arch else Source(text, "cpu", "native")


def build(
    body: str, cols: int, folder: Path, launch: Launch | None = None, arch: str = "", prologue: str = ""
) -> Candidate:
    backend = backends.get("cuda" if arch else "cpu")
    compiled = backend.compile(source(body, cols, arch, prologue))
    identity = digest(compiled.binary)
    binary = folder / f"{identity[:16]}.{backend.extension}"
    binary.write_bytes(compiled.binary)
    artifact = Artifact(key=identity, folder=str(folder), binary=str(binary), digest=identity)
    return Candidate({"body": digest(body)[:8]}, launch or Launch(), artifact)
