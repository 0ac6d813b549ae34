from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ksearch.errors import BadShape, TraceError, UnsupportedDtype, UsageError
from ksearch.operators import Op, definition
from ksearch.operators.cost import cost_of
from ksearch.operators.program import Input, Role
from ksearch.operators.signature import read_signature


def make(function: Any, **roles: Any) -> Op:
    read = read_signature(function, roles)
    location = f"/nowhere/ops.py:{function.__name__}"
    return Op(function.__name__, function, read.inputs, read.options, location, choices=read.choices)


def rmsnorm(x: Any, weight: Any, *, eps: float = 1e-6, scale: float = 1.0) -> Any:
    return F.rms_norm(x, x.shape[-1:], weight, eps) * scale


def test_workload_fills_every_field() -> None:
    op = make(rmsnorm)
    workload = op.workload([2, 3, 8], "bfloat16", scale=2)
    assert (workload.op, workload.shape, workload.dtype) == ("rmsnorm", (2, 3, 8), "bfloat16")
    assert workload.options == (("eps", 1e-6), ("scale", 2.0))
    assert workload.program == op.program(scale=2.0).digest != op.program().digest
    assert workload == op.workload((2, 3, 8), str(torch.bfloat16), eps=1e-6, scale=2.0)
    assert workload.key != op.workload((2, 3, 8), "bfloat16").key


def test_workload_refuses_what_cannot_be() -> None:
    op = make(rmsnorm)
    with pytest.raises(UsageError, match="rmsnorm has no option 'epsilon'; its options: eps, scale"):
        op.workload((4, 4), epsilon=1.0)
    with pytest.raises(
        UnsupportedDtype, match="no kernel for float64; supported: float32, float16, bfloat16"
    ):
        op.workload((4, 4), "float64")
    for shape in ((), (4, 0), (-1, 4)):
        with pytest.raises(BadShape):
            op.workload(shape)


def test_the_function_must_keep_shape_and_dtype() -> None:
    def cast(x: Any) -> Any:
        return x.float() * 2

    def grows(x: Any, y: Any) -> Any:
        return x + y

    def fixed(x: Any) -> Any:
        return F.layer_norm(x, (8,))

    assert make(cast).workload((4, 4)).dtype == "float32"
    with pytest.raises(UnsupportedDtype, match=r"gives float32 for bfloat16: end it with .to\(x.dtype\)"):
        make(cast).workload((4, 4), "bfloat16")
    assert make(fixed).workload((4, 8)).cols == 8
    with pytest.raises(BadShape, match="fixed does not run on shape 4x9"):
        make(fixed).workload((4, 9))
    assert make(grows, y="row").workload((4, 9)).shape == (4, 9)


def test_every_output_must_keep_the_dtype() -> None:
    def wide(x: Any) -> Any:
        return x * 2, x.float() + 1

    assert make(wide).workload((4, 4)).dtype == "float32"
    with pytest.raises(
        UnsupportedDtype, match=r"output 1 of wide gives float32 for float16: end it with .to"
    ):
        make(wide).workload((4, 4), "float16")


def test_programs_are_traced_once_per_options() -> None:
    calls = []

    def counted(x: Any, *, slope: float = 0.5) -> Any:
        calls.append(slope)
        return x * slope

    op = make(counted)
    assert op.program() is op.program(slope=0.5)
    assert op.program() is not op.program(slope=0.25)
    assert calls == [0.5, 0.25]


def test_a_function_that_cannot_be_traced_says_so_on_use() -> None:
    def sorts(x: Any) -> Any:
        return x.sort(dim=-1)[0]

    with pytest.raises(TraceError, match="sort is not supported"):
        make(sorts).workload((4, 4))


def test_input_shapes_follow_the_roles() -> None:
    def function(x: Any, weight: Any, s: Any, y: Any) -> Any:
        return x * weight * s + y

    op = make(function, s="column")
    assert op.input_shapes((2, 3, 8)) == [(2, 3, 8), (8,), (2, 3, 1), (2, 3, 8)]
    assert op.input_shapes((8,)) == [(8,), (8,), (1,), (8,)]


