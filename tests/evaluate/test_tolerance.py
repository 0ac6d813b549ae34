from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F

from ksearch.evaluate import inputs
from ksearch.evaluate.references import references
from ksearch.evaluate.tolerance import Judgement, Reference, read
from ksearch.operators.program import Input

Function = Callable[[torch.Tensor], torch.Tensor]
ROWS, COLS = 19 * 6, 1000


def softmax(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(-1)


def values(
    dtype: torch.dtype, rows: int = ROWS, cols: int = COLS, pointwise: bool = False, seed: int = 3
) -> torch.Tensor:
    x = torch.empty(rows, cols, dtype=dtype)
    parts = inputs.split(rows, cols, flat=False, max_elements=rows * cols)
    inputs.fill(x, Input("x"), parts, seed, most=inputs.largest(dtype, cols, pointwise=pointwise))
    return x


def reference_of(
    function: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    *,
    pointwise: bool,
    first_kind: int = 0,
) -> Reference:
    """What is right for the one output of `function`."""
    (reference,) = references(
        lambda *tensors: (function(*tensors),), inputs, pointwise=pointwise, first_kind=first_kind
    )
    return reference


def judge(function: Function, candidate: Function, dtype: torch.dtype, pointwise: bool = False) -> Judgement:
    x = values(dtype, pointwise=pointwise)
    reference = reference_of(function, [x], pointwise=pointwise)
    return read([reference.judge(candidate(x.clone())).tolist()])


def is_right(judgement: Judgement) -> bool:
    return judgement.error <= 1.0


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("function", "other", "pointwise"),
    [
        (
            softmax,
            lambda x: ((e := (x.float() - x.float().amax(-1, True)).exp()) / e.sum(-1, True)).to(x.dtype),
            False,
        ),
        (torch.sigmoid, lambda x: (1 / (1 + (-x.float()).exp())).to(x.dtype), True),
        (F.silu, lambda x: (x.float() / (1 + (-x.float()).exp())).to(x.dtype), True),
        (
            lambda x: F.layer_norm(x, (x.shape[-1],)),
            lambda x: (
                (x.float() - x.float().mean(-1, True))
                * (x.float().var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()
            ).to(x.dtype),
            False,
        ),
        (torch.exp, lambda x: (x.float() * math.log2(math.e)).double().exp2().to(x.dtype), True),
        (torch.relu, lambda x: x.clamp(min=0), True),
    ],
    ids=["softmax", "sigmoid", "silu", "layer_norm", "exp", "relu"],
)
def test_another_right_way_is_right(
    function: Function, other: Function, pointwise: bool, dtype: torch.dtype
) -> None:
    assert is_right(judge(function, function, dtype, pointwise))
    if function is torch.exp and dtype is torch.float32:
        return  # x * log2(e) rounded to float32 is off by 40 units at x = 50: PyTorch's is not
    judgement = judge(function, other, dtype, pointwise)
    assert is_right(judgement), judgement


def test_an_inaccurate_exponential_is_not_right() -> None:
    wrong = judge(torch.exp, lambda x: (x * math.log2(math.e)).exp2(), torch.float32, pointwise=True)
    assert not is_right(wrong)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros_like,
        lambda x: x.exp() / x.exp().sum(-1, True),
        lambda x: softmax(x).nan_to_num(nan=0.0),
        lambda x: softmax(torch.cat([x[:, :-1], x[:, :1]], 1)),
        lambda x: softmax(x) * 1.02,
        lambda x: softmax(x).roll(1, 0),
    ],
    ids=["zeros", "no max", "no NaN", "last column", "two percent", "rows shifted"],
)
def test_wrong_is_wrong_in_every_dtype(wrong: Function, dtype: torch.dtype) -> None:
    assert not is_right(judge(softmax, wrong, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_sums_are_seen_through_the_rounding_of_the_result(dtype: torch.dtype) -> None:
    """The sum is 0.6 % too small: less than the rounding of a bfloat16 result, which is 0.8 %."""

    def careless(x: torch.Tensor) -> torch.Tensor:
        e = (x.float() - x.float().amax(-1, True)).exp()
        return (e / (e.sum(-1, True) * 0.994)).to(x.dtype)

    assert not is_right(judge(softmax, careless, dtype))


def test_small_elements_count_beside_large_ones() -> None:
    assert not is_right(judge(softmax, lambda x: (s := softmax(x)).masked_fill(s < 1e-9, 0.0), torch.float32))
    # What the hardware flushes to zero (below 1.2e-38) does not.
    flushed = judge(softmax, lambda x: (s := softmax(x)).masked_fill(s < 1.2e-38, 0.0), torch.float32)
    assert is_right(flushed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_of_the_dtype_is_right_either_way(dtype: torch.dtype) -> None:
    """float64 knows 2 * max; PyTorch says inf. Saturating is neither."""
    info = torch.finfo(dtype)
    x = torch.full((19, 8), info.max, dtype=dtype)
    reference = reference_of(lambda t: t * 2, [x], pointwise=True)
    assert is_right(read([reference.judge(torch.full_like(x, torch.inf)).tolist()]))
    assert not is_right(read([reference.judge(torch.full_like(x, info.max)).tolist()]))
    assert not is_right(read([reference.judge(torch.full_like(x, -torch.inf)).tolist()]))
    assert math.isnan(read([reference.judge(torch.full_like(x, torch.nan)).tolist()]).error)


def test_one_element_off_is_found_and_its_row_named() -> None:
    x = values(torch.float32)
    reference = reference_of(softmax, [x], pointwise=False)
    for row, kind in [(0, "uniform"), (9, "special:equal"), (57 + 13, "special:zeros")]:
        result = softmax(x)
        result[row, 500] *= 1.0001
        judgement = read([reference.judge(result).tolist()])
        assert judgement.error > 1
        assert judgement.kind == kind


def test_a_functions_own_float_means_double_in_the_reference() -> None:
    def upcast(x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (wide / wide.square().mean(-1, True, dtype=torch.float32).sqrt()).to(x.dtype)

    x = values(torch.float32)[:1]
    reference = reference_of(upcast, [x], pointwise=False)
    error = read([reference.judge(upcast(x)).tolist()]).errors["uniform"]
    assert 0 < error.candidate == error.baseline  # against itself in float32 it would be 0


def test_errors_of_parts_are_put_together() -> None:
    x = values(torch.float32)
    vectors = []
    for part in inputs.split(ROWS, COLS, flat=False, max_elements=7 * COLS):
        block = x[part.first : part.first + part.lines]
        reference = reference_of(softmax, [block], pointwise=False, first_kind=part.first)
        result = softmax(block)
        if part.first == 7:
            result[5, 3] *= 1.5  # row 12 of the whole: uniform
        vectors.append(reference.judge(result).tolist())
    whole = read(vectors)
    assert whole.error > 1
    assert whole.kind == "uniform"
    assert set(whole.errors) == set(inputs.REGIMES)


@pytest.mark.parametrize("seed", range(5))
def test_cancellation_does_not_reject_by_luck(seed: int) -> None:
    """Near x = -0.25 both terms cancel and every relative error is luck; fused multiply-add is as right."""
    x = values(torch.float32, 1900, pointwise=True, seed=seed)
    reference = reference_of(lambda t: t + 0.5 * t.sigmoid(), [x], pointwise=True)
    fused = (x.double() + (0.5 * x.sigmoid()).double()).float()
    assert is_right(read([reference.judge(fused).tolist()]))


def test_cancellation_after_a_reduction_does_not_reject_by_luck() -> None:
    """Where weight * x and bias cancel, one rounding of either is any factor of what is left."""
    generator = torch.Generator().manual_seed(5)
    x = values(torch.float32)
    weight, bias = (torch.randn(COLS, generator=generator) for _ in range(2))

    def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (COLS,), weight, bias)

    blocks = [x, weight, bias]
    reference = reference_of(norm, blocks, pointwise=False)
    right = norm(*blocks)
    # One ulp of the terms on the smallest element of each row: far more than 4 times PyTorch's error there.
    nudged = right.clone()
    smallest = right.abs().nan_to_num(torch.inf).argmin(1, keepdim=True)
    nudged.scatter_add_(1, smallest, bias[smallest] * 2.0**-23)
    assert is_right(read([reference.judge(nudged).tolist()]))
    nudged.scatter_add_(1, smallest, bias[smallest] * 1e-3)
    assert not is_right(read([reference.judge(nudged).tolist()]))


def test_where_pytorch_overflows_the_best_possible_result_is_right() -> None:
    """Squares of 1e-5 are 0 in float16, and PyTorch divides by them; arithmetic in float32 need not."""

    def l2norm(x: torch.Tensor) -> torch.Tensor:
        return x / (x * x).sum(-1, keepdim=True).sqrt()

    x = torch.full((19, 100), 7.6e-6, dtype=torch.float16)
    assert l2norm(x).isinf().all()
    reference = reference_of(l2norm, [x], pointwise=False)
    assert is_right(read([reference.judge(l2norm(x.double()).half()).tolist()]))
    assert is_right(read([reference.judge(l2norm(x)).tolist()]))
    assert not is_right(read([reference.judge(0.99 * l2norm(x.double()).half()).tolist()]))


def multiplied_derivative(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Of an RMS norm with respect to x."""
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
    normal = x * inverse
    return (grad - normal * (grad * normal).mean(-1, keepdim=True)) * inverse


def divided_derivative(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The same, rounded elsewhere."""
    root = torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-5)
    normal = x / root
    inner = (grad * normal).sum(-1, keepdim=True) / x.shape[-1]
    return (grad - normal * inner) / root


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_where_pytorchs_own_elements_are_luck_other_right_ones_are_right(dtype: torch.dtype) -> None:
    """In few rows PyTorch's own may all be lucky ones: an element that is its whole row cancels there."""

    def narrow(formula: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *tensors: (
            formula(*tensors)
            if tensors[0].dtype is torch.float64
            else formula(*[each.float() for each in tensors]).to(dtype)
        )

    refused, passed_wrong = [], []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        grad, x = (torch.randn(37, 64, generator=generator).to(dtype) for _ in range(2))
        for tensor in (grad, x):
            tensor[:, 12] = 300.0
        reference = reference_of(narrow(multiplied_derivative), [grad, x], pointwise=False)
        other = narrow(divided_derivative)(grad, x)
        if not is_right(read([reference.judge(other).tolist()])):
            refused.append(seed)
        if is_right(read([reference.judge(other * 1.01).tolist()])):
            passed_wrong.append(seed)
    assert refused == []
    assert passed_wrong == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_line_that_cancels_is_not_judged_by_pytorchs_luck(dtype: torch.dtype) -> None:
    """Where the gradient is x, and all of one size, that of an RMS norm is 1e-10 of it, or 0."""

    def lucky(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return multiplied_derivative(grad.double(), x.double()).to(x.dtype)

    def off(by: float) -> torch.Tensor:
        """In float32, the inverse off by that many of its last places."""
        inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5) * (1 + by * 2.0**-23)
        normal = x.float() * inverse
        return ((grad - normal * (grad * normal).mean(-1, keepdim=True)) * inverse).to(dtype)

    generator = torch.Generator().manual_seed(1)
    grad, x = (torch.randn(38, 1003, generator=generator).to(dtype) for _ in range(2))
    for line in (15, 34):
        x[line] = torch.tensor([65504.0, -65504.0]).repeat(502)[:1003]
        grad[line] = x[line]
    reference = reference_of(lucky, [grad, x], pointwise=False)
    assert is_right(read([reference.judge(lucky(grad, x)).tolist()]))
    others = [off(by) for by in (-2.0, -1.0, 1.0, 2.0)]
    assert max(each[15].float().abs().amax() for each in others) > 1e-7, "which is 1e8 times what is exact"
    for other in others:
        assert is_right(read([reference.judge(other).tolist()]))
    wrong = off(0.0)
    wrong[34] += 1e-5
    judgement = read([reference.judge(wrong).tolist()])
    assert not is_right(judgement)
    assert judgement.kind == "special:largest"
    assert not is_right(read([reference.judge(off(4000.0)).tolist()])), "an inverse of float16"


@pytest.mark.parametrize(("function", "pointwise"), [(softmax, False), (torch.sigmoid, True)])
def test_a_small_error_shows_in_how_results_are_rounded(function: Function, pointwise: bool) -> None:
    """1e-3 up or down is a quarter of what rounding to bfloat16 takes, and doubles no other measure."""
    dtype = torch.bfloat16

    def off(x: torch.Tensor) -> torch.Tensor:
        wide = function(x.double())
        step = torch.rand(wide.shape, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
        return (wide * (1 + 1e-3 * step)).to(dtype)

    assert is_right(judge(function, lambda x: function(x.double()).to(dtype), dtype, pointwise))
    judgement = judge(function, off, dtype, pointwise)
    assert not is_right(judgement)
    assert judgement.error < 40


def test_an_op_that_rounds_in_between_may_be_rounded_so() -> None:
    dtype = torch.bfloat16
    judgement = judge(
        lambda x: F.silu(x) * x, lambda x: (F.silu(x.float()) * x.float() * 1.0005).to(dtype), dtype, True
    )
    assert is_right(judgement)


def test_where_pytorch_overflows_on_whole_rows_other_right_ones_are_right() -> None:
    """Their rounding is all that tells, of elements that PyTorch has as NaN, too: 1 in 200 is misrounded."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(19, 4096, generator=generator).half()
    x[::2] *= 16000.0  # the sum of two leaves the range of float16

    def norm(x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x + x, x.shape[-1:])

    def in_float(x: torch.Tensor, slip: float = 1.0) -> torch.Tensor:
        return (norm(x.float()) * slip).half()

    assert norm(x)[0].isnan().all()
    reference = reference_of(norm, [x], pointwise=False)
    nearly = in_float(x, 1 + 2.0**-20)
    assert (nearly != norm(x.double()).half())[::2].any()
    for right in (norm(x), in_float(x), nearly):
        assert is_right(read([reference.judge(right).tolist()]))
    half_sums = in_float(x)
    half_sums[::2] = (half_sums[::2].float() * (1 + 2.0**-10)).half()
    assert not is_right(read([reference.judge(half_sums).tolist()]))
    assert not is_right(read([reference.judge(torch.zeros_like(x)).tolist()]))
