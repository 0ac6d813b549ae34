"""`ksearch.patch(model, prepacked=True)` with kernels of the CPU: packed once, followed, undone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, nn

import ksearch
from ksearch import operators, runtime
from ksearch.errors import NoWinner
from ksearch.nn import PrepackedLinear
from ksearch.runtime.layer import MOST_COPIES
from ksearch.runtime.notice import forget
from tests.winners import Launches, in_use, put_in_force

ROWS, INNER, COLS = 33, 48, 70
DIMS = [(rows, INNER, COLS) for rows in (ROWS, 2, 5, 7, 11, 13)]

PackedRows: TypeAlias = Callable[[], list[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("patched")
    put_in_force(made, "cpu", [operators.get("linear").workload(dims, prepacked=True) for dims in DIMS])
    return made


@pytest.fixture
def launches(folder: Path) -> Iterator[Launches]:
    with in_use(folder, "cpu") as counted:
        yield counted


@pytest.fixture
def packed_rows(packings: list[tuple[int, Tensor]]) -> PackedRows:
    """Rows of each product that a weight was packed for so far."""
    return lambda: [rows for rows, _ in packings]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(INNER, COLS)
        self.act = nn.ReLU()
        self.last = nn.Linear(COLS, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(7)
    return Model().eval()


def x(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, INNER, generator=torch.Generator().manual_seed(rows))


def is_right(model: nn.Module, given: Tensor) -> bool:
    """Beside a plain model of the same weights."""
    plain = Model().eval()
    plain.load_state_dict(model.state_dict())
    return torch.allclose(model(given), plain(given), rtol=1e-5, atol=1e-5)


def test_a_model_is_patched_and_undone(model: Model, launches: Launches, packed_rows: PackedRows) -> None:
    state = list(model.state_dict())
    report = ksearch.patch(model, x(), prepacked=True)
    assert report.swapped == ("first",)
    assert type(model.first) is PrepackedLinear
    assert (launches.count, packed_rows()) == (0, [ROWS]), "it is packed when the model is patched"
    text = str(report)
    assert (
        f"first Linear -> linear {ROWS}x{INNER} float32 exact: 2.00 x PyTorch with its weight packed" in text
    )
    assert "last Linear -- linear" in text
    assert "its weight is not packed: linear 33x70x3 float32 prepacked" in text
    assert "--prepacked" in text
    assert list(model.state_dict()) == state
    with torch.no_grad():
        for _ in range(3):
            assert is_right(model, x())
    assert (launches.count, packed_rows()) == (3, [ROWS])
    first = model.first
    report.undo()
    report.undo()
    assert type(first) is nn.Linear
    assert "_packed" not in first.__dict__, "the packed weight is let go of"
    with torch.no_grad():
        assert is_right(model, x())
    assert launches.count == 3


def test_without_inputs_what_a_packed_winner_fits_is_swapped(model: Model, launches: Launches) -> None:
    forget()
    with ksearch.patch(model, prepacked=True) as report, torch.no_grad():
        assert report.swapped == ("first",)
        assert "first Linear -> linear: winners with its weight packed for 11x48x70 float32" in str(report)
        assert is_right(model, x())
        assert launches.count == 1
    assert ksearch.patch(model).swapped == (), "a plain call has no use for them"
    assert ksearch.patch(model, x()).swapped == ()
    assert ksearch.patch(model.half(), prepacked=True).swapped == ()


def test_a_weight_that_changes_is_followed(model: Model, launches: Launches, packed_rows: PackedRows) -> None:
    report = ksearch.patch(model, x(), prepacked=True)
    other = Model().state_dict()
    changes = [
        lambda: model.first.weight.mul_(2.0),
        lambda: model.load_state_dict(other),
        lambda: setattr(model.first, "weight", nn.Parameter(torch.randn(COLS, INNER))),
        lambda: torch.optim.SGD(model.parameters(), lr=0.1).step(),
        lambda: model.double().float(),
    ]
    model.first.weight.grad = torch.ones_like(model.first.weight)
    with torch.no_grad():
        for count, change in enumerate(changes, 1):
            change()
            assert is_right(model, x())
            assert launches.count == count
        assert len(packed_rows()) >= 4
        model.first.weight.data.mul_(3.0)  # of which no count is kept
        report.repack()
        assert is_right(model, x())
        model.first.weight.data.mul_(0.5)
        model.first.repack()
        assert is_right(model, x())


def test_training_gradients_and_autocast_go_their_own_way(model: Model, launches: Launches) -> None:
    ksearch.patch(model, x(), prepacked=True)
    given = x().requires_grad_()
    found = model(given)
    assert launches.count == 0
    plain = Model().eval()
    plain.load_state_dict(model.state_dict())
    other = x().requires_grad_()
    wanted = plain(other)
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(given.grad, other.grad)
    torch.testing.assert_close(model.first.weight.grad, plain.first.weight.grad)
    with torch.no_grad():
        model.train()
        assert is_right(model, x())
        model.eval()
        with torch.autocast("cpu", torch.bfloat16):
            assert model.first(x()).dtype is torch.bfloat16
        assert launches.count == 0
        compiled = torch.compile(model.first, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x()), plain.first(x()), rtol=1e-5, atol=1e-5)
        swapped = {"first.weight": torch.zeros(COLS, INNER)}
        found = torch.func.functional_call(model, swapped, (x(),))
        wanted = torch.func.functional_call(plain, swapped, (x(),))
        torch.testing.assert_close(found, wanted)
        assert launches.count == 0, "a weight for one call is not packed"


def test_each_number_of_rows_has_a_packed_weight_up_to_a_limit(
    model: Model, launches: Launches, packed_rows: PackedRows
) -> None:
    ksearch.patch(model, prepacked=True)
    rows = [dims[0] for dims in DIMS]
    with torch.no_grad():
        for _ in range(2):
            for count in rows:
                assert is_right(model, x(count))
        assert is_right(model, x(999)), "for which there is no kernel"
    assert packed_rows() == rows[:MOST_COPIES]
    assert launches.count == 2 * MOST_COPIES
    assert model.first.packed.copies == MOST_COPIES


def test_a_new_winner_is_found_after_refresh(folder: Path, launches: Launches, model: Model) -> None:
    ksearch.patch(model, prepacked=True)
    with torch.no_grad():
        assert is_right(model, x(17))
        assert launches.count == 0
        put_in_force(folder, "cpu", [operators.get("linear").workload((17, INNER, COLS), prepacked=True)])
        assert is_right(model, x(17))
        assert launches.count == 0
        runtime.refresh()
        assert is_right(model, x(17))
        assert launches.count == 1


def test_copies_pack_for_themselves(model: Model, launches: Launches) -> None:
    ksearch.patch(model, x(), prepacked=True)
    with torch.no_grad():
        for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(made.first) is PrepackedLinear
            made.first.weight.neg_()
            before = launches.count
            assert is_right(made, x())
            assert is_right(model, x())
            assert launches.count == before + 2


def test_the_module_by_itself(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSEARCH_REQUIRE", "1")
    layer = PrepackedLinear(INNER, COLS).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            layer(x()), nn.functional.linear(x(), layer.weight, layer.bias), rtol=1e-5, atol=1e-5
        )
        assert launches.count == 1
        with pytest.raises(NoWinner, match="KSEARCH_REQUIRE"):
            layer(x(999))
