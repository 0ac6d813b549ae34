"""The shapes in which a tensor of a role may come, and the role that a tensor's shape allows."""

from __future__ import annotations

from collections.abc import Sequence

from ksearch.operators.program import Role
from ksearch.operators.signature import NONE

_ROLES = tuple(Role)
"""As a tuple: torch.compile of PyTorch 2.11 cannot go through the members of an enum."""


def shapes_of(role: Role, shape: tuple[int, ...], inner: int = 0) -> list[tuple[int, ...]]:
    """Every shape that broadcasts to `shape` as that role says, the usual one first.

    A linear's operands have one each: their products' sums over `inner` features are of `shape`.
    """
    if role is Role.FULL:
        return [shape]
    if role is Role.LEFT:
        return [(*shape[:-1], inner)]
    if role is Role.RIGHT:
        return [(shape[-1], inner)]
    if role is Role.COLUMN:
        return [(*shape[:-1], 1)]
    if role is Role.ROW:
        return [(*(1,) * ones, shape[-1]) for ones in range(len(shape))]
    return [(1,) * ones for ones in range(len(shape) + 1)]


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
