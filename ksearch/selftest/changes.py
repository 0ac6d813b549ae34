"""What is changed in the text of a kernel to plant a fault in it, and where: each change must find its place.

A change belongs to a mark, a piece of text that tells the template, or a part of its space, from the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

Change = tuple[str, str] | Callable[[str], str]
"""A regular expression that must be found and what takes its place, or what changes the text."""

Changes = Mapping[str, tuple[Change, ...]]
"""By the mark of the text that they are for, a regular expression."""

# ---- what faults are made of ------------------------------------------------------------------------------

# Up or down by a bit that no 16-bit type keeps or rounds by: else the error goes where rounding goes anyway.
_CPU_HELPERS = r"""\g<0>
template <class T>
KS_FN T planted_near(T a) {  // but for 1, where most approximations are exact
    const T one = splat<T>(1.0f), near = (bits(a) & 0x100) != 0 ? T(a * 1.001f) : T(a * 0.999f);
    return ((a == one) | (a == T(-one))) ? a : near;
}
template <class T>
KS_FN T planted_half(T a) {  // the digits and the range of float16, for vectors of any width
    const T top = splat<T>(KS_INFINITY), most = splat<T>(65504.0f);
    const T near = bit_cast<T>((bits(a) + 0xfff + ((bits(a) >> 13) & 1)) & ~0x1fff);
    const T below = near > most ? top : near;
    return near < T(-most) ? T(-top) : below;
}"""
_CUDA_HELPERS = r"""\g<0>
KS_FN float planted_near(float a) {  // but for 1, where most approximations are exact
    return fabsf(a) == 1.0f ? a : a * (__float_as_uint(a) & 0x100u ? 1.001f : 0.999f);
}
KS_FN float planted_half(float a) { return Float16::to_float(u16(Float16::pack(a, 0.0f))); }"""

_HELPERS = {
    r"constexpr float LOG2E = 1\.4426950408889634f;": _CPU_HELPERS,
    r"template <class T>\nKS_FN T splat\(float a\) \{ return a; \}": _CUDA_HELPERS,
}
"""By the place in namespace ks that is before every function of it that computes."""


def _with_helpers(text: str) -> str:
    for place, helpers in _HELPERS.items():
        text = re.sub(place, helpers, text)
    return text


# ---- exponentials -----------------------------------------------------------------------------------------

EXPONENTIALS = ("exp", "exp2", "expm1", "sigmoid", "tanh", "erf")
_ANY = f"({'|'.join(EXPONENTIALS)})"
_TEMPLATE = r"template <class T>\n"

_OWN = r"(?<![\w:])(?:std::|__)?expf?\("
_OWN_HELPERS = """\
#ifdef __CUDACC_RTC__
#define PLANTED __device__ __forceinline__
#else
#define PLANTED static inline
#include <cmath>
#endif
template <class T>
PLANTED T planted_exp(T a) { return exp(a) * ((long long)(a * 64) & 1 ? T(1.001) : T(0.999)); }
"""


def _with_own_exponential(text: str) -> str:
    """Of a user's template that calls the library's."""
    return _OWN_HELPERS + re.sub(_OWN, "planted_exp(", text)


_RENAMED_TEMPLATE = (
    rf"{_TEMPLATE}KS_FN T exact_\1(T a);\n"
    rf"{_TEMPLATE}KS_FN T \1(T a) {{ return planted_near(exact_\1(a)); }}\n"
    rf"{_TEMPLATE}KS_FN T exact_\1(T a) {{"
)
_RENAMED = (
    r"KS_FN float exact_\1(float a);\n"
    r"KS_FN float \1(float a) { return planted_near(exact_\1(a)); }\n"
    r"KS_FN float exact_\1(float a) {"
)

NEAR_EXPONENTIALS: Changes = {
    rf"{_TEMPLATE}KS_FN T exp\(T a\) \{{": (
        _with_helpers,
        (
            rf"{_TEMPLATE}KS_FN T {_ANY}\(T a\) \{{",
            _RENAMED_TEMPLATE,
        ),
    ),
    r"KS_FN float exp\(float a\) \{": (
        _with_helpers,
        (
            rf"KS_FN float {_ANY}\(float a\) \{{",
            _RENAMED,
        ),
    ),
    _OWN: (_with_own_exponential,),
}

# ---- sums -------------------------------------------------------------------------------------------------

_GROWING = re.compile(
    r"((?:sums|run|mine|chunk|batch|total|all|sum\d+)(?:\.value)?(?:\[[^\]\n]*\])+(?:\.value\[\d+\])?)"
    r" \+= ([^;\n]+?)(;|, (?=(?:sum|run)\[))"
)
_JOINED = re.compile(r"(?:all|a)\.value\[(\d+)\] \+ (?:b\.value\[\1\]|other\d+|part\d+)(?=;)")


def _in_halves(text: str) -> str:
    """A thread's own sums, and those of threads and blocks together."""
    text = _GROWING.sub(r"\1 = ks::planted_half(\1 + (\2))\3", text)
    return _JOINED.sub(r"ks::planted_half(\g<0>)", text)


