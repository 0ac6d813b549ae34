"""Calls like earlier ones, in as few steps as Python can take them: PyTorch's guards say that the tensors
look as they did, and a start that was made ready for their places in memory is made again.

Such a call of `softmax` took 2.7 us on the host without the driver's part, and takes 1.0 (two cores of an AMD
EPYC, Python 3.12). So what could be written once is written twice, for one tensor and for several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from ksearch.operators.program import as_tuple
from ksearch.runtime.outputs import Outputs

if TYPE_CHECKING:
    from ksearch.runtime.call import KernelCall

Quick: TypeAlias = Callable[..., Any]
"""(*tensors, out=None) -> what was asked for, or what `otherwise` gives."""
Otherwise: TypeAlias = Callable[[tuple[Any, ...], Outputs | None], Any]

_MOST_LOOKS = 4
"""Ways that tensors that fit may look: with gradients on, in inference mode, a parameter."""

_Guards: Any = getattr(getattr(getattr(torch._C, "_dynamo", None), "guards", None), "TensorGuards", None)
"""Private: without them every tensor is looked at."""
increment_version: Callable[[tuple[Tensor, ...]], None] = getattr(
    torch._C, "_increment_version", torch.autograd.graph.increment_version
)
"""The public one asks first whether it got a tensor or several, which takes 0.2 us."""
_address = Tensor.data_ptr


class Looks:
    """How tensors looked that fitted: class, shape, strides, dtype, device, and all that changes what an
    operation does (modes, transforms, negation), compared in one step by the guards of compiled graphs.

    They ask a tensor for its strides, and those of a nested one end the process: it may not come here.
    """

    __slots__ = ("_known", "latest")

    def __init__(self) -> None:
        self.latest: Callable[..., bool] = _never
        """Whether tensors, as many as there were then, look like the last that were found."""
        self._known: tuple[Callable[..., bool], ...] = ()

    def find(self, given: tuple[Any, ...]) -> bool:
        """Whether they look like any that are known."""
        for look in self._known:
            if look(*given):
                self.latest = look
                return True
        return False

    def learn(self, given: tuple[Tensor, ...]) -> None:
        """These fit."""
        if _Guards is None or len({id(tensor) for tensor in given}) < len(given):
            return  # guards refuse one tensor in two places, such as an `out` that is an input
        look = _Guards(*given, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        if any(tensor.requires_grad for tensor in given):
            look = _without_grad(look)
        self._known = (look, *self._known[: _MOST_LOOKS - 1])
        self.latest = look


def _never(*_: Any) -> bool:
    return False


def _without_grad(look: Callable[..., bool]) -> Callable[..., bool]:
    """Guards know whether a tensor requires a gradient, and not whether gradients are taken."""

    def is_alike(*given: Any) -> bool:
        return not torch.is_grad_enabled() and look(*given)

    return is_alike


def make(kernel: KernelCall, otherwise: Otherwise) -> Quick:
    """What runs the kernel where a call is like an earlier one. It may be called under modes and transforms,
    and when something is traced: what tells that all is as before knows of these."""
    if kernel.launcher is not None:
        return _launched(kernel.launcher, otherwise)
    is_of_one = kernel.is_plain and (kernel.inputs, kernel.outputs) == (1, 1)
    return _of_one(kernel, otherwise) if is_of_one else _of_any(kernel, otherwise)


def _launched(launcher: Callable[..., Any], otherwise: Otherwise) -> Quick:
    def call(*tensors: Any, out: Outputs | None = None) -> Any:
        if not is_dynamo_compiling():
            result = launcher(tensors, out)
            if result is not None:
                return result
        return otherwise(tensors, out)

    return call


def _of_one(kernel: KernelCall, otherwise: Otherwise) -> Quick:
    """Of a kernel of one tensor, which gives one."""
    looks, looks_out, ready, empty = kernel.looks, kernel.looks_out, kernel.ready, kernel.empty
    (layout,), index, stream, is_elsewhere = kernel.layouts, kernel.index, kernel.stream, kernel.is_elsewhere

    def call(x: Any = None, *others: Any, out: Any = None) -> Any:
        if is_dynamo_compiling() or others or forward_ad._current_level >= 0:
            return otherwise((x, *others), out)
        if (type(x) is not Tensor and type(x) is not Parameter) or x.is_nested:
            return otherwise(() if x is None else (x,), out)
        try:
            if out is None:
                if not (looks.latest(x) or looks.find((x,))) or (is_elsewhere is not None and is_elsewhere()):
                    return otherwise((x,), None)
                result = empty(*layout)
            else:
                if (
                    (type(out) is not Tensor and type(out) is not Parameter)
                    or out.is_nested
                    or not (looks_out.latest(x, out) or looks_out.find((x, out)))
                    or (is_elsewhere is not None and is_elsewhere())
                ):
                    return otherwise((x,), out)
                result = out
            start = ready[x.data_ptr(), result.data_ptr(), stream(index)]
        except KeyError:
            found = kernel.start((x,), (x, result), has_out=out is not None)
            return otherwise((x,), out) if isinstance(found, str) else found
        except RuntimeError:  # there is no room for the result, or a tensor has no memory
            return otherwise((x,), out)
        if out is not None:
            increment_version((out,))  # autograd must see that it was written
        return otherwise((x,), out) if start() else result

    return call


def _of_any(kernel: KernelCall, otherwise: Otherwise) -> Quick:
    """Of any kernel."""
    looks, looks_out, ready, empty = kernel.looks, kernel.looks_out, kernel.ready, kernel.empty
    layouts, index, stream, is_elsewhere = kernel.layouts, kernel.index, kernel.stream, kernel.is_elsewhere
    inputs, outputs, is_plain = kernel.inputs, kernel.outputs, kernel.is_plain
    total = inputs + outputs

    def call(*tensors: Any, out: Any = None) -> Any:
        # Guards compare what they are given by place: an `out` is not to pass for an input that is missing.
        if is_dynamo_compiling() or len(tensors) != inputs or forward_ad._current_level >= 0:
            return otherwise(tensors, out)
        given, known = tensors, looks
        if out is not None:
            given = (*tensors, out) if isinstance(out, Tensor) else (*tensors, *as_tuple(out))
            known = looks_out
            if len(given) != total:
                return otherwise(tensors, out)
        for each in given:
            kind = type(each)
            if (kind is not Tensor and kind is not Parameter) or each.is_nested:
                return otherwise(tensors, out)
        try:
            if not (known.latest(*given) or known.find(given)):
                return otherwise(tensors, out)
            if is_elsewhere is not None and is_elsewhere():
                return otherwise(tensors, out)
            if out is None:
                given = (*tensors, *[empty(*layout) for layout in layouts])
            start = ready.get((*map(_address, given), stream(index))) if is_plain else None
        except RuntimeError:  # there is no room for the result, or a tensor has no memory
            return otherwise(tensors, out)
        if start is None:
            found = kernel.start(tensors, given, has_out=out is not None)
            return otherwise(tensors, out) if isinstance(found, str) else found
        results = given[inputs:]
        if out is not None:
            increment_version(results)  # autograd must see that they were written
        if start():
            return otherwise(tensors, out)
        return results[0] if outputs == 1 else results

    return call
