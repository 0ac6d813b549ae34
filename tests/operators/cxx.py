"""Run a Schedule's C++ text, with the project's own `ks::` functions, in the plainest possible loop."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from ksearch.operators.program import Program, Role
from ksearch.operators.stages import Kind, Schedule

_INCLUDE = Path(__file__).parents[2] / "templates" / "include"
_NEUTRAL = {Kind.SUM: "0.0f", Kind.MAX: "-KS_INFINITY", Kind.MIN: "KS_INFINITY", Kind.SUM_EXP: "0.0f"}
_NEUTRAL[Kind.SUM_SQUARES] = "0.0f"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def run(program: Program, online: Collection[Kind], lanes: int, folder: Path, *tensors: Tensor) -> Tensor:
    """The first output; see `run_all`."""
    return run_all(program, online, lanes, folder, *tensors)[0]


def run_all(
    program: Program, online: Collection[Kind], lanes: int, folder: Path, *tensors: Tensor
) -> tuple[Tensor, ...]:
    """Every output for float32 `tensors`; T is a vector of `lanes` floats, the columns a multiple of it."""
    cols = tensors[0].shape[-1]
    assert cols % lanes == 0
    assert COMPILER is not None
    source, binary = folder / "schedule.cpp", folder / "schedule.so"
    source.write_text(_source(program, program.schedule(online), cols, lanes))
    flags = [
        "-O1",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
        "-Wno-unused-function",
        "-Wno-psabi",
    ]
    done = subprocess.run(
        [COMPILER, *flags, f"-I{_INCLUDE.parent}", str(source), "-o", str(binary)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs = tuple(torch.full_like(tensors[0], -12345.0) for _ in program.outputs)
    pointers, places = (
        (ctypes.c_void_p * len(each))(*(tensor.data_ptr() for tensor in each)) for each in (tensors, outputs)
    )
    rows = tensors[0].numel() // cols
    ctypes.CDLL(str(binary)).run(pointers, places, ctypes.c_longlong(rows))
    return outputs


def _source(program: Program, schedule: Schedule, cols: int, lanes: int) -> str:
    includes = [f'#include "include/{name}"' for name in ("simd.hpp", "math.hpp")]
    body = ["Row row{};"]
    for k, item in enumerate(program.inputs):
        if item.role.by_row:
            body.append(f"row.{item.name} = in[{k}][{'r' if item.role is Role.COLUMN else '0'}];")
    body.append("begin(row);")
    for number, stage in enumerate(schedule.stages):
        count = len(stage.reductions)
        neutral = ", ".join(_NEUTRAL[reduction.kind] for reduction in stage.reductions)
        body += [
            f"float total{number}[{count}] = {{{neutral}}};",
            "for (long long c = 0; c < COLS; c += LANES) {",
            *_load(program, stage.inputs),
            f"  T value[{count}]; stage{number}<T>(e, row, value);",
            f"  for (int l = 0; l < LANES; ++l) {{ float v[{count}];",
            f"    for (int k = 0; k < {count}; ++k) v[k] = lane(value[k], l);",
            *(
                f"    {_combine(f'total{number}', k, r.kind, r.anchor)}"
                for k, r in _sums_first(schedule, number)
            ),
            "  }",
            "}",
            *(f"row.{r.name} = total{number}[{k}];" for k, r in enumerate(stage.reductions)),
            f"finish{number}(row);",
        ]
    body += [
        "for (long long c = 0; c < COLS; c += LANES) {",
        *_load(program, schedule.output_inputs),
        f"  T value[{len(program.outputs)}]; output<T>(e, row, value);",
        f"  for (int k = 0; k < {len(program.outputs)}; ++k)",
        "    for (int l = 0; l < LANES; ++l) out[k][r * COLS + c + l] = lane(value[k], l);",
        "}",
    ]
    return "\n".join(
        [
            *includes,
            f"constexpr long long COLS = {cols};",
            f"constexpr int LANES = {lanes};",
            "using T = ks::Simd<LANES>::Float;",
            "static float lane(const T& v, int l) { return reinterpret_cast<const float*>(&v)[l]; }",
            schedule.text,
            'extern "C" void run(const float* const* in, float* const* out, long long rows) {',
            "  for (long long r = 0; r < rows; ++r) {",
            *body,
            "  }",
            "}",
        ]
    )


def _sums_first(schedule: Schedule, number: int) -> list:  # type: ignore[type-arg]
    """An online sum needs the old maximum or mean, so it comes before its anchor."""
    numbered = list(enumerate(schedule.stages[number].reductions))
    return sorted(numbered, key=lambda pair: pair[1].anchor is None)


def _combine(total: str, k: int, kind: Kind, anchor: int | None) -> str:
    if kind is Kind.SUM_EXP:
        both = f"ks::max({total}[{anchor}], v[{k}])"
        old = f"({total}[{k}] == 0.0f ? 0.0f : {total}[{k}] * ks::exp({total}[{anchor}] - {both}))"
        return f"{total}[{k}] = {old} + ks::exp(v[{k}] - {both});"
    if kind is Kind.SUM_SQUARES:  # Welford's update; c + l elements have been seen
        apart = f"(c + l == 0 ? 0.0f : v[{k}] - {total}[{anchor}] / float(c + l))"
        return f"{total}[{k}] += {apart} * {apart} * (float(c + l) / float(c + l + 1));"
    if kind is Kind.SUM:
        return f"{total}[{k}] += v[{k}];"
    return f"{total}[{k}] = ks::{kind.value}({total}[{k}], v[{k}]);"


def _load(program: Program, names: tuple[str, ...]) -> list[str]:
    lines = ["  Element<T> e;"]
    for k, item in enumerate(program.inputs):
        if item.name in names:
            at = f"in[{k}] + c" + (" + r * COLS" if item.role is Role.FULL else "")
            lines.append(f"  e.{item.name} = ks::load<T>({at});")
    return lines
