"""How exact products of split operands are, bit by bit on the CPU, and what splitting must leave to `rescue`.

The yardstick is a float32 sum of one product after the other, as each thread of PyTorch's product on a GPU
takes it; on a CPU PyTorch adds up several sums side by side, and is closer.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from ksearch.families.linear_tiles import SCHEMES
from tests.families.linear_cases import EXACT, SPLIT, operands, rms
from tests.families.split_emulation import (
    depth,
    linear,
    marked_features,
    marked_rows,
    scales_of_features,
    scales_of_rows,
    split,
)

KINDS = ("uniform", "normal", "saturating", "wide")
SIDE = 9


@functools.cache
def case(kind: str, inner: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, the weight, their product in float64, and what a float32 sum in order is off by."""
    x, weight = operands(SIDE, inner, SIDE, kind, seed=1)
    wide = x.double(), weight.double()
    total = torch.zeros(SIDE, SIDE)
    for k in range(inner):  # the product is exact in float64: one rounding, as of an fma
        total = (total.double() + wide[0][:, k : k + 1] * wide[1][:, k]).float()
    exact = wide[0] @ wide[1].t()
    return x, weight, exact, total - exact


def ratios(kind: str, inner: int, scheme: str, promote: int, guard_bits: int) -> tuple[float, float]:
    """Of the rms and the largest error to the yardstick's, of what is not left to `rescue`."""
    x, weight, exact, own = case(kind, inner)
    kept = ~marked_features(weight, scheme)
    assert kept.sum() >= SIDE / 2
    assert kept.all() or kind == "wide"
    off, own = linear(x, weight[kept], scheme, promote, guard_bits) - exact[:, kept], own[:, kept]
    return rms(off) / rms(own), (off.abs().max() / own.abs().max()).item()


@pytest.mark.parametrize("guard_bits", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scheme", "inner", "promote"),
    [(scheme, *each) for scheme in EXACT for each in ((2048, 128), (4096, 256))] + [("fp16x3", 8192, 512)],
)
def test_as_exact_as_float32(scheme: str, inner: int, promote: int, kind: str, guard_bits: int) -> None:
    """However many bits of an addend the tensor cores keep below the last one of the sum."""
    of_rms, of_largest = ratios(kind, inner, scheme, promote, guard_bits)
    assert of_rms <= 2
    assert of_largest <= 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", EXACT)
def test_sums_of_512_where_nothing_is_kept_below_the_last_bit(scheme: str, kind: str) -> None:
    """With bits below it, cutting them off is an error that always points one way: 2.0 to 2.4 times for
    bf16x6 and tf32x3, so with these only the check on the device tells."""
    of_rms, of_largest = ratios(kind, 8192, scheme, 512, 0)
    assert of_rms <= 2
    assert of_largest <= 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guard_bits", [0, 2])
def test_without_promotion_sums_are_worse(guard_bits: int, kind: str) -> None:
    for scheme in EXACT:
        assert ratios(kind, 2048, scheme, 0, guard_bits)[0] > 2


@pytest.mark.parametrize("kind", KINDS)
def test_three_products_of_bfloat16_are_too_few(kind: str) -> None:
    of_rms, of_largest = ratios(kind, 2048, "bf16x3", 128, 0)
    assert of_rms > 4
    assert of_largest > 2
    missing = {pair for scheme in ("bf16x6", "bf16x3") for pair in SCHEMES[scheme].products}
    assert missing == {(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)}


@pytest.mark.parametrize("name", SPLIT)
def test_terms_are_narrow_and_add_up(name: str) -> None:
    """Of 11 bits (8 of bfloat16), each what the ones before it leave."""
    scheme = SCHEMES[name]
    bits = {"float16": 11, "bfloat16": 8, "tf32": 11}[scheme.term]
    draw = torch.Generator().manual_seed(2)
    values = torch.empty(4096).uniform_(0.5, 2.0, generator=draw)
    values *= torch.where(torch.rand(4096, generator=draw) < 0.5, -1, 1)
    terms = split(values, scheme)
    assert len(terms) == scheme.terms
    for term in terms:
        fraction, _ = torch.frexp(term)
        assert torch.equal(torch.round(fraction * 2**bits), fraction * 2**bits)
    off = (values.double() - sum(term.double() for term in terms)).abs() / values.double().abs()
    assert off.max() <= 2.0 ** -(bits * scheme.terms)
    assert {left for pair in scheme.products for left in pair} == set(range(scheme.terms)), "all terms count"
    assert scheme.products[-1] == (0, 0), "the smallest first"
    assert depth(scheme) * (4 if scheme.term == "tf32" else 2) == 32


def test_rows_are_scaled_to_where_float16_is_exact() -> None:
    x = torch.stack([torch.full((64,), 3.0 * 2.0**power) for power in range(-110, 126, 5)])
    x[:, 1:] *= torch.linspace(-1, 1, 63)
    assert torch.equal(scales_of_rows(x) * x.abs().amax(1), torch.full((len(x),), 1.5 * 2.0**14))
    assert torch.equal(scales_of_features(x, 64) * x.abs().amax(1), torch.full((len(x),), 1.5 * 2.0**9))


# ---- what is left to plain float32 -------------------------------------------------------------------


