"""What PyTorch's results and float64's are taken of: inputs, and inputs that are next to them."""

from __future__ import annotations

import pytest
import torch

from ksearch.evaluate.references import _moved, references

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [1, 128])
def test_an_element_is_moved_by_one_rounded_product(dtype: torch.dtype, value: int) -> None:
    generator = torch.Generator().manual_seed(1)
    scales = torch.tensor([1.0, 1e-6, 1e-39, 1e4]).repeat_interleave(5000)
    x = (torch.randn(20000, generator=generator) * scales).to(dtype)
    x[:5] = torch.tensor([torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).max, 0.0], dtype=dtype)
    bits = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.uint8) * value
    eps = torch.finfo(dtype).eps
    exact = x.double() * torch.where(bits != 0, 1.0 + eps, 1.0 - eps).double()
    assert torch.equal(_moved(x, bits, value).nan_to_num(7.0), exact.to(dtype).nan_to_num(7.0))


def test_each_draw_moves_every_element_of_its_own() -> None:
    x = torch.rand(3, 1001, generator=torch.Generator().manual_seed(1)) + 1.0  # no multiple of eight
    seen: list[torch.Tensor] = []

    def function(tensor: torch.Tensor) -> tuple[torch.Tensor]:
        if tensor.dtype is torch.float32:
            seen.append(tensor)
        return (tensor.sum(-1, keepdim=True),)

    references(function, [x], pointwise=False, levels=1.0, alone=True)
    own, *moved = seen
    assert own is x
    assert len(moved) == 4
    for each in moved:
        off = (each - x) / x / torch.finfo(torch.float32).eps
        assert ((off.abs() > 0.6) & (off.abs() < 1.5)).all()
        assert 0.4 < (off > 0).double().mean() < 0.6
    ways = torch.stack([each > x for each in moved]).double()
    assert (torch.corrcoef(ways.view(4, -1)) - torch.eye(4)).abs().max() < 0.1


def test_the_function_is_not_asked_for_neighbours_where_only_places_are_given() -> None:
    calls = []

    def function(tensor: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(tensor.dtype)
        return (tensor.argmax(-1, keepdim=True),)

    references(function, [torch.rand(5, 30)], pointwise=False, alone=True)
    assert calls == [torch.float32, torch.float64]
