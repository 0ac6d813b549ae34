"""The shapes in which a tensor of a role may come, and the role that a tensor's shape allows."""

from __future__ import annotations

from collections.abc import Sequence

from ksearch.operators.program import Role
from ksearch.operators.signature import NONE

_ROLES = tuple(Role)
"""As a tuple: torch.compile of PyTorch 2.11 cannot go through the members of an enum."""


def shapes_of(
    role: Role, shape: tuple[int, ...], inner: int = 0, over: tuple[int, ...] = (-1,)
) -> list[tuple[int, ...]]:
    """Every shape that broadcasts to `shape` as that role says, the usual one first.

    A linear's operands have one each: their products' sums over `inner` features are of `shape`. `over`: the
    dims that make up a row, counted from the last; none stands for all.
    """
    if role in (Role.FULL, Role.MASK):
        return [shape]
    if role is Role.LEFT:
        return [(*shape[:-1], inner)]
    if role is Role.RIGHT:
        return [(shape[-1], inner)]
    if role is Role.COLUMN:
        return [reduced(shape, over, keepdim=True)]
    if role is Role.CHANNEL:
        return [shape[1:2]]
    if role is Role.INDEX:
        return [reduced(shape, over, keepdim=False)]
    if role is Role.ROW:
        if not shape:
            return [()]
        first = max(len(shape) + min(over, default=-len(shape)), 0)
        kept = {dim % len(shape) for dim in over} if over else {*range(len(shape))}
        own = tuple(size if dim in kept else 1 for dim, size in enumerate(shape))[first:]
        return [(*(1,) * ones, *own) for ones in range(first + 1)]
    return [(1,) * ones for ones in range(len(shape) + 1)]


def reduced(shape: tuple[int, ...], over: tuple[int, ...], *, keepdim: bool) -> tuple[int, ...]:
    """The shape of one value for each row."""
    gone = {dim + len(shape) for dim in over} if over else {*range(len(shape))}
    return tuple(1 if dim in gone else size for dim, size in enumerate(shape) if keepdim or dim not in gone)


def derive_role(given: tuple[int, ...] | None, shape: tuple[int, ...], allowed: Sequence[str]) -> str | None:
    """The role, out of `allowed`, of a tensor of shape `given` beside full ones of `shape`.

    `given` is None where there is no tensor. Where several fit (a row of one column is a column, too) it is
    the first in the order of Role. None where nothing fits.
    """
    if given is None:
        return NONE if NONE in allowed else None
    for role in _ROLES:
        if role in allowed and given in shapes_of(role, shape):
            return str(role)
    return None