def odd_features(inner: int) -> dict[str, Tensor]:
    """Rows of a weight, by what is odd about them; the ordinary elements are about 0.03."""
    draw = torch.Generator().manual_seed(3)
    tail = torch.arange(inner) >= 64
    base = torch.randn(inner, generator=draw) / 32

    def at(place: int, value: float) -> Tensor:
        row = base.clone()
        row[place] = value
        return row

    return {
        "ordinary": base,
        "zeros": torch.zeros(inner),
        "tiny all over": base * 1e-30,
        "huge all over": base * 1e30,
        "denormal": base * 1e-38,
        "first large": at(0, 1e20),
        "first large, others tiny": torch.where(torch.arange(inner) == 0, 1.0, base * 1e-30),
        "twice later": at(inner - 1, base.abs().max().item() * 16),
        "spike later": at(100, 1e30),
        "largest": at(100, torch.finfo(torch.float32).max),
        "inf": at(inner - 1, torch.inf),
        "nan": at(3, torch.nan),
        "begins with zeros": base * tail,
        "begins with zeros, then tiny": base * tail * 1e-30,
        "begins with zeros, then small": base * tail * 1e-6,
        "begins with zeros, then huge": base * tail * 1e30,
    }


MARKED = {
    "fp16x3": {
        *("denormal", "spike later", "largest", "inf", "nan", "begins with zeros, then tiny"),
        *("begins with zeros, then small", "begins with zeros, then huge"),
    },
    **{name: {"largest", "inf", "nan"} for name in SPLIT if not SCHEMES[name].scaled},
}  # fmt: skip


@pytest.mark.parametrize("name", SPLIT)
def test_what_is_marked_is_what_splitting_would_spoil(name: str) -> None:
    """The rest is off by at most 2^-22 of the row's largest element times the sum of |x|; 2^-14 in bf16x3."""
    inner, scheme = 512, SCHEMES[name]
    rows = odd_features(inner)
    weight = torch.stack(list(rows.values()))
    marked = marked_features(weight, name)
    assert {row for row, is_marked in zip(rows, marked, strict=True) if is_marked} == MARKED[name]

    kept = weight[~marked]
    x = torch.randn(8, inner, generator=torch.Generator().manual_seed(4))
    x[1] *= 1e30
    x[2] *= 1e-30
    x[3, 200] = 1e25  # the other elements do not count beside it
    x[4, :256] = 0.0
    assert marked_rows(x, name).tolist() == [row == 3 and scheme.scaled for row in range(8)]
    x_scale, w_scale = torch.ones(len(x)), torch.ones(len(kept))
    if scheme.scaled:
        x_scale, w_scale = scales_of_rows(x), scales_of_features(kept, scheme.block_k)
    x_terms = [term.double() for term in split(x * x_scale[:, None], scheme)]
    w_terms = [term.double() for term in split(kept * w_scale[:, None], scheme)]
    assert all(term.isfinite().all() for term in (*x_terms, *w_terms))
    products = sum(x_terms[of_x] @ w_terms[of_w].t() for of_w, of_x in scheme.products)
    products = products / w_scale.double() / x_scale.double()[:, None]
    off = (products - x.double() @ kept.double().t()).abs()
    allowed = kept.double().abs().amax(1) * x.double().abs().sum(1)[:, None]
    smallest = 2.0**-133 * x.double().abs().sum(1)[:, None]  # the least that bfloat16 holds
    assert (off <= 2.0 ** -(14 if name == "bf16x3" else 22) * allowed + smallest).all()


def test_marked_features_would_be_wrong_if_they_were_not() -> None:
    """No row is marked for nothing: without `rescue` each is off by more than its bound."""
    inner, name = 512, "fp16x3"
    rows = odd_features(inner)
    x = torch.rand(4, inner, generator=torch.Generator().manual_seed(5))
    for row in MARKED[name] - {"inf", "nan"}:
        weight = rows[row][None]
        off = (linear(x, weight, name, 128).double() - x.double() @ weight.double().t()).abs()
        fine = off <= 2.0**-22 * weight.double().abs().max() * x.double().sum(1)[:, None]
        assert not fine.any(), row


def test_odd_rows_of_x_are_marked() -> None:
    x = torch.ones(8, 64)
    x[0, 5], x[1, 63], x[2, 0], x[3, 7] = torch.inf, torch.nan, 2.0**127, -3e38
    x[4, 1], x[5, 2], x[6] = 2.0**126.99, 1e-45, 0.0
    assert marked_rows(x, "bf16x6").tolist() == [True] * 4 + [False] * 4
    assert marked_rows(x, "fp16x3").tolist() == [True] * 5 + [False] * 3


def test_rows_of_which_float16_holds_too_little_are_marked() -> None:
    x = torch.full((5, 512), 1.0)
    x[0, 7] = 1e30
    x[1, 7], x[2, 7] = 2.0**16, 2.0**17  # the others lie within 2^-16 of it, and do not
    x[3, :56], x[4, :57] = 1e-9, 1e-9  # one in nine
    x[3, 500], x[4, 500] = 0.0, 0.0
    assert marked_rows(x, "fp16x3").tolist() == [True, False, True, False, True]
    assert not marked_rows(x, "bf16x6").any()
