"""What a call gives, and the `out` that it is given: a tensor where an op has one output, else a tuple."""

from __future__ import annotations

from typing import TypeAlias

import torch

from ksearch.errors import UsageError
from ksearch.operators.program import as_tuple
from ksearch.runtime.traced import is_traced

Outputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]


def as_result(results: tuple[torch.Tensor, ...]) -> Outputs:
    """The outputs as a caller gets them."""
    return results[0] if len(results) == 1 else results


def write(name: str, results: tuple[torch.Tensor, ...], out: Outputs) -> Outputs:
    """Copy each result into the tensor of `out` that is for it. Raises UsageError where that cannot be."""
    outs = as_tuple(out)
    if len(outs) != len(results) or not all(isinstance(each, torch.Tensor) for each in outs):
        wanted = "a tensor" if len(results) == 1 else f"a tuple of {len(results)} tensors"
        given = ", ".join(type(each).__name__ for each in outs)
        raise UsageError(f"{name}: out must be {wanted}, one for each output, and it is ({given})")
    for number, (each, result) in enumerate(zip(outs, results, strict=True)):
        if (each.shape, each.dtype, each.device) != (result.shape, result.dtype, result.device):
            which, what = (f"out[{number}]", f"output {number}") if len(outs) > 1 else ("out", "the result")
            raise UsageError(
                f"{name}: {which} is {_describe(each)}, but {what} is {_describe(result)}; "
                "make it with torch.empty_like"
            )
    if len(outs) > 1:
        results = _detached(name, results, outs)
    for each, result in zip(outs, results, strict=True):
        each.copy_(result)
    return as_result(outs)


def _detached(
    name: str, results: tuple[torch.Tensor, ...], outs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """The results, none of which is lost when an earlier one is written: a function may give its input back.

    Raises UsageError where two tensors of `outs` are the same memory.
    """
    if is_traced():  # nothing is in memory yet
        return (results[0], *(result.clone() for result in results[1:]))
    kept = list(results)
    for number, each in enumerate(outs):
        for later in range(number + 1, len(outs)):
            if _overlap(each, outs[later]):
                raise UsageError(
                    f"{name}: out[{number}] and out[{later}] overlap in memory: they cannot hold two results"
                )
            if _may_share(each, kept[later]):
                kept[later] = kept[later].clone()
    return tuple(kept)


def _may_share(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether writing one may change the other."""
    try:
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    except RuntimeError:  # there is no storage to tell: inside vmap or torch.func.functionalize, sparse
        return True


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are contiguous and share memory; without memory (on `meta`) they share none."""
    try:
        if not (a.is_contiguous() and b.is_contiguous()):
            return False
        start, other = a.data_ptr(), b.data_ptr()
    except RuntimeError:
        return False
    return bool(start) and start < other + b.nbytes and other < start + a.nbytes and a.device == b.device


def _describe(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
