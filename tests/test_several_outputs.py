"""Ops of several outputs, from the function to the loaded kernel: tuned for real, on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ksearch
from ksearch import operators, tuner
from ksearch.errors import UsageError
from ksearch.operators.cost import cost_of
from ksearch.types import Winner

SHAPE = (33, 129)

TRACED = """
import ksearch
import torch

@ksearch.op
def centered(x, y):
    total = x + y
    return total - total.mean(-1, keepdim=True), total
"""

OWN = """
import ksearch

@ksearch.op
class Ends(ksearch.TemplateOp):
    name = "ends"
    outputs = 2
    templates = {"cpu": "ends.cpp"}

    def reference(self, x):
        return x.clamp(max=0), x.clamp(min=0)

    def space(self, workload, target):
        return {"step": [1]}

    def launch(self, config, workload, target):
        return ksearch.Launch(threads=1)
"""
ENDS = """
#include <cstdint>
extern "C" void {{ entry }}(const float* x, float* low, float* high, int64_t rows, int32_t threads) {
    for (int64_t i = 0; i < rows * {{ cols }}; ++i) {
        low[i] = x[i] > 0 ? 0 : x[i];
        high[i] = x[i] < 0 ? 0 : x[i];
    }
}
"""


@pytest.fixture(autouse=True)
def _short_finals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "_FINAL_S", 0.2)


def tune(location: str, trials: int) -> Winner:
    report = tuner.tune(location, SHAPE, device="cpu", trials=trials)
    assert (report.trials, report.failures) == (trials, {})
    return report.winner


def test_a_traced_op_is_tuned_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TRACED)
    winner = tune(f"{path}:centered", 3)
    assert winner.ceiling_us > 0
    handle = ksearch.load(f"{path}:centered", SHAPE, device="cpu")
    x, y = torch.randn(SHAPE), torch.randn(SHAPE)
    outs = (torch.empty(SHAPE), torch.empty(SHAPE))
    for results in (handle(x, y), handle(x, y, out=outs), outs, ksearch.ops.centered(x, y)):
        total = x + y
        torch.testing.assert_close(results[0], total - total.mean(-1, keepdim=True), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(results[1], total)


def own(folder: Path, text: str = OWN) -> str:
    (folder / "ends.cpp").write_text(ENDS)
    (folder / "own.py").write_text(text)
    return f"{folder / 'own.py'}:ends"


def test_an_own_template_says_how_many_it_writes(tmp_path: Path) -> None:
    location = own(tmp_path)
    program = operators.resolve(location).program()
    assert program.output_names == ("out0", "out1")
    winner = tune(location, 1)
    assert cost_of(program, winner.workload).bytes == 3 * 33 * 129 * 4
    x = torch.randn(SHAPE)
    low, high = ksearch.load(location, SHAPE, device="cpu")(x)
    assert torch.equal(low + high, x)
    assert (high - low).min() >= 0


def test_a_reference_of_another_number_is_told(tmp_path: Path) -> None:
    location = own(tmp_path, OWN.replace("outputs = 2", "outputs = 3"))
    with pytest.raises(
        UsageError, match=r"ends: reference gives 2 tensor\(s\), and `outputs` of its class is 3"
    ):
        tuner.tune(location, SHAPE, device="cpu", trials=1)
