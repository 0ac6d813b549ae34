from __future__ import annotations

import pytest
import torch

from ksearch.evaluate.buffers import POISONS, Guarded

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0, 1])
def test_guards_are_large_aligned_and_notice_both_sides(dtype: torch.dtype, shift: int) -> None:
    buffer = Guarded((3, 50), dtype, CPU, shift)
    size = dtype.itemsize
    assert buffer.pointer % 64 == shift * size
    assert buffer.values.shape == (3, 50)
    buffer.values.fill_(1.0)
    assert not bool(buffer.damaged())
    first = (buffer.pointer - buffer.raw.data_ptr()) // size
    assert first * size >= 4096
    assert (len(buffer.raw) - first - 150) * size >= 4096
    for place in (0, first - 1, first + 150, len(buffer.raw) - 1):
        kept = int(buffer.raw[place])
        buffer.raw[place] = 0
        assert bool(buffer.damaged())
        buffer.raw[place] = kept
    assert not bool(buffer.damaged())


@pytest.mark.parametrize("dtype", DTYPES)
def test_guards_and_poison_are_not_numbers_but_the_second_poison_is(dtype: torch.dtype) -> None:
    buffer = Guarded((2, 8), dtype, CPU)
    assert buffer.raw.view(dtype)[0].isnan()
    buffer.poison(0)
    assert buffer.values.isnan().all()
    buffer.poison(1)
    assert buffer.values.isfinite().all()
    assert buffer.bits.unique().tolist() == [POISONS[dtype][1]]
    assert not bool(buffer.damaged())


def test_a_guard_holds_a_whole_row_for_a_kernel_that_is_off_by_one() -> None:
    buffer = Guarded((2, 100_000), torch.float32, CPU)
    assert buffer.pointer - buffer.raw.data_ptr() >= 400_000
