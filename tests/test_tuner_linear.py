"""A linear through the whole loop on the CPU: PyTorch's product and a kernel, found, kept, loaded, run."""

from __future__ import annotations

import pytest
import torch

import ksearch
from ksearch import env, stopping, tuner
from ksearch.runtime import Match
from ksearch.store import Store
from ksearch.tuner import tune


@pytest.fixture(autouse=True)
def _short_finals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "_FINAL_S", 0.3)


@pytest.mark.parametrize("op", ["linear_sigmoid_sum", "linear_sigmoid_scale_residual"])
def test_a_linear_is_tuned_and_loaded(op: str) -> None:
    report = tune(op, (16, 48, 100), device="cpu", trials=4)
    assert (report.trials, report.failures) == (4, {})
    workload = report.winner.workload
    assert (workload.shape, workload.inner, workload.shape_text) == ((16, 100), 48, "16x48x100")
    with Store.open(env.database_path()) as store:
        assert store.find(workload, report.winner.target) == report.winner
    handle = ksearch.load(op, (16, 48, 100), device="cpu")
    assert handle.match is Match.EXACT
    assert handle.winner == report.winner
    if report.winner.launch is not None:
        assert report.winner.launch.torch_product
    tensors = torch.randn(16, 48), torch.randn(100, 48), torch.randn(100)
    exact = ksearch.operators.get(op).reference(*(tensor.double() for tensor in tensors))
    torch.testing.assert_close(handle(*tensors).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_bias_is_added_before_the_product_is_rounded(dtype: str) -> None:
    """As PyTorch does it: 1.3 times the error that was allowed came of adding it to a rounded product."""
    report = tune("linear_sigmoid_sum", (64, 512, 256), dtype=dtype, device="cpu", trials=3)
    assert report.failures == {}
    assert report.trials == 3


def test_pytorchs_product_is_no_wall_that_a_search_ends_at(monkeypatch: pytest.MonkeyPatch) -> None:
    walls: list[float] = []
    monkeypatch.setattr(stopping, "early", lambda outcomes, target, wall_us: walls.append(wall_us))
    tune("linear_relu", (4, 8, 16), device="cpu", trials=2)
    tune("softmax", (4, 8), device="cpu", trials=2)
    assert 0.0 in walls
    assert walls[0] == 0.0
    assert walls[-1] > 0.0