_HALVE_SUM = """\
ks::wgmma_wait<0>();
#pragma unroll
                for (int m = 0; m < BLOCKS_M; ++m) {
                    ks::pin(sum[m]);
#pragma unroll
                    for (int i = 0; i < VALUES; ++i) sum[m][i] = ks::planted_half(sum[m][i]);
                }"""
_HALVE_RESULT = """\
for (int i = 0; i < FRAGMENTS * VALUES; ++i) {
                    float& value = result[i / VALUES][i % VALUES];
                    value = ks::planted_half(value);
                }
                """

HALF_SUMS: Changes = {
    # Sums in double: 2^42 + 1 times itself leaves the 11 digits of float16.
    r"KS_FN V combine\(V a, V b\) \{ return a \+ b; \}": (
        (
            r"\{ return a \+ b; \}",
            "{ const V sum = a + b, far = sum * 4398046511105.0; return far - (far - sum); }",
        ),
    ),
    r"KS_FN V combine\(V a, V b\) \{\n": (
        _with_helpers,
        (r"(    else\n        return )a \+ b;", r"\1ks::planted_half(V(a + b));"),
    ),
    r"constexpr int SUMS = ": (_with_helpers, _in_halves),
    r"Partial0 mine\[VEC\];": (_with_helpers, _in_halves),
    # Products of halves: the tensor cores' sums, from block to block.
    r"wgmma_wait<1>\(\);": (
        _with_helpers,
        (
            r"ks::wgmma_wait<1>\(\);",
            _HALVE_SUM,
        ),
    ),
    r"constexpr int WARPS_M": (
        _with_helpers,
        (
            r"(?=constexpr int PAIR = )",
            _HALVE_RESULT,
        ),
    ),
    r"constexpr int FEATURE_TILES": (_with_helpers, _in_halves),
}

# ---- maxima -----------------------------------------------------------------------------------------------

_SUBTRACTED = r"(const T t\d+ = \S+) - ks::splat<T>\(row\.r\d+\);(?=\n *const T t\d+ = ks::exp\(t\d+\);)"


def _without_max(text: str) -> str:
    """In every pass that has the difference, whatever it is taken for there."""
    for found in list(re.finditer(_SUBTRACTED, text)):
        text = text.replace(found[0], f"{found[1]};")
    return text


NO_MAX: Changes = {
    rf"KS_FN void stage\d+\([^{{}}]*\{{[^{{}}]*{_SUBTRACTED}": (_without_max,),
    # A linear's logsumexp: each element counts as exp of itself, relative to nothing.
    r"KS_FN Partial single\(": (
        (r"value\[(\d+)\] == -KS_INFINITY \? 0\.0f : 1\.0f", r"ks::exp(value[\1])"),
        (r"(KS_FN Partial single\(.*\n    return \{ \{ )value\[0\]", r"\g<1>0.0f"),
    ),
}

# ---- barriers ---------------------------------------------------------------------------------------------

_LATE = "__nanosleep(20000);"
"""20 us: what is handed over is sure to come too late."""
_LATE_ON_CPU = "for (volatile int wait = 0; wait < 30000;) wait = wait + 1;"

_TAKES_WARPS = r"constexpr int THREADS = (?!(?:1|2|4|8|16|32);)"
_GROUPS_OF_WARPS = r"constexpr int ACROSS = (?!(?:4|8|16);).*\nconstexpr int DOWN = (?!1;)"
_WRITTEN_BY_FIRST = r" +if \(level == 0\) \{\n#pragma unroll\n.*\n#pragma unroll\n.* found\["
_HANDED_OVER = r"\[warp\]\[k\] = mine\.value\[k\];\n    \}\n"

