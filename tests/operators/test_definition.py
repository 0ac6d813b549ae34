from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ksearch.errors import BadShape, TraceError, UnsupportedDtype, UsageError
from ksearch.operators import Op
from ksearch.operators.signature import read_signature


def make(function: Any, **roles: str) -> Op:
    inputs, options = read_signature(function, roles)
    return Op(function.__name__, function, inputs, options, f"/nowhere/ops.py:{function.__name__}")


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
