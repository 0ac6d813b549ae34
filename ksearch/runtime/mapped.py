"""What `vmap` makes of an op: one call of more rows where that means the same, else a call for each place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ksearch.operators.program import Input, Role, as_tuple
from ksearch.runtime.outputs import as_result

if TYPE_CHECKING:
    from ksearch.operators import Op
    from ksearch.types import Option


def call(
    op: Op,
    function: Callable[..., Any],
    size: int,
    in_dims: Sequence[int | None],
    tensors: Sequence[Any],
    options: Mapping[str, Option],
) -> tuple[Any, Any]:
    """The results, and their mapped dims: `function` of the tensors, mapped over `size` places of `in_dims`.

    `options` are all of the op's, with which `function` is called.
    """
    moved = _moved(op, in_dims, tensors) if _keeps_rows(op, options) else None
    if moved is not None:
        results = as_tuple(function(*moved))
    else:  # PyTorch's own rules for what the function is made of cannot be asked from inside a rule
        calls = []
        for number in range(size):
            given = [
                each if dim is None else each.select(dim, number)
                for each, dim in zip(tensors, in_dims, strict=True)
            ]
            calls.append(as_tuple(function(*given)))
        results = tuple(torch.stack(each) for each in zip(*calls, strict=True))
    return as_result(results), 0 if len(results) == 1 else (0,) * len(results)


def _keeps_rows(op: Op, options: Mapping[str, Any]) -> bool:
    """Whether rows are apart, so that one more dim of them means the same."""
    if op.template_op is not None:
        return True
    program = op.program(**options)
    return bool(program.over) and not (program.is_total or program.groups or program.has_channels)


def _moved(op: Op, in_dims: Sequence[int | None], tensors: Sequence[Any]) -> list[Any] | None:
    """The tensors with the mapped dim as the first; None where that is not the same op of them."""
    if in_dims[0] is None:
        return None
    count = tensors[0].shape[in_dims[0]]
    rank = tensors[0].dim() - 1
    moved: list[Any] = []
    for place, (tensor, dim, item) in enumerate(zip(tensors, in_dims, op.inputs, strict=False)):
        if tensor is None:
            moved.append(None)
        elif dim is not None and tensor.dim() - 1 == rank and (not place or _has_rows(op, item)):
            moved.append(tensor.movedim(dim, 0))
        elif dim is None and (tensor.dim() <= 1 or item.role.is_operand):
            moved.append(tensor)
        elif dim is None and tensor.dim() == rank:
            moved.append(tensor.expand(count, *tensor.shape))
        else:
            return None
    return moved if rank else None


def _has_rows(op: Op, item: Input) -> bool:
    """Whether one more dim of rows means for it what it does for the op: a weight for each is none."""
    allowed = op.choices.get(item.name, (item.role,))
    return not {Role.FULL, Role.COLUMN, Role.INDEX, Role.MASK}.isdisjoint(allowed)