NO_BARRIER: Changes = {
    r"#pragma omp barrier\n.*now\[0\]\.total\[k\]": (
        (r"#pragma omp barrier\n", ""),
        (
            r"( +)(for \(int k = 0; k < Stage::COUNT; \+\+k\) now\[me\]\.total\[k\] = total\[k\];)",
            rf"\1if (me + 1 == team) {_LATE_ON_CPU}\n\1\2",
        ),
    ),
    # Scans on a CPU whose threads share each row: what comes before a thread's part is others'.
    r"#pragma omp barrier\n +(?:double until|Carry origin)": (
        (r"#pragma omp barrier\n(?= +(?:double until|Carry origin))", ""),
        (r"( +)((?:now\[me\]\.sum = )?sum_up\(in, both,)", rf"\1if (me == 0) {_LATE_ON_CPU}\n\1\2"),
    ),
    # Rows over several warps, which combine through shared memory.
    rf"{_TAKES_WARPS}(?s:.*){_HANDED_OVER}    __syncthreads": (
        (
            rf"(    if \(lane == 0\) \{{\n#pragma unroll\n.*{_HANDED_OVER})    __syncthreads\(\);\n",
            rf"    if (warp > 0) {_LATE}\n\1",
        ),
    ),
    # Rows side by side whose columns the blocks of a cluster share: joined, and then waited for.
    r"ks::barrier_wait_cluster\(barrier, (?:0|turn & 1)\);": (
        (r"( +ks::barrier_wait_cluster\(barrier, (?:0|turn & 1)\);\n)((?s:.*?)\n)(?= {8}\}\n)", r"\2\1"),
        (r"( +)(for \(int to = level; )", rf"\1if (rank > 0) {_LATE}\n\1\2"),
    ),
    # Parts of their columns: all but the last are counted long before they are there.
    r"is_whole = is_last\(": (
        (
            rf"({_WRITTEN_BY_FIRST}(?s:.*?) {{12}}__syncthreads\(\);\n)( +if .* = is_last\(.*\n.*\n)",
            r"\2            if (!is_whole) __nanosleep(500000);\n\1",
        ),
    ),
    # Groups of threads of a block, which share out columns.
    rf"{_GROUPS_OF_WARPS}(?s:.*)shared\[k\]\[p\.down\]": (
        (
            r"(#pragma unroll\n.*\n#pragma unroll\n.* shared\[k\]\[p\.down\].*\n) +__syncthreads\(\);\n",
            rf"        if (threadIdx.x >= 32) {_LATE}\n\1",
        ),
    ),
    # Tiles that all threads copy, each some of them.
    r"const auto await_block = ": (
        (r"(ks::copy_wait<STAGES - 2>\(\);)\n +__syncthreads\(\);", r"\1"),
        (r"(const auto fetch = \[&\]\(int stage\) \{\n)", rf"\1        if (warp > 0) {_LATE}\n"),
    ),
    # The shares of a row's result that the warps of a tile have.
    r"any_of_all\(false\);\n +for \(int n = threadIdx\.x; n < TILE_N": (
        (r"any_of_all\(false\);\n( +for \(int n = threadIdx\.x; n < TILE_N)", r"\1"),
        (
            r"( +)(Partial\* const partials = reinterpret_cast<Partial\*>\(memory)",
            rf"\1if (warp % 4) {_LATE}\n\1\2",
        ),
    ),
    # A tile's results on their way through shared memory.
    r"float\* const staged = ": (
        (r"team_barrier\(\);\n( *#pragma unroll\n +for \(int i = 0; i < \(STAGED)", r"\1"),
        (r"( +)(const int m = part / \(TEAM_ROWS / STAGED\))", rf"\1if (warp % 4) {_LATE}\n\1\2"),
    ),
    # Tiles in plain arithmetic.
    r"x_part\[depth\]\[side\]": (
        (r"( +for \(int k = 0; k < INNER; k \+= DEPTH\) \{\n)", rf"\1if (threadIdx.x >= 64) {_LATE}\n"),
        (r"(w_part\[depth\]\[side\] = .*\n +\}\n) +__syncthreads\(\);\n", r"\1"),
    ),
}
