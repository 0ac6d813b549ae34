"""How far off a result is, against float64, beside how far off PyTorch itself is.

No tolerance is written down here. What is allowed is a small factor of PyTorch's own error in the
same dtype on the same values, per kind of line, and NaN and infinity must be where PyTorch has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ksearch.evaluate.inputs import CYCLE, REGIMES
from ksearch.evaluate.messages import RegimeError

FACTOR = 4.0
"""How many times PyTorch's own largest error is allowed."""

_EPS32 = torch.finfo(torch.float32).eps
_FLUSH = torch.finfo(torch.float32).tiny / _EPS32
"""Below this size errors are absolute: flushing results under 1.2e-38 to zero is not an error."""

_NOISE = 64 * _EPS32
"""Where terms cancel, the relative error of the few elements nearest to zero is luck (PyTorch's too): an
element counts as at least this share of its surroundings. A softmax output of 1e-10 times the largest of
its row still cannot be zero."""

_MISROUNDED = 0.01
"""Share of a 16-bit result's elements that may be the second nearest number, beside `FACTOR` times PyTorch's
own: ties and float32's own error are rare (0.006 of a layer norm in float16). An exponential that is off by
1e-3 leaves every sixth bfloat16 misrounded, and nothing else shows it: the largest error and the mean are
those of rounding."""

_TELLING = 1 / 64
"""Of the largest value of its line: whether a smaller element is rounded well is luck where terms cancel."""

_UNSTEADY = 16.0
"""Errors of PyTorch's own elements, in eps of the dtype, from which on they are luck: the derivative of a
norm where one element is all of its row was off by 0.002 of itself in one row and by 3.5 in another."""