def gated(x: Any, weight: Any, bias: Any = None, *, by: float = 2.0) -> Any:
    return x * weight * by + (0 if bias is None else bias)


def test_the_role_of_a_tensor_is_an_option() -> None:
    op = make(gated, weight=("full", "row", "column", "scalar"))
    assert op.options == {"weight": "full", "bias": "row", "by": 2.0}
    workload = op.workload((4, 8), weight="scalar", bias="none")
    assert workload.options == (("bias", "none"), ("by", 2.0), ("weight", "scalar"))
    programs = {op.workload((4, 8), weight=role).program for role in op.choices["weight"]}
    assert len(programs) == 4
    with pytest.raises(UsageError, match="gated: option weight is 'none', but must be one of full, row, col"):
        op.workload((4, 8), weight="none")
    with pytest.raises(UsageError, match="option bias is 3, but must be one of row, none"):
        op.workload((4, 8), bias=3)
    assert op.parse_option("bias", "none") == "none"
    with pytest.raises(UsageError, match="must be one of row, none"):
        op.parse_option("bias", "full")


def test_inputs_and_the_function_follow_the_choices() -> None:
    op = make(gated, weight=("full", "column", "scalar"))
    absent = {"weight": "scalar", "bias": "none"}
    assert [(item.name, item.role.value) for item in op.inputs_for({})] == [
        ("x", "full"), ("weight", "full"), ("bias", "row"),
    ]  # fmt: skip
    assert op.inputs_for(absent) == op.program(**absent).inputs == (Input("x"), Input("weight", Role.SCALAR))
    assert op.input_shapes((2, 3, 8), absent) == [(2, 3, 8), ()]
    assert op.input_shapes((2, 3, 8), {"weight": "column"}) == [(2, 3, 8), (2, 3, 1), (8,)]
    x, two = torch.randn(3, 8), torch.tensor(2.0)
    assert torch.equal(op.reference(x, two, **absent), x * 4)
    assert torch.equal(op.reference(x, x, torch.ones(8), by=1.0), x * x + 1)
    with pytest.raises(UsageError, match=r"takes 2 tensors \(x, weight\), not 3"):
        op.reference(x, two, two, **absent)


def test_programs_of_an_option_that_always_changes_are_not_kept_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(definition, "_MOST_KEPT", 8)
    op = make(gated)
    digests = {op.workload((4, 8), by=step / 7).program for step in range(20)}
    assert len(digests) == 20
    assert len(op._programs) <= 8
    assert len(op._checked) <= 8
    assert op.program(by=1.0) is op.program(by=1.0)


def test_a_single_role_is_no_option() -> None:
    one = make(gated, weight=("column",), bias=("row", "none"))
    assert one.options == {"bias": "row", "by": 2.0}
    assert dict(one.workload((4, 8)).options) == {"bias": "row", "by": 2.0}
    assert one.program().inputs[1].role is Role.COLUMN


def test_the_cost_counts_only_what_is_there() -> None:
    op = make(gated, weight=("full", "row", "column", "scalar"))
    bytes_ = {}
    for role in ("full", "row", "column", "scalar"):
        options = {"weight": role, "bias": "none"}
        bytes_[role] = cost_of(op.program(**options), op.workload((4, 8), **options)).bytes // 4
    assert bytes_ == {"full": 96, "row": 72, "column": 68, "scalar": 65}


def test_reference_is_the_function_in_any_dtype() -> None:
    op = make(rmsnorm)
    x, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    result = op.reference(x, weight, eps=0.1)
    assert result.dtype == torch.float64
    assert torch.equal(result, F.rms_norm(x, (8,), weight, 0.1))
    with pytest.raises(UsageError, match=r"takes 2 tensors \(x, weight\), not 1"):
        op.reference(x)
    with pytest.raises(UsageError, match="no option 'foo'"):
        op.reference(x, weight, foo=1)


def test_options_from_text() -> None:
    assert make(rmsnorm).parse_option("eps", "1e-5") == 1e-5
    with pytest.raises(UsageError, match="its options: eps, scale"):
        make(rmsnorm).parse_option("foo", "1")
