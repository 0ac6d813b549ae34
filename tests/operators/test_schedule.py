"""Stages and passes as the families rely on them, and the C++ text compiled and run against PyTorch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ksearch.operators.program import Input, Program, Role
from ksearch.operators.schedule import float_literal
from ksearch.operators.stages import Kind
from ksearch.operators.trace import trace
from tests.operators import cxx

ROLES = {"weight": Role.ROW, "bias": Role.ROW, "scale": Role.COLUMN, "heat": Role.SCALAR}


def rmsnorm(x: Any, weight: Any) -> Any:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def layernorm(x: Any, weight: Any, bias: Any) -> Any:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-5)


def log_softmax(x: Any) -> Any:
    return F.log_softmax(x, dim=-1)


def softmax(x: Any) -> Any:
    return torch.softmax(x, dim=-1)


def two_softmaxes(x: Any, scale: Any) -> Any:
    return torch.softmax(x, -1) + torch.softmax(torch.softmax(x * scale, -1) * 3, -1)


def column_math(x: Any, scale: Any) -> Any:
    peak = (x * scale).amax(-1, keepdim=True)
    centered = torch.where(x > peak * 0.5, x / (scale.abs() + 1), scale / x.shape[-1])
    low = centered.amin(dim=-1, keepdim=True)
    return torch.where(low < -1, centered - low, centered + torch.minimum(peak, low)) * torch.exp(low)


def tempered(x: Any, heat: Any, scale: Any) -> Any:
    return torch.softmax(x / (heat.abs() + 1) + heat * scale, -1) * heat


def every_function(x: Any) -> Any:
    """Each function of `ks::` that a lowering can emit, so that none is missing from the headers."""
    positive = x.abs() + 0.5
    total = torch.exp(x / 4) + torch.exp2(x) + torch.expm1(x) + x.sigmoid() + x.tanh() + x.erf()
    total = total + torch.log(positive) + torch.log2(positive) + torch.log1p(positive)
    total = total + positive.sqrt() + positive.rsqrt() + torch.sin(x) + torch.cos(x)
    total = total + x.floor() + x.ceil() + x.round() + torch.pow(positive, 1.3)
    return total + torch.maximum(x, total) - torch.minimum(x, -total)


OPS: dict[str, Callable[..., Any]] = {
    "swish": lambda x: x * torch.sigmoid(x),
    "tanh_gelu": lambda x: F.gelu(x, approximate="tanh"),
    "erf_gelu": lambda x: F.gelu(x, approximate="none"),
    "add_scaled": lambda x, s: x + s * torch.sigmoid(x),
    "logic": lambda x: torch.where((x > 0) | ~(x >= -1), torch.sign(x), x.round()),
    "every_function": every_function,
    "rmsnorm": rmsnorm,
    "layernorm": layernorm,
    "l2norm": lambda x: F.normalize(x, dim=-1),
    "log_softmax": log_softmax,
    "softmax": softmax,
    "two_softmaxes": two_softmaxes,
    "column_math": column_math,
    "tempered": tempered,
}


def program_of(function: Callable[..., Any]) -> Program:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return trace(function, [Input(name, ROLES.get(name, Role.FULL)) for name in names], {})


def tensors_of(program: Program, rows: int, cols: int) -> list[torch.Tensor]:
    shapes = {Role.FULL: (rows, cols), Role.ROW: (cols,), Role.COLUMN: (rows, 1), Role.SCALAR: ()}
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shapes[item.role], generator=generator) * 2 for item in program.inputs]


@pytest.mark.skipif(cxx.COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("name", OPS)
def test_compiled_text_agrees_with_torch(name: str, lanes: int, tmp_path: Path) -> None:
    program = program_of(OPS[name])
    tensors = tensors_of(program, rows=7, cols=40)
    expected = OPS[name](*(tensor.double() for tensor in tensors)).float()
    for online in ((), program.online_kinds) if program.online_kinds else ((),):
        result = cxx.run(program, online, lanes, _folder(tmp_path, str(online)), *tensors)
        torch.testing.assert_close(result, expected, rtol=2e-5, atol=2e-6)


def sum_and_norm(x: Any, s: Any, weight: Any) -> Any:
    total = x + s
    return rmsnorm(total, weight), total, s


@pytest.mark.skipif(cxx.COMPILER is None, reason="no C++ compiler")
def test_compiled_text_of_several_outputs_agrees_with_torch(tmp_path: Path) -> None:
    program = program_of(sum_and_norm)
    tensors = tensors_of(program, rows=7, cols=40)
    expected = sum_and_norm(*(tensor.double() for tensor in tensors))
    for result, right in zip(cxx.run_all(program, (), 8, tmp_path, *tensors), expected, strict=True):
        torch.testing.assert_close(result, right.float(), rtol=2e-5, atol=2e-6)


def test_several_outputs_share_what_they_are_computed_from() -> None:
    schedule = program_of(sum_and_norm).schedule()
    assert schedule.output_inputs == ("x", "s", "weight")
    output = schedule.text[schedule.text.index("void output") :]
    assert "T (&value)[3]" in output
    assert output.count("e.x + e.s") == 1
    assert output.count("value[") == 3
    assert "value[2] = e.s;" in output


@pytest.mark.skipif(cxx.COMPILER is None, reason="no C++ compiler")
def test_special_values_survive_the_text(tmp_path: Path) -> None:
    program = program_of(lambda x: torch.where(x < -math.inf, math.nan, torch.relu(x) + x.clamp(-1, 1e39)))
    x = torch.tensor([[math.nan, math.inf, -math.inf, 0.0, -3.0, 3.0, 1e-40, -1e38]])
    expected = torch.relu(x) + x.clamp(-1, math.inf)
    assert torch.equal(cxx.run(program, (), 8, tmp_path, x).nan_to_num(99), expected.nan_to_num(99))


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def test_softmax_takes_two_passes_or_one() -> None:
    program = program_of(softmax)
    two_step, online = program.schedule(), program.schedule({Kind.SUM_EXP})
    assert [[r.kind for r in stage.reductions] for stage in two_step.stages] == [[Kind.MAX], [Kind.SUM]]
    (stage,) = online.stages
    assert [r.kind for r in stage.reductions] == [Kind.MAX, Kind.SUM_EXP]
    assert stage.reductions[1].anchor == 0
    assert stage.inputs == ("x",)
    assert "value[0] = e.x;" in online.text
    assert "value[1] = e.x;" in online.text


def test_softmax_divides_once_per_row() -> None:
    text = program_of(softmax).schedule().text
    assert text.count(" / ") == 1
    assert " / " in text[text.index("void finish1") : text.index("void output")]


def test_other_divisors_stay_divisions() -> None:
    text = program_of(lambda x: x / x.sum(-1, keepdim=True)).schedule().text
    assert "e.x / ks::splat<T>(row.r0)" in text  # its reciprocal may overflow where the quotient does not


def test_online_needs_max_and_sum_of_one_value() -> None:
    assert program_of(log_softmax).online_kinds == {Kind.SUM_EXP}
    assert program_of(lambda x: torch.softmax(x * 2, -1)).online_kinds == {Kind.SUM_EXP}
    assert not program_of(lambda x: x.exp() / x.exp().sum(-1, keepdim=True)).online_kinds
    shifted = program_of(lambda x: x / (x - (2 * x).amax(-1, keepdim=True)).exp().sum(-1, keepdim=True))
    assert not shifted.online_kinds


def test_squares_around_the_mean_share_the_pass_of_the_mean() -> None:
    program = program_of(layernorm)
    assert program.online_kinds == {Kind.SUM_SQUARES}
    (stage,) = program.schedule(program.online_kinds).stages
    assert [r.kind for r in stage.reductions] == [Kind.SUM, Kind.SUM_SQUARES]
    assert stage.reductions[1].anchor == 0
    assert len(program.schedule().stages) == 2
    assert not program_of(lambda x: x * (x * x).sum(-1, keepdim=True)).online_kinds
    around_one = program_of(lambda x: x * ((x - 1.0) * (x - 1.0)).sum(-1, keepdim=True))
    assert not around_one.online_kinds


def test_stages_follow_dependencies_and_name_their_inputs() -> None:
    schedule = program_of(layernorm).schedule()
    assert [stage.inputs for stage in schedule.stages] == [("x",), ("x",)]
    assert schedule.output_inputs == ("x", "weight", "bias")
    nested = program_of(two_softmaxes).schedule()
    assert [len(stage.reductions) for stage in nested.stages] == [2, 2, 1, 1]


def test_independent_reductions_share_a_stage() -> None:
    def function(x: Any) -> Any:
        return (x - x.amin(-1, keepdim=True)) / (x.amax(-1, keepdim=True) + x.mean(-1, keepdim=True))

    (stage,) = program_of(function).schedule().stages
    assert {r.kind for r in stage.reductions} == {Kind.MIN, Kind.MAX, Kind.SUM}


def test_row_values_are_computed_once_per_row() -> None:
    text = program_of(rmsnorm).schedule().text
    finish = text[text.index("void finish0") : text.index("void output")]
    assert "ks::rsqrt" in finish
    assert "float(COLS)" in finish
    assert "rsqrt" not in text[text.index("void output") :]
    assert re.search(r"struct Row \{ float r0; float v\d+; \};", text)


def test_passes_compute_only_what_they_need() -> None:
    text = program_of(layernorm).schedule().text
    assert "weight" not in text[text.index("void stage0") : text.index("void output")]
    pointwise = program_of(lambda x: x * 2).schedule()
    assert pointwise.stages == ()
    assert "struct Row { float unused; };" in pointwise.text


def test_scalar_inputs_enter_by_the_row_and_are_derived_from_once() -> None:
    schedule = program_of(lambda x, heat: x * (heat + 1)).schedule()
    assert schedule.output_inputs == ("x",)
    assert "struct Row { float heat; float v" in schedule.text
    assert "= row.heat + 1.0f;" in schedule.text[schedule.text.index("void begin") :]


def test_column_inputs_enter_by_the_row() -> None:
    schedule = program_of(lambda x, scale: x * (scale + 1)).schedule()
    assert schedule.output_inputs == ("x",)
    assert "template <class T> struct Element { T x; };" in schedule.text
    assert "= row.scale + 1.0f;" in schedule.text[schedule.text.index("void begin") :]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.0f"),
        (-0.5, "-0.5f"),
        (-0.0, "-0.0f"),
        (0.1, "0.1f"),
        (1e-6, "1e-06f"),
        (math.pi, "3.1415927f"),
        (16777217.0, "16777216.0f"),
        (3.4028234663852886e38, "3.4028235e+38f"),
        (1e39, "KS_INFINITY"),
        (-math.inf, "-KS_INFINITY"),
        (math.nan, "KS_NAN"),
        (1e-45, "1e-45f"),
    ],
)
def test_float_literals_read_back_the_same(value: float, text: str) -> None:
    assert float_literal(value) == text
