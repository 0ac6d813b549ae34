"""What the CPU families share: the vectors and threads of a machine and the facts that templates print."""

from __future__ import annotations

from typing import Any

from ksearch.families.channels import channel_variables
from ksearch.launch import ANY_ROWS, Launch
from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Target, Workload

_SIMD_BYTES = {"avx512": 64, "avx2": 32}
_ELEMENTS = {"float32": "float", "float16": "ks::float16", "bfloat16": "ks::bfloat16"}
_ALL_THREADS_NUMEL = 1 << 20
"""From here on fewer than half of the threads never won (2 cores, softmax and sigmoid: half the speed)."""

_ONE_THREAD_NUMEL = 1 << 14
"""Below, one core is done in less than 10 us, and a second one is not worth its 2 us of starting."""


def simd_bytes(target: Target, cols: int) -> tuple[int, ...]:
    """Vector sizes worth trying, widest first; narrow ones only where a row does not fill a wider one."""
    widest = _SIMD_BYTES.get(target.arch.rpartition("-")[2], 16)
    return tuple(
        size for size in (64, 32, 16) if size <= widest and (size >= widest // 2 or 4 * cols < 2 * size)
    )


def thread_counts(workload: Workload, target: Target) -> tuple[int, ...]:
    """All threads first, then fewer: starting them costs microseconds, which small tensors do not repay."""
    units = target.units
    counts = (
        {units, units // 2} if workload.numel >= _ALL_THREADS_NUMEL else {units, units // 2, units // 4, 1}
    )
    return tuple(sorted((n for n in counts if n > 0), reverse=True))


def for_size(workload: Workload) -> dict[str, ConfigValue]:
    """The part of a first guess that depends on the size: one thread, and the caches, for what is small."""
    return {"threads": 1, "store": "temporal"} if workload.numel < _ONE_THREAD_NUMEL else {}


def stores(target: Target) -> tuple[str, ...]:
    """`stream` writes past the caches; simd.hpp has it for AVX."""
    return ("stream", "temporal") if "-avx" in target.arch else ("temporal",)


def is_streamable(config: Config, workload: Workload) -> bool:
    """Whether a vector of outputs is wide enough to be streamed: 16 bytes."""
    return config["store"] != "stream" or int(config["simd"]) // 4 * workload.itemsize >= 16


def is_filled(config: Config, cols: int) -> bool:
    """Whether a row has at least one group of `unroll` vectors; else a smaller unroll is the same code."""
    unroll = int(config["unroll"])
    return unroll == 1 or int(config["simd"]) // 4 * unroll <= cols


def is_shared_out(config: Config, workload: Workload, split_cols: int) -> bool:
    """Whether each thread has rows enough for its tasks; with `split` whether rows, of at least `split_cols`
    columns, are so few that all threads share each."""
    threads, rows_per_task = int(config["threads"]), int(config["rows_per_task"])
    if config["split"]:
        return (
            threads > 1 and workload.cols >= split_cols and workload.rows < 4 * threads and rows_per_task == 0
        )
    return rows_per_task == 0 or (threads > 1 and rows_per_task * threads <= workload.rows)


def is_block(config: Config, stride: int) -> bool:
    """Whether a task of neighbouring rows has whole vectors, and less than twice the rows that there are."""
    block, width = int(config["block"]), int(config["simd"]) // 4
    return block >= width and (block == width or block < 2 * stride)


def launch(config: Config, workload: Workload) -> Launch:
    """Any address of an element will do: loads are unaligned, streamed stores peel to alignment."""
    most_rows = ANY_ROWS if workload.over else 1
    return Launch(threads=int(config["threads"]), alignment=workload.itemsize, most_rows=most_rows)


def common_variables(program: Program, workload: Workload) -> dict[str, Any]:
    return {
        "program": program,
        "outputs": program.output_names,
        "element": _ELEMENTS[workload.dtype],
        "spread": [item for item in program.inputs if not item.role.by_row],
        "row_values": [item for item in program.inputs if item.role.by_row],
        **channel_variables(program, workload),
    }
