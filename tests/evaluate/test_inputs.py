from __future__ import annotations

import pytest
import torch

from ksearch.evaluate import inputs
from ksearch.operators.program import Input, Role

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LINES = len(inputs.CYCLE)


def filled(dtype: torch.dtype, rows: int = LINES * 2, cols: int = 33, **options: object) -> torch.Tensor:
    tensor = torch.empty(rows, cols, dtype=dtype)
    parts = inputs.split(rows, cols, flat=False, max_elements=rows * cols)
    most = inputs.largest(dtype, cols, pointwise=True)
    inputs.fill(tensor, Input("x"), parts, **{"seed": 1, "most": most, **options})  # type: ignore[arg-type]
    return tensor


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_kind_of_line_is_what_it_is_called(dtype: torch.dtype) -> None:
    x = filled(dtype)
    info = torch.finfo(dtype)
    line = {kind: x[i].float() for i, kind in enumerate(inputs.CYCLE)}
    assert 0 <= line["uniform"].min() < line["uniform"].max() <= 1
    assert 5 < line["normal"].std() < 20
    assert (line["spike"] > 1000).sum() == 1
    assert line["spike"].abs().sort().values[-2] < 1
    assert line["special:nan"].isnan().sum() == 1
    assert (line["special:inf"] == torch.inf).sum() == 1
    assert (line["special:-inf"] == -torch.inf).sum() == 1
    assert (line["special:all -inf"] == -torch.inf).all()
    assert len(line["special:equal"].unique()) == 1
    denormal = line["special:denormal"]
    assert ((denormal != 0) & (denormal.abs() < info.tiny)).sum() > 10
    zeros = line["special:zeros"]
    assert (zeros == 0).all()
    assert 0 < zeros.signbit().sum() < len(zeros)
    assert set(line["special:largest"].tolist()) == {info.max, info.min}
    assert line["special:large"].isfinite().all()
    assert line["special:all largest"].min() > info.max / 2


def test_odd_elements_stand_at_heads_tails_and_between() -> None:
    x = filled(torch.float32, rows=LINES * 30)
    columns = {int(row.isnan().nonzero()[0]) for row in x[1::LINES]}
    assert {0, 32} < columns


def test_equal_seeds_give_equal_bits_and_others_do_not() -> None:
    bits = [filled(torch.float32, seed=seed).view(torch.int32) for seed in (1, 1, 2)]
    assert torch.equal(bits[0], bits[1])
    assert not torch.equal(bits[0], bits[2])


def test_a_part_made_again_equals_that_part_of_the_whole() -> None:
    rows, cols = 50, 33
    parts = inputs.split(rows, cols, flat=False, max_elements=12 * cols)
    whole = torch.empty(rows, cols)
    inputs.fill(whole, Input("x"), parts, 5, most=1e18)
    for part in parts:
        again = torch.empty(part.lines, cols)
        inputs.fill_part(again, Input("x"), part, 5, most=1e18)
        assert torch.equal(again.view(torch.int32), part.take(whole, Role.FULL).view(torch.int32))


def test_kinds_continue_from_the_first_one() -> None:
    x = filled(torch.float32, rows=3, first_kind=inputs.CYCLE.index("special:all -inf"))
    assert (x[0] == -torch.inf).all()
    assert (x[2] == 3.25).all()


def test_weights_and_scales_are_ordinary() -> None:
    weight = torch.empty(1, 33)
    parts = inputs.split(5, 33, flat=False, max_elements=1000)
    inputs.fill(weight, Input("weight", Role.ROW), parts, 1, most=1e18)
    assert weight.isfinite().all()
    assert 0.5 < weight.std() < 2


def test_squares_of_a_row_add_up_in_float32_unless_pointwise() -> None:
    for dtype in DTYPES:
        most = inputs.largest(dtype, 393216, pointwise=False)
        assert torch.full((393216,), most).square().sum().isfinite()
        assert inputs.largest(dtype, 393216, pointwise=True) == torch.finfo(dtype).max


@pytest.mark.parametrize(
    ("rows", "cols", "flat", "most"),
    [
        (10, 7, False, 21),
        (10, 7, False, 1),
        (1, 10_000, True, 5000),
        (3, 5, True, 100),
        (9, 4096, True, 4096),
    ],
)
def test_parts_cover_everything_once(rows: int, cols: int, flat: bool, most: int) -> None:
    seen = torch.zeros(rows, cols)
    parts = inputs.split(rows, cols, flat=flat, max_elements=most)
    for part in parts:
        view = part.take(seen, Role.FULL)
        assert view.shape == (part.lines, part.width)
        assert part.lines == 1 or view.numel() <= most
        view += 1
    assert (seen == 1).all()


def test_parts_take_what_belongs_to_them_from_each_role() -> None:
    part = inputs.split(10, 7, flat=False, max_elements=21)[1]
    column = torch.arange(10.0).view(10, 1)
    assert part.take(column, Role.COLUMN).view(-1).tolist() == [3, 4, 5]
    assert part.take(torch.arange(7.0).view(1, 7), Role.ROW).shape == (7,)
