from __future__ import annotations

import pytest
import torch

from ksearch.errors import BadShape
from ksearch.operators import parse_shape
from ksearch.operators.shape import check_shape


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("4096x393216", (4096, 393216)),
        ("4096X8", (4096, 8)),
        ("2,3,4", (2, 3, 4)),
        (" (2, 3) ", (2, 3)),
        ("[7]", (7,)),
        ("(7,)", (7,)),
        ("1 x 2", (1, 2)),
    ],
)
def test_shapes_parse(text: str, shape: tuple[int, ...]) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "does not parse"),
        ("abc", "does not parse: write the dimensions like 4096x8192"),
        ("4096x", "does not parse"),
        ("4x5y", "does not parse"),
        ("4.5x2", "does not parse"),
        ("0x5", "an empty dimension"),
        ("3x0", "an empty dimension"),
        ("4096x-1", "a negative dimension"),
        ("-4", "a negative dimension"),
    ],
)
def test_bad_shapes_say_why(text: str, says: str) -> None:
    with pytest.raises(BadShape, match=says):
        parse_shape(text)


def test_check_shape_takes_any_sequence_of_integers() -> None:
    assert check_shape(torch.Size([2, 3])) == (2, 3)
    assert type(check_shape([True])[0]) is int
    for bad in ([], [2, -1], [2, 0], [2.0], ["3"]):
        with pytest.raises(BadShape):
            check_shape(bad)  # type: ignore[arg-type]
