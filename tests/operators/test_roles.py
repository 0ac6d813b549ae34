"""Which role a tensor has by its shape; PyTorch's own broadcasting says whether that is right."""

from __future__ import annotations

import itertools

import pytest
import torch

from ksearch.operators.program import Role
from ksearch.operators.roles import derive_role, shapes_of

ALL = tuple(str(role) for role in Role if role not in (Role.INDEX, Role.MASK, Role.CHANNEL))
"""An index or mask is known by its dtype: its shape may be that of a row, too. Channels broadcast in no usual
way."""
SHAPES = ((5,), (1,), (4, 8), (1, 8), (4, 1), (1, 1), (2, 3, 4), (2, 1, 4), (3, 3, 3))


@pytest.mark.parametrize(
    ("given", "shape", "role"),
    [
        ((4, 8), (4, 8), "full"),
        ((8,), (4, 8), "row"),
        ((1, 8), (4, 8), "row"),
        ((4, 1), (4, 8), "column"),
        ((), (4, 8), "scalar"),
        ((1,), (4, 8), "scalar"),
        ((1, 1), (4, 8), "scalar"),
        ((1, 1, 4), (2, 3, 4), "row"),
        ((2, 3, 1), (2, 3, 4), "column"),
        # several fit
        ((1, 8), (1, 8), "full"),
        ((8,), (8,), "full"),
        ((4, 1), (4, 1), "full"),
        ((1,), (4, 1), "row"),
        ((1, 1), (4, 1), "row"),
        ((1, 1), (1, 8), "column"),
        ((1,), (8,), "column"),
        ((), (4, 1), "scalar"),
        # nothing fits
        ((4,), (4, 8), None),
        ((3, 1), (2, 3, 4), None),
        ((2, 1, 4), (2, 3, 4), None),
        ((2, 4, 8), (4, 8), None),
        ((1, 4, 8), (4, 8), None),
        ((1, 1, 1), (4, 8), None),
    ],
)
def test_the_role_follows_from_the_shape(
    given: tuple[int, ...], shape: tuple[int, ...], role: str | None
) -> None:
    assert derive_role(given, shape, ALL) == role


def test_only_what_is_allowed_is_derived() -> None:
    assert derive_role((8,), (4, 8), ("full", "column", "scalar")) is None
    assert derive_role((8,), (8,), ("row", "none")) == "row"
    assert derive_role(None, (4, 8), ("row", "none")) == "none"
    assert derive_role(None, (4, 8), ALL) is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_of_a_role_broadcasts_to_the_same_values(shape: tuple[int, ...]) -> None:
    canonical = {
        Role.FULL: shape, Role.ROW: shape[-1:], Role.COLUMN: (*shape[:-1], 1), Role.SCALAR: (),
    }  # fmt: skip
    for role, usual in canonical.items():
        assert shapes_of(role, shape)[0] == usual
        values = torch.randn(usual)
        for other in shapes_of(role, shape):
            assert torch.equal(values.view(other).expand(shape), values.expand(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_linear_of_its_operands_has_the_full_shape(shape: tuple[int, ...]) -> None:
    (left,), (right,) = shapes_of(Role.LEFT, shape, 7), shapes_of(Role.RIGHT, shape, 7)
    assert torch.nn.functional.linear(torch.randn(left), torch.randn(right)).shape == shape


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_pytorch_broadcasts_beyond_the_shape_has_no_role(shape: tuple[int, ...]) -> None:
    sizes = (1, 2, 3, 4, 8)
    for given in itertools.chain.from_iterable(itertools.product(sizes, repeat=n) for n in range(4)):
        try:
            result = tuple(torch.broadcast_shapes(given, shape))
        except RuntimeError:
            result = ()
        if result != shape:
            assert derive_role(given, shape, ALL) is None, given