class Reference:
    """What the right result of some lines of one output is, and how far off a result may be.

    Three errors of each line are judged: the largest relative to the line's largest value, the largest
    relative to the element itself, and the mean. The mean is what shows arithmetic in too low a precision:
    in bfloat16 the rounding of the result hides it from the other two. What hides from the mean, too, shows
    in how many elements, of all lines together, are not what the exact result rounds to.
    """

    def __init__(
        self,
        base: torch.Tensor,
        exact: torch.Tensor,
        noise: torch.Tensor,
        *,
        pointwise: bool,
        first_kind: int,
        levels: float | None = None,
        alone: bool = False,
    ) -> None:
        """`base` is PyTorch's own result and `exact` that in float64; `noise` the largest of each element's
        inputs where the op is pointwise, else how far the element moves with them."""
        info = torch.finfo(base.dtype)
        self._first_kind = first_kind
        self._exact = exact
        size = self._exact.abs()
        # Beyond the dtype's range PyTorch's result is an infinity: no scale for the others of its line.
        size.masked_fill_(~(size <= info.max), 0.0)
        floor = max(info.tiny, _FLUSH)  # float16 rounds to multiples of its own smallest numbers
        self._scale = size.amax(1).add_(floor)
        self._mass = size.sum(1).add_(floor * base.shape[1])
        largest, around = size.amax(1), noise.amax(1)
        if alone:  # of a sum that cancels, the error in relation to itself is luck
            self._scale += around
            self._mass += around
        elif not pointwise:
            # So it is of a whole line that does: where x and the gradient alternate between +-65504, that of
            # an RMS norm is 2e-15, PyTorch's on a GPU 0, and a kernel's three times 2^-24.
            is_lost = (largest > 0) & (largest < _EPS32 * around) & around.isfinite()
            lost = around.where(is_lost, 0.0)
            self._scale += lost
            self._mass += lost * base.shape[1]
            noise = torch.maximum(noise, lost[:, None])
        # Where results have the digits of the arithmetic, or are tensor cores' sums, rounding tells nothing.
        is_told = info.bits == 16 and levels is None and not alone
        self._rounded = self._exact.to(base.dtype) if is_told else None
        self._tells = size >= (_TELLING * self._scale[:, None]).clamp(min=floor)
        if pointwise:
            noise = torch.minimum(self._scale[:, None], torch.maximum(noise.double(), size)) * _NOISE
        else:
            noise = noise.add_(self._scale[:, None] * _NOISE)
        self._weight = size.add_(noise).add_(floor).reciprocal_().float()
        odd = ~(base.isfinite() & (self._exact.abs() <= info.max))
        self._odd = odd if bool(odd.any()) else None
        self._base = base if self._odd is not None else None
        errors = self._errors(base)
        # Where PyTorch's own arithmetic overflows its errors say nothing, but the best possible result's do,
        # in those elements, too: else a layer norm of what leaves float16's range must have none misrounded.
        best = (self._exact.to(base.dtype).double() - self._exact).abs_().nan_to_num_(0.0, 0.0, 0.0)
        telling = torch.maximum(errors, self._sizes(best))
        self._own, self._eps = telling, info.eps
        if levels is None:
            levels = 0.0 if pointwise else math.log2(base.shape[1])
            on_average = levels
        else:  # each element is a sum by itself, and their luck evens out along the line
            on_average = levels / math.sqrt(base.shape[1])
        self._levels = (levels, levels, on_average)
        self._allowed = self._limits(telling, info.eps, self._levels)
        told = self._tells.sum()
        self._allowed_misses = FACTOR * self._misses(base).sum() + _MISROUNDED * told + 2 * told.sqrt() + 1
        self._kinds_of, self._elsewhere = _kinds(base, first_kind)
        self._base_worst = errors[0].masked_fill(self._elsewhere, -1.0).amax(1)

    @property
    def is_unsteady(self) -> bool:
        """Whether the elements of PyTorch's own result are off by more than their rounding."""
        return bool(self._own[1].nan_to_num(0.0, 0.0, 0.0).amax() > _UNSTEADY * self._eps)

    def learn(self, base: torch.Tensor, exact: torch.Tensor) -> None:
        """Judge by the largest of several errors of PyTorch's own: its results and what is exact, for these
        inputs or for some that are next to them."""
        off = torch.sub(exact, base).abs_().nan_to_num_(0.0, 0.0, 0.0)
        self._own = torch.maximum(self._own, self._sizes(off))
        self._allowed = self._limits(self._own, self._eps, self._levels)

    def _kinds(self, count: int) -> list[slice]:
        """For each kind of line its lines, those without any left out."""
        starts = ((place - self._first_kind) % len(CYCLE) for place in range(len(CYCLE)))
        return [slice(start, None, len(CYCLE)) for start in starts if start < count]

    def _limits(self, errors: torch.Tensor, eps: float, levels: tuple[float, float, float]) -> torch.Tensor:
        """Allowed errors of each line: from the worst of its kind, since one line's own may be luck.

        `levels`: for each error, how often a sum rounds at least, one addition of pairs after the other.
        """
        limits = errors.clone()
        for lines in self._kinds(errors.shape[1]):
            limits[:, lines] = errors[:, lines].amax(1, keepdim=True)
        # The mean over a long line hardly varies, so twice PyTorch's is much; over 4 elements it is luck.
        factors = (FACTOR, FACTOR, 2.0 + 32.0 / math.sqrt(self._exact.shape[1]))
        floors = (2 * eps, 2 * eps, 4 * _EPS32)
        for limit, factor, floor, level in zip(limits, factors, floors, levels, strict=True):
            limit.mul_(factor).add_(floor + level * _EPS32)
        return limits

    def _errors(self, result: torch.Tensor) -> torch.Tensor:
        """The three errors of each line; NaN or infinite where NaN or infinity is misplaced."""
        off = result.double()
        if self._odd is not None and self._base is not None:
            # Where float64 knows a number and the dtype overflows, either answer is right.
            same = (result == self._base) | (result == self._exact.to(result.dtype))
            same |= result.isnan() & (self._base.isnan() | self._exact.isnan())
            off = off.sub_(self._exact).abs_().masked_fill_(same & self._odd, 0.0)
        else:
            off = off.sub_(self._exact).abs_()
        return self._sizes(off)

    def _sizes(self, off: torch.Tensor) -> torch.Tensor:
        """The three errors of each line of a result that is `off` by that much, which is overwritten."""
        largest, mean = off.amax(1) / self._scale, off.sum(1) / self._mass
        return torch.stack([largest, off.mul_(self._weight).amax(1), mean])

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that a verdict depends on."""
        return [each for each in vars(self).values() if isinstance(each, torch.Tensor)]

    def _misses(self, result: torch.Tensor) -> torch.Tensor:
        """How many elements of each line are not what the exact result rounds to, nor odd as PyTorch's."""
        if self._rounded is None:
            return torch.zeros_like(self._scale)
        missed = (result != self._rounded) & self._tells
        if self._odd is not None and self._base is not None:
            missed &= ~(self._odd & ((result == self._base) | (result.isnan() & self._base.isnan())))
        return missed.sum(1).double()

    def judge(self, result: torch.Tensor) -> torch.Tensor:
        """A vector that `read` explains, made without waiting for the device."""
        errors = self._errors(result)
        worst, line = (errors / self._allowed).amax(0).max(0)
        misses = self._misses(result)
        share = misses.sum() / self._allowed_misses
        line = torch.where(share > worst, misses.argmax(), line)
        worst = torch.maximum(worst, share)
        regimes = errors[0].masked_fill(self._elsewhere, -1.0).amax(1)
        return torch.cat([torch.stack([worst, self._kinds_of[line].double()]), regimes, self._base_worst])


