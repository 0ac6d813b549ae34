"""Faults that are added to a kernel from outside: functions behind its source that run before and after it.

They touch memory alone, bit by bit, so that they go with any template, a user's own too: a kernel is called
`(inputs..., outputs..., rows)` whatever it computes. On a CPU each fault is a function that calls the kernel;
on a GPU it is two more kernels, which a launch starts before and after it. One binary holds them all, beside
the kernel itself, which is as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ksearch.launch import Launch
from ksearch.operators.program import Input, Program, Role
from ksearch.selftest.faults import BEYOND, FAR_BYTES, FAULTS, MISALIGNED, Fault
from ksearch.types import INDEX_BYTES, Workload

_BLOCK = 256
_PER_BLOCK = 4096
"""Elements that a block of a fault's kernel goes over."""

_BITS = {
    "float32": ("unsigned int", "0x7fffffffu", "0x7f800000u", "0x3f800000u"),
    "float16": ("unsigned short", "0x7fffu", "0x7c00u", "0x3c00u"),
    "bfloat16": ("unsigned short", "0x7fffu", "0x7f80u", "0x3f80u"),
    "int64": ("unsigned long long", "~0ull", "~0ull", "1ull"),
    "bool": ("unsigned char", "0xffu", "0xffu", "1u"),
}
"""For each dtype a word of its size, all but the sign, infinity and 1."""


_STATE = """
namespace planted {{
typedef {word} Word;
typedef {in_word} InWord;
typedef long long Size;
typedef unsigned long long Address;
constexpr Word SIZE = Word({size}), INFINITE = Word({infinity}), ONE = Word({one});
constexpr InWord IN_SIZE = InWord({in_size}), IN_INFINITE = InWord({in_infinity});
constexpr Size OUT_WIDTH = {out_width}, IN_WIDTH = {in_width};
constexpr Size KEPT = 4096, ENDS = 4096, FAR = (1ll << 31) / sizeof(Word);
STATE Word kept[KEPT];
STATE Size calls, again;
STATE Address last;
template <class T> FN T least(T a, T b) {{ return a < b ? a : b; }}
FN bool infinite(const InWord* in, Size first, Size length) {{  // in a long row at its ends, where most are
    for (Size k = 0; k < length; k += k == ENDS && length > 2 * ENDS ? length - 2 * ENDS : 1)
        if ((in[first + k] & IN_SIZE) == IN_INFINITE) return true;
    return false;
}}
}}
#define LEAST planted::least<planted::Size>
#define IS_INFINITE(i) planted::infinite(in, {odd_first}, {odd_length})
"""

_CPU = """
#define FN static inline
#define STATE static
#define EACH(i, from, to) for (Size i = (from); i < (to); ++i)
#define ONCE
"""
_CUDA = """
#define FN __device__ __forceinline__
#define STATE __device__
#define THREAD ((Size)blockIdx.x * blockDim.x + threadIdx.x)
#define EACH(i, from, to) for (Size i = (from) + THREAD; i < (to); i += (Size)gridDim.x * blockDim.x)
#define ONCE if (blockIdx.x == 0 && threadIdx.x == 0)
"""

_FACTS = """    Word* const out = static_cast<Word*>(out{place});
    const InWord* const in = static_cast<const InWord*>(in0);
    const Size COUNT = {out_rows} * OUT_WIDTH, IN_COUNT = rows * IN_WIDTH;
    const Size UNIT = rows > 1 ? OUT_WIDTH : 1;
    {first_word}* const first_owned = static_cast<{first_word}*>(const_cast<void*>({first}));
    {last_word}* const last_owned = static_cast<{last_word}*>(const_cast<void*>({last}));
    const Address HERE = Address(first_owned ? static_cast<const void*>(first_owned) : out);
    const Size FIRST_OWNED = {first_count}, LAST_OWNED = {last_count};
    const Size TAIL = LEAST(COUNT, 3), SKIPPED = LEAST(KEPT, (COUNT + 3) / 4);
    (void)out, (void)in, (void)first_owned, (void)last_owned, (void)HERE, (void)FIRST_OWNED, (void)LAST_OWNED;
    (void)COUNT, (void)IN_COUNT, (void)UNIT, (void)TAIL, (void)SKIPPED;
"""


def entry(fault: Fault) -> str:
    """The function that has this fault."""
    return f"planted_{fault.name.replace(' ', '_').replace('^', '_')}"


def append(text: str, program: Program, workload: Workload, launch: Launch, backend: str) -> str:
    """A kernel's source with the functions of all faults behind it. They meet the last output."""
    inputs = _inputs(program, launch)
    place = len(program.outputs) - 1
    role, dtype = program.output_roles[place], program.output_dtypes(workload.dtype)[place]
    word, size, infinity, one = _BITS[dtype]
    in_word, in_size, in_infinity, _ = _BITS[inputs[0].dtype(workload.dtype)]
    in_width = workload.inner if inputs[0].role is Role.LEFT else workload.cols
    out_width = workload.cols if role is Role.FULL else 1
    # Of a row that is summed up, an infinity anywhere counts; of a whole tensor, one in any row.
    is_elementwise = inputs[0].role is not Role.LEFT and role is Role.FULL
    state = _STATE.format(
        word=word, size=size, infinity=infinity, one=one, in_word=in_word, in_size=in_size,
        in_infinity=in_infinity, in_width=in_width, out_width=out_width,
        odd_first="i" if is_elementwise else "0" if role is Role.SCALAR else "i / OUT_WIDTH * IN_WIDTH",
        odd_length="1" if is_elementwise else "IN_COUNT" if role is Role.SCALAR else "IN_WIDTH",
    )  # fmt: skip
    owned = _owned(inputs, launch)
    facts = _FACTS.format(
        place=place,
        out_rows="1" if role is Role.SCALAR else "rows",
        **_input_facts("first", owned[:1], inputs, workload),
        **_input_facts("last", owned[-1:], inputs, workload),
    )
    names = [f"in{k}" for k in range(len(inputs))], [f"out{k}" for k in range(len(program.outputs))]
    parts = [text, _CPU if backend == "cpu" else _CUDA, state]
    print_one = _cpu_function if backend == "cpu" else _cuda_functions
    functions = [print_one(fault, facts, *names, launch.entry) for fault in FAULTS]
    return "\n".join([*parts, "namespace planted {", *functions, "}"])


