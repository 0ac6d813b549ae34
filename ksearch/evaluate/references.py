"""What is right for an op's outputs: PyTorch's results, float64's, and how both move with the inputs.

Apart from `tolerance`, which judges by them, because this alone calls the op's function: once in its dtype
and once in float64, and again on inputs that are next to these, where PyTorch's own error is luck.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ksearch.evaluate.formulas import PLAIN
from ksearch.evaluate.tolerance import Places, Reference

_EPS32 = torch.finfo(torch.float32).eps

_DRAWS = 4
"""More looks at PyTorch's own error where it is luck; four times as many at that of one line."""

_FEW = 1 << 20
"""Elements of such a line, at most."""

_NARROW = (torch.float32, torch.float16, torch.bfloat16)

Function = Callable[..., tuple[torch.Tensor, ...]]
"""An op's own function, with its outputs in a tuple even where there is one."""


def _widened(argument: object) -> object:
    return torch.float64 if isinstance(argument, torch.dtype) and argument in _NARROW else argument


class _EverythingDouble(TorchFunctionMode):
    """Makes a function's own `.float()` or `.to(torch.float32)` mean float64, for the reference."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func = PLAIN.get(func, func)
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            func = torch.Tensor.double
        args = tuple(_widened(arg) for arg in args)
        kwargs = {key: _widened(arg) for key, arg in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _sensitivity(
    function: Function,
    inputs: Sequence[torch.Tensor],
    exact: Sequence[torch.Tensor],
    wide: Mapping[int, torch.Tensor],
) -> list[torch.Tensor]:
    """How far each output's exact elements move, in units of float32's eps, where inputs move by up to eps.

    Where terms cancel (a layer norm's weight times x, plus its bias) the relative error of an element near
    zero is luck, and two right kernels differ by any factor in it: 9.9e-6 against PyTorch's 5.9e-8 on 5x1000.
    The elements of a softmax move in proportion to themselves, so 1e-10 of the row's largest still counts.
    """
    generator = torch.Generator(exact[0].device).manual_seed(0)
    moved = [torch.zeros_like(each, dtype=torch.float64) for each in exact]
    # One draw may leave an element where it was. Whole steps up or down are the least likely to: of a layer
    # norm's 16384 elements of +-w + b, two draws in between left one that no config could get right.
    for whole in (False, False, True):
        shifted = []
        for place, tensor in enumerate(inputs):
            if place in wide:
                shifted.append(wide[place])
                continue
            if not tensor.is_floating_point():
                shifted.append(tensor)
                continue
            drawn = _random_bytes(tensor, generator)
            if whole:
                factor = drawn.bitwise_and_(1).double().mul_(2 * _EPS32).add_(1 - _EPS32)
            else:  # from -128 to 127
                factor = drawn.view(torch.int8).double().mul_(_EPS32 / 128).add_(1)
            shifted.append(factor.mul_(tensor))
        with _EverythingDouble():
            results = function(*shifted)
        for most, result, right in zip(moved, results, exact, strict=True):
            torch.maximum(most, (result - right).abs_().nan_to_num_(0.0, 0.0, 0.0), out=most)
    return [most.div_(_EPS32) for most in moved]


def _random_bytes(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One for each element, eight from a number: to draw floats took 1.1 of 2.9 s of a sum over 1e7."""
    numbers = torch.empty(-(-tensor.numel() // 8), dtype=torch.int64, device=tensor.device)
    numbers.random_(-(1 << 63), None, generator=generator)
    return numbers.view(torch.uint8)[: tensor.numel()].view(tensor.shape)


def _exact(
    function: Function, inputs: Sequence[torch.Tensor], wide: Mapping[int, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The function in float64; `wide`: inputs, by their place, whose values in it are at hand."""
    with _EverythingDouble():
        return function(
            *(
                wide[place] if place in wide else tensor.double() if tensor.is_floating_point() else tensor
                for place, tensor in enumerate(inputs)
            )
        )


def _beside(
    function: Function, inputs: Sequence[torch.Tensor], count: int, wide: Mapping[int, torch.Tensor]
) -> Iterator[Sequence[tuple[torch.Tensor, torch.Tensor]]]:
    """What PyTorch gives, and what is exact, for `count` draws of inputs that are one place of their dtype
    away: all but those in `wide`, which are large, and stay as they are."""
    generator = torch.Generator(inputs[0].device).manual_seed(1)
    moving = [tensor.is_floating_point() and place not in wide for place, tensor in enumerate(inputs)]
    drawn: list[torch.Tensor | None] = []
    for draw in range(count):
        if draw % 8 == 0:  # each of a byte's bits is another draw's
            drawn = [
                _random_bytes(tensor, generator) if moves else None
                for tensor, moves in zip(inputs, moving, strict=True)
            ]
        moved = [
            tensor if each is None else _moved(tensor, each & (1 << draw % 8), 1 << draw % 8)
            for tensor, each in zip(inputs, drawn, strict=True)
        ]
        yield list(zip(function(*moved), _exact(function, moved, wide), strict=True))


def _moved(tensor: torch.Tensor, bits: torch.Tensor, value: int) -> torch.Tensor:
    """Elements one place up where there is `value`, and down where there is 0. In float32 that product is
    rounded once, as the exact one would be."""
    eps = torch.finfo(tensor.dtype).eps
    return bits.float().mul_(2 * eps / value).add_(1 - eps).mul_(tensor).to(tensor.dtype)


def references(
    function: Function,
    inputs: Sequence[torch.Tensor],
    *,
    pointwise: bool,
    first_kind: int = 0,
    levels: float | None = None,
    alone: bool = False,
    wide: Mapping[int, torch.Tensor] | None = None,
) -> list[Reference | Places]:
    """What is right for each output of `function`, a matrix with a row for each line of the first input.

    `inputs` as the function takes them; the first is a matrix starting with CYCLE[first_kind]. `levels`: how
    often its sums round at least, by default those of a row of the output. `alone`: there is one value of a
    line, and how far it moves with the inputs counts as its surroundings. `wide`: inputs, by their place,
    whose values in float64 are at hand, because to make them again takes long. They are large, so they are
    not moved either to see how sensitive the result is; the other operand of the same sums is.
    """
    wide = wide or {}
    own, exact = function(*inputs), _exact(function, inputs, wide)
    if pointwise:  # elements do not meet: the surroundings of one are its own inputs
        around = torch.stack(torch.broadcast_tensors(*inputs)).abs_().amax(0).nan_to_num_(nan=0.0)
        noises = [around] * len(exact)
    elif any(base.is_floating_point() for base in own):
        noises = _sensitivity(function, inputs, exact, wide)
    else:  # places alone: there is no almost
        return [Places(base, right, first_kind) for base, right in zip(own, exact, strict=True)]
    dtype = inputs[0].dtype
    found = [
        Reference(
            base.to(dtype),
            right,
            noise,
            pointwise=pointwise,
            first_kind=first_kind,
            levels=levels,
            alone=alone,
        )
        if base.is_floating_point()
        else Places(base, right, first_kind)
        for base, right, noise in zip(own, exact, noises, strict=True)
    ]
    is_unsteady = any(isinstance(each, Reference) and each.is_unsteady for each in found)
    # Of one value of a line PyTorch's error is luck: the loss of a triplet, a small difference of two
    # distances, was exact where that of the next one was off by 12 roundings. Of a sum of equal sigmoids it
    # is that of one product: by emulation one in seven checks refused kernels with errors 0.65 times its own.
    if alone or (levels is None and not pointwise and is_unsteady):
        is_single = alone and inputs[0].shape[0] == 1 and inputs[0].numel() <= _FEW
        count = 4 * _DRAWS if is_single else _DRAWS
        here = list(zip(own, exact, strict=True))
        for pairs in itertools.chain([here], _beside(function, inputs, count, wide)):
            for each, (base, right) in zip(found, pairs, strict=True):
                if isinstance(each, Reference):
                    each.learn(base.to(dtype), right)
    return found