class Places:
    """Which column is right for each line of an output that names one: there is no almost."""

    def __init__(self, base: torch.Tensor, exact: torch.Tensor, first_kind: int) -> None:
        """`base` is PyTorch's own result and `exact` that in float64; where they differ, either is right."""
        self._base, self._exact = base, exact
        self._kinds_of, self._elsewhere = _kinds(base, first_kind)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that a verdict depends on."""
        return [self._base, self._exact, self._kinds_of, self._elsewhere]

    def judge(self, result: torch.Tensor) -> torch.Tensor:
        """As that of Reference: an error is 0, or infinite."""
        right = ((result == self._base) | (result == self._exact)).all(1)
        errors = torch.where(right, 0.0, math.inf).double()
        worst, line = errors.max(0)
        regimes = errors.masked_fill(self._elsewhere, -1.0).amax(1)
        base = torch.zeros_like(errors).masked_fill(self._elsewhere, -1.0).amax(1)
        return torch.cat([torch.stack([worst, self._kinds_of[line].double()]), regimes, base])


def _kinds(base: torch.Tensor, first_kind: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The place in the cycle of kinds of each line, and for each regime which lines are of others."""
    kinds = torch.arange(base.shape[0], device=base.device).add_(first_kind) % len(CYCLE)
    regime = torch.tensor([REGIMES.index(kind.partition(":")[0]) for kind in CYCLE], device=base.device)
    return kinds, torch.arange(len(REGIMES), device=base.device)[:, None] != regime[kinds]


@dataclass(frozen=True, slots=True)
class Judgement:
    """How far off some lines, or all of them, are."""

    error: float
    """Largest error as a multiple of what is allowed; NaN where NaN or infinity is misplaced."""
    kind: str
    """Of the line that it is on, one of CYCLE."""
    errors: dict[str, RegimeError]


def read(vectors: Sequence[Sequence[float]]) -> Judgement:
    """The worst of the vectors that `Reference.judge` gave for each part of a tensor."""
    worst = max(vectors, key=lambda vector: math.inf if math.isnan(vector[0]) else vector[0])
    candidate, baseline = 2, 2 + len(REGIMES)
    errors = {}
    for index, regime in enumerate(REGIMES):
        if any(vector[baseline + index] >= 0 for vector in vectors):  # else it does not occur in any of them
            errors[regime] = RegimeError(
                max(vector[candidate + index] for vector in vectors),
                max(vector[baseline + index] for vector in vectors),
            )
    return Judgement(worst[0], CYCLE[int(worst[1])], errors)