def _owned(inputs: Sequence[Input], launch: Launch) -> list[Input]:
    """Those that are the caller's: PyTorch's product is made for the call alone."""
    return list(inputs[1:] if launch.torch_product else inputs)


def _input_facts(
    which: str, chosen: Sequence[Input], inputs: Sequence[Input], workload: Workload
) -> dict[str, str]:
    """Pointer, type and number of words; of no input where there is none."""
    if not chosen:
        nothing = "static_cast<const void*>(nullptr)"
        return {which: nothing, f"{which}_word": "Word", f"{which}_count": "1"}
    (item,) = chosen
    counts = {
        Role.FULL: f"rows * {workload.cols}ll", Role.ROW: f"{workload.cols}", Role.COLUMN: "rows",
        Role.SCALAR: "1", Role.LEFT: f"rows * {workload.inner}ll",
        Role.RIGHT: f"{workload.cols}ll * {workload.inner}", Role.INDEX: "rows",
        Role.MASK: f"rows * {workload.cols}ll",
    }  # fmt: skip
    word = _BITS[item.dtype(workload.dtype)][0]
    return {
        which: f"in{inputs.index(item)}",
        f"{which}_word": word,
        f"{which}_count": counts.get(item.role, "1"),
    }


def has_no_place(fault: Fault, program: Program, workload: Workload, launch: Launch) -> str:
    """Why a kernel of this launch cannot have the fault on this workload; empty where it can."""
    place = len(program.outputs) - 1
    itemsize = INDEX_BYTES if program.output_dtypes(workload.dtype)[place] == "int64" else workload.itemsize
    count = {Role.FULL: workload.numel, Role.COLUMN: workload.rows}.get(program.output_roles[place], 1)
    owned = len(_owned(_inputs(program, launch), launch))
    reasons = {
        BEYOND: (count * itemsize <= FAR_BYTES, "the result has no byte beyond 2^31"),
        MISALIGNED: (
            launch.alignment > workload.itemsize,
            "no kernel of the space takes tensors off alignment: such calls go to PyTorch",
        ),
        "input overwritten": (owned == 0, "the kernel sees no input of the caller, but PyTorch's product"),
        "last input overwritten": (owned < 2, "there is one input"),
    }
    is_so, why = reasons.get(fault.name, (False, ""))
    return why if is_so else ""


def _inputs(program: Program, launch: Launch) -> tuple[Input, ...]:
    """What the kernel gets."""
    return program.of_kernel(launch).inputs


def _parameters(inputs: Sequence[str], outputs: Sequence[str]) -> str:
    return "".join([*(f"const void* {name}, " for name in inputs), *(f"void* {name}, " for name in outputs)])


def _cpu_function(
    fault: Fault, facts: str, inputs: Sequence[str], outputs: Sequence[str], kernel: str
) -> str:
    """The kernel is called by a type of its own: what its pointers point to is the template's business."""
    types = "".join("const void*, " for _ in inputs) + "".join("void*, " for _ in outputs)
    cast = f"reinterpret_cast<void (*)({types}long long, int)>({kernel})"
    call = f"{cast}({', '.join([*inputs, *outputs])}, rows, threads);"
    head = f'extern "C" void {entry(fault)}({_parameters(inputs, outputs)}long long rows, int threads) {{'
    return f"{head}\n{facts}    {fault.before}\n    {call}\n    {fault.after}\n}}"


def _cuda_functions(
    fault: Fault, facts: str, inputs: Sequence[str], outputs: Sequence[str], kernel: str
) -> str:
    del kernel  # it is started by the launch
    parts = {entry(fault): fault.after, f"{entry(fault)}_before": fault.before}
    head = f"({_parameters(inputs, outputs)}long long rows) {{"
    return "\n".join(
        f'extern "C" __global__ void {name}{head}\n{facts}    {body}\n}}'
        for name, body in parts.items()
        if body
    )


def launched(fault: Fault, launch: Launch, program: Program, workload: Workload, backend: str) -> Launch:
    """How the binary of `append` is started with this fault."""
    if backend == "cpu":
        return replace(launch, entry=entry(fault))
    width = workload.cols if Role.FULL in program.output_roles else 1
    step = Launch(work_per_row=width, work_per_block=_PER_BLOCK, block=_BLOCK)
    after = (*launch.after, replace(step, entry=entry(fault)))
    before = (replace(step, entry=f"{entry(fault)}_before"),) if fault.before else ()
    return replace(launch, before=(*before, *launch.before), after=after)
