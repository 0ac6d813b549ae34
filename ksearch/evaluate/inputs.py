"""The values that candidates are tried on: easy, wide, spiked and special rows, made from a seed.

A kernel that is right on uniform numbers alone is not right: a softmax without the max subtraction
passes them all. One input holds every kind of row, so one launch tries them all; equal seeds give
equal bits, so an input of many gigabytes is made again block by block instead of being kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ksearch.evaluate import weights
from ksearch.operators.program import Input, Role

REGIMES = ("uniform", "normal", "spike", "special")
"""0 to 1; mean 0 and deviation 10; one huge element and the rest small; NaN, inf and other extremes."""

CYCLE = (
    *("uniform", "special:nan", "normal", "special:inf", "spike", "special:-inf"),
    *("uniform", "special:all -inf", "normal", "special:equal", "spike", "special:denormal"),
    *("uniform", "special:zeros", "normal", "special:largest", "spike", "special:large"),
    "special:all largest",
)
"""Line r of an input holds values of the kind CYCLE[r % len(CYCLE)]."""

_SPIKE = 1e4
"""Huge, yet float16 holds it, and float32 its square."""

_FLAT_WIDTH = 4096


@dataclass(frozen=True, slots=True)
class Places:
    """What an INDEX input may hold."""

    cols: int
    marks: tuple[int, ...] = ()
    """Numbers that mean no column, such as a class that is ignored."""


_NO_PLACES = Places(1)


@dataclass(frozen=True, slots=True)
class Part:
    """Some consecutive lines of a tensor. A line is a row; where rows mean nothing, a stretch of elements."""

    first: int
    lines: int
    width: int
    offset: int
    """Elements before it in a FULL tensor, where lines are in one piece."""
    stride: int = 1
    """Elements from one column of a line to the next; where that is not 1, as many lines lie side by side."""
    segment: int = 0
    """Elements of each of the pieces that a line is in, those of all lines in turn; 0: it is in one."""

    def take(self, tensor: torch.Tensor, role: Role) -> torch.Tensor:
        """This part of a tensor of that role, in a shape that tells lines apart: for some roles a copy."""
        lines = slice(self.first, self.first + self.lines)
        match role:
            case Role.INDEX:
                return tensor.view(-1)[lines]
            case Role.CHANNEL if self.segment:
                return tensor.view(-1)[lines]
            case Role.CHANNEL | Role.ROW:
                return tensor.view(-1)
            case Role.COLUMN:
                return tensor.view(-1, 1)[lines]
            case Role.SCALAR:
                return tensor.view(())
            case Role.LEFT:
                return tensor[lines]
            case Role.RIGHT:
                return tensor
        if not self.is_whole:
            return self._side_by_side(tensor).contiguous().view(self.lines, self.width)
        span = slice(self.offset, self.offset + self.lines * self.width)
        return tensor.view(-1)[span].view(self.lines, self.width)

    @property
    def is_whole(self) -> bool:
        """Whether each line is in one piece."""
        return self.stride == 1 and not self.segment

    def put(self, tensor: torch.Tensor, lines: torch.Tensor) -> None:
        """Write the lines of a FULL or MASK tensor's part, as `take` gives them."""
        place = self._side_by_side(tensor)
        place.copy_(lines.view(place.shape))

    def _side_by_side(self, tensor: torch.Tensor) -> torch.Tensor:
        """Lines that are not in one piece, as a view: those of some blocks, or some of one block."""
        if self.segment:
            pieces = tensor.view(self.width // self.segment, -1, self.segment)
            return pieces[:, self.first : self.first + self.lines].transpose(0, 1)
        across = min(self.lines, self.stride)
        block, column = divmod(self.first, self.stride)
        blocks = tensor.view(-1, self.width, self.stride)[block : block + self.lines // across]
        return blocks[:, :, column : column + across].transpose(1, 2)


def split(
    rows: int,
    cols: int,
    *,
    flat: bool,
    max_elements: int,
    stride: int = 1,
    together: int = 1,
    segment: int = 0,
) -> list[Part]:
    """A tensor as parts of at most `max_elements` (but at least one line), the last one mostly shorter.

    `flat`: the op treats every element alike, so a single row of 10^9 elements need not stay whole. `stride`
    and `segment`: see Part. `together`: lines of one piece of which none can be without the others.
    """
    if stride > 1:
        most = max(1, max_elements // cols)
        if most >= stride:  # whole blocks of lines that lie side by side
            step = most // stride * stride
            return [Part(i, min(step, rows - i), cols, 0, stride) for i in range(0, rows, step)]
        return [
            Part(block + i, min(most, stride - i), cols, 0, stride)
            for block in range(0, rows, stride)
            for i in range(0, stride, most)
        ]
    width = min(_FLAT_WIDTH, rows * cols) if flat else cols
    lines, tail = divmod(rows * cols, width)
    step = max(1, max_elements // width // together) * together
    parts = [Part(i, min(step, lines - i), width, i * width, segment=segment) for i in range(0, lines, step)]
    return [*parts, Part(lines, 1, tail, lines * width)] if tail else parts


def derive_seed(seed: int, *parts: object) -> int:
    """Another seed for each purpose, from one."""
    text = ":".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def largest(dtype: torch.dtype, cols: int, *, pointwise: bool, inner: int = 0) -> float:
    """The largest value that inputs hold: of the dtype, or so that a row's squares add up in float32.

    Where a sum overflows the result is luck: PyTorch's layer_norm is finite on rows that overflow the sum
    of any kernel which adds up first and divides then. With `inner` the sums are a linear's first.
    """
    most = torch.finfo(dtype).max
    if inner:
        return min(most, weights.largest_factor(dtype, cols, inner))
    return most if pointwise else min(most, math.sqrt(torch.finfo(torch.float32).max / cols) / 8)


def fill(
    tensor: torch.Tensor,
    declared: Input,
    parts: Sequence[Part],
    seed: int,
    *,
    most: float,
    first_kind: int = 0,
    alike: bool = False,
    places: Places = _NO_PLACES,
) -> None:
    """Write the values of one input, none beyond `most`; the first line is of kind CYCLE[first_kind].

    With `alike` all the others are, too. `places`: what an INDEX input may hold.

    Weights, biases and per-row scales are ordinary in every regime: no op promises more for them. That of a
    linear is of several scales.
    """
    if declared.role is Role.RIGHT:
        weights.fill_mixed(tensor, generator_for(tensor, declared, seed))
    elif declared.role is Role.INDEX:
        fill_places(tensor, declared, seed, places)
    elif not has_lines(declared):
        fill_ordinary(tensor, declared, seed)
    else:
        for part in parts:
            lines = part.take(tensor, declared.role)
            fill_part(lines, declared, part, seed, most=most, first_kind=first_kind, alike=alike)
            if not part.is_whole and declared.role in (Role.FULL, Role.MASK):
                part.put(tensor, lines)


def has_lines(declared: Input) -> bool:
    """Whether its rows are of every kind when results are checked."""
    return declared.role in (Role.FULL, Role.LEFT, Role.MASK)


def generator_for(tensor: torch.Tensor, declared: Input, seed: int) -> torch.Generator:
    """What an input's values are drawn with, where it is filled in one."""
    return torch.Generator(tensor.device).manual_seed(derive_seed(seed, declared.name))


def fill_places(tensor: torch.Tensor, declared: Input, seed: int, places: Places) -> None:
    """An INDEX input: columns at random, the first and the last among them, and some of what means none."""
    generator = generator_for(tensor, declared, seed)
    flat = tensor.view(-1)
    flat.random_(0, places.cols, generator=generator)
    flat[1::11], flat[2::13] = 0, places.cols - 1
    for number, mark in enumerate(places.marks):
        flat[3 + number :: 7] = mark


def fill_ordinary(tensor: torch.Tensor, declared: Input, seed: int, places: Places = _NO_PLACES) -> None:
    """Values that no kernel is slowed down by; what is timed."""
    generator = generator_for(tensor, declared, seed)
    if declared.role is Role.INDEX:
        tensor.random_(0, places.cols, generator=generator)
    elif declared.role is Role.MASK:
        tensor.bernoulli_(0.5, generator=generator)
    elif has_lines(declared):
        tensor.uniform_(0.0, 1.0, generator=generator)
    elif declared.role is Role.RIGHT:
        weights.fill_initial(tensor, generator)
    elif declared.role is Role.CHANNEL:
        tensor.uniform_(0.5, 1.5, generator=generator)  # it may be a variance
    else:
        tensor.normal_(0.0, 1.0, generator=generator)


def fill_part(
    lines: torch.Tensor,
    declared: Input,
    part: Part,
    seed: int,
    *,
    most: float,
    first_kind: int = 0,
    alike: bool = False,
) -> None:
    """Write one part of a FULL or LEFT input into the matrix `lines`."""
    generator = torch.Generator(lines.device).manual_seed(derive_seed(seed, declared.name, part.first))
    if declared.role is Role.MASK:
        lines.bernoulli_(0.5, generator=generator)
        return
    lines.normal_(0.0, 1.0, generator=generator)
    count, width = lines.shape
    row = torch.arange(count, device=lines.device)
    # Heads and tails go wrong most, so two lines in three have their one odd element there.
    column = (row * 7919 + row // len(CYCLE) * 31) % width
    column[0::3] = width - 1
    column[1::3] = 0
    kinds = [(first_kind, CYCLE[first_kind])] if alike else list(enumerate(CYCLE))
    for place, kind in kinds:
        first, step = (0, None) if alike else ((place - first_kind - part.first) % len(CYCLE), len(CYCLE))
        chosen = slice(first, None, step)
        if chosen.start < count:
            _make(lines, kind, chosen, row[chosen], column[chosen], most, generator)


def tame(lines: torch.Tensor, cols: int) -> None:
    """Bring finite values so near to 1 that no product of `cols` of them leaves the range of a float.

    Where it does, it is luck which partial product is 0 and which infinite.
    """
    size = lines.abs()
    power = size.float().log2().clamp_(-60.0, 60.0).div_(cols).exp2_().copysign_(lines.float())
    is_ordinary = (size > 0) & (size <= torch.finfo(lines.dtype).max)
    lines.copy_(torch.where(is_ordinary, power.to(lines.dtype), lines))


def _make(
    lines: torch.Tensor,
    kind: str,
    chosen: slice,
    row: torch.Tensor,
    column: torch.Tensor,
    most: float,
    generator: torch.Generator,
) -> None:
    """Turn the chosen lines, normally distributed so far, into one kind of line."""
    match kind:
        case "uniform":
            lines[chosen].uniform_(0.0, 1.0, generator=generator)
        case "normal":
            lines[chosen] *= 10.0
        case "spike":
            lines[chosen] *= 0.1
            lines[row, column] = min(_SPIKE, most * lines.shape[1])  # a linear's sum must not overflow
        case "special:nan":
            lines[row, column] = torch.nan
        case "special:inf":
            lines[row, column] = torch.inf
        case "special:-inf":
            lines[row, column] = -torch.inf
        case "special:all -inf":
            lines[chosen] = -torch.inf
        case "special:equal":
            lines[chosen] = 3.25
        case "special:denormal":
            lines[chosen] *= torch.finfo(lines.dtype).tiny / 8
        case "special:zeros":
            lines[chosen, 0::2] = 0.0
            lines[chosen, 1::2] = -0.0
        case "special:largest":
            lines[chosen, 0::2] = most
            lines[chosen, 1::2] = -most
        case "special:large":
            lines[chosen] *= most / 8
        case "special:all largest":
            # A power of two, so that the mean of the row is exact: what is left of x - mean counts for all.
            lines[chosen] = 2.0 ** math.floor(math.log2(most))
