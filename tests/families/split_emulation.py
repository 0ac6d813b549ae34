"""The split schemes of the linear kernels, bit by bit on the CPU; the table of schemes is the family's own.

What the tensor cores do with a sum is not documented. Measured (Fasi et al., 2021, "Numerical behavior of
NVIDIA tensor cores"): products are exact, addends are aligned to the largest one and cut off there, some bits
below float32's last one, and the sum is cut off to float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ksearch.families.linear_tiles import SCHEMES, Scheme

_FLOAT16_OVERFLOW = 65520.0
"""What rounds to infinity from here on."""
_SMALL = 0.25
_LARGE = 2.0**127
"""A magnitude from which on a row of x is left to plain float32."""


def depth(scheme: Scheme) -> int:
    """Products that one instruction adds up: 32 bytes of a row."""
    return 8 if scheme.term == "tf32" else 16


def exponents(values: Tensor) -> Tensor:
    """The biased exponents of float32."""
    return (values.contiguous().view(torch.int32) >> 23) & 0xFF


def power(exponent: Tensor) -> Tensor:
    """The float32 of that biased exponent, exact."""
    return (exponent.int() << 23).view(torch.float32)


def scales_of_rows(x: Tensor) -> Tensor:
    """For each row of x the power of two that brings its largest element into [2^14, 2^15)."""
    return power((268 - exponents(x.abs().amax(1))).clamp(2, 252))


def scales_of_features(weight: Tensor, block_k: int) -> Tensor:
    """The same of the weight, whose first `block_k` elements tell: the largest of them to [2^9, 2^10)."""
    field = exponents(weight[:, :block_k].abs().amax(1))
    return power((263 - torch.where(field == 0, 124, field)).clamp(2, 252))


def narrow(values: Tensor, term: str) -> Tensor:
    """To the nearest value of a narrow type, as float32: ties to even; of TF32 away from zero."""
    if term != "tf32":
        return values.to(getattr(torch, term)).float()
    bits = values.view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values)


def split(values: Tensor, scheme: Scheme) -> list[Tensor]:
    """The terms, the largest first, each exact in float32."""
    terms = []
    for _ in range(scheme.terms):
        terms.append(narrow(values, scheme.term))
        values = values - terms[-1]
    return terms


def cut(values: Tensor, unit: Tensor) -> Tensor:
    """Towards zero to multiples of `unit`, a power of two."""
    return torch.trunc(values / unit) * unit


def unit_of(values: Tensor, bits: int) -> Tensor:
    """The last place of `bits` bits of each value in float64."""
    _, exponent = torch.frexp(values)
    return torch.ldexp(torch.ones_like(values), exponent - bits)


def accumulate(total: Tensor, left: Tensor, right: Tensor, guard_bits: int) -> Tensor:
    """`total` + left @ right.T over one instruction's depth, as the tensor cores add: all in float64.

    `left` (runs, cols, depth), `right` (runs, rows, depth); gives (runs, rows, cols), values of float32.
    """
    products = right[:, :, None, :] * left[:, None, :, :]  # exact: at most 24 + 24 bits
    largest = torch.maximum(products.abs().amax(-1), total.abs())
    unit = unit_of(largest, 24 + guard_bits)
    result = cut(total, unit) + cut(products, unit[..., None]).sum(-1)
    return cut(result, unit_of(result, 24))


def linear(x: Tensor, weight: Tensor, name: str, promote: int, guard_bits: int = 0) -> Tensor:
    """What the fast path gives, in float32. Sums go on in float32 after `promote` products; 0: never."""
    scheme, inner = SCHEMES[name], x.shape[1]
    x_scale, w_scale = torch.ones(len(x)), torch.ones(len(weight))
    if scheme.scaled:
        x_scale, w_scale = scales_of_rows(x), scales_of_features(weight, scheme.block_k)
    run = promote or -(-inner // 64) * 64
    runs = -(-inner // run)  # they all begin with 0, so they are done side by side

    def terms_of(values: Tensor) -> list[Tensor]:
        filled = torch.nn.functional.pad(values, (0, runs * run - inner))
        return [term.double().view(len(values), runs, run).transpose(0, 1) for term in split(filled, scheme)]

    x_terms, w_terms = terms_of(x * x_scale[:, None]), terms_of(weight * w_scale[:, None])
    parts, step = torch.zeros(runs, len(x), len(weight), dtype=torch.float64), depth(scheme)
    for begun in range(0, run, 16):  # the weight's registers hold 16 elements at a time
        for of_weight, of_x in scheme.products:
            for k in range(begun, begun + 16, step):
                pair = w_terms[of_weight][..., k : k + step], x_terms[of_x][..., k : k + step]
                parts = accumulate(parts, *pair, guard_bits)
    total = torch.zeros(len(x), len(weight))
    for part in parts:
        total = total + part.float()
    return total * (1 / w_scale) * (1 / x_scale)[:, None]


def marked_rows(x: Tensor, name: str) -> Tensor:
    """Rows of x that `rescue` computes: with infinities, NaN, or what might overflow when it is rounded.

    Where rows are scaled, those too of which one element in nine or more, zeros not counted, is so far below
    the largest that float16 does not hold its last bits.
    """
    spoilt = ((x.abs() >= _LARGE) | ~x.isfinite()).any(1)
    if not SCHEMES[name].scaled:
        return spoilt
    scaled = (x * scales_of_rows(x)[:, None]).abs()
    lost, kept = ((scaled < _SMALL) & (x != 0)).sum(1), (scaled >= _SMALL).sum(1)
    return spoilt | (8 * lost > kept)


def marked_features(weight: Tensor, name: str) -> Tensor:
    """Rows of the weight that leave the tiles they are in to `rescue`, whatever (finite) x is.

    A sum is not finite where an element is not, or overflows when it is rounded to a narrow term. Where a row
    is scaled and all its first elements are zeros, the others may turn out too small: a row is left that is
    not all zeros and of which no element, scaled, reaches 0.25.
    """
    scheme = SCHEMES[name]
    if not scheme.scaled:
        first = narrow(weight, scheme.term)
        return ~first.isfinite().all(1)
    scaled = weight * scales_of_features(weight, scheme.block_k)[:, None]
    spoilt = ~scaled.isfinite().all(1) | (scaled.abs() >= _FLOAT16_OVERFLOW).any(1)
    top = narrow(scaled, scheme.term).abs().nan_to_num(0.0).amax(1)
    return spoilt | ((top < _SMALL) & (weight != 0).any(1))
