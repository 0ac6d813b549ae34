from __future__ import annotations

import threading
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import ksearch
from ksearch import study_file
from ksearch.errors import UsageError
from ksearch.runtime.dispatch import Dispatcher
from tests.runtime.conftest import FakeBackend, promote

X = torch.randn(4, 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "workloads.toml"


def counts(path: Path) -> dict[tuple, int]:
    """What a study file says: op, shape, dtype, options -> calls."""
    return {
        (
            entry.name,
            entry.shape,
            entry.dtype,
            *(f"{name}={value}" for name, value in entry.options),
        ): entry.calls
        for entry in study_file.read(path).entries
    }


def test_pytorchs_functions_are_seen_however_they_are_written(path: Path) -> None:
    norm, y = torch.nn.LayerNorm(8), torch.randn(8)
    with ksearch.capture(path), torch.no_grad():
        for _ in range(3):
            X.softmax(-1)
        F.softmax(X, dim=1)
        torch.softmax(X, 1)
        torch.nn.Softmax(-1)(X)
        norm(X)
        F.rms_norm(X, (8,), y, 1e-5)
        torch.nn.functional.gelu(input=X, approximate="tanh")
        X + y
        X * X
        torch.clamp(X, 0, 6)
    assert counts(path) == {
        ("softmax", (4, 8), "float32"): 6,
        ("layernorm", (4, 8), "float32"): 1,
        ("rmsnorm", (4, 8), "float32", "eps=1e-05"): 1,
        ("gelu", (4, 8), "float32", "approximate=tanh"): 1,
        ("add", (4, 8), "float32", "other=row"): 1,
        ("mul", (4, 8), "float32"): 1,
        ("clamp", (4, 8), "float32", "max=6.0", "min=0.0"): 1,
    }


def test_a_linear_is_batch_in_out(path: Path) -> None:
    with ksearch.capture(path), torch.no_grad():
        torch.nn.Linear(8, 16, bias=False, dtype=torch.bfloat16)(X.bfloat16().view(2, 2, 8))
    (entry,) = study_file.read(path).entries
    assert (entry.name, entry.shape, entry.dtype) == ("linear", (2, 2, 8, 16), "bfloat16")
    assert dict(entry.options) == {"bias": "none"}


def test_a_call_of_ksearch_is_one_call_and_not_also_what_it_runs(path: Path, backend: FakeBackend) -> None:
    promote("softmax", (4, 8), 42.0)
    with ksearch.capture(path):
        assert ksearch.ops.softmax(X)[0, 0] == 42.0  # what is captured runs as it would
        ksearch.ops.softmax(X[:2])
        ksearch.ops.swiglu(X, X)
        ksearch.ops.add_rmsnorm(X, X, torch.ones(8), eps=1e-5)
    assert counts(path) == {
        ("softmax", (4, 8), "float32"): 1,
        ("softmax", (2, 8), "float32"): 1,
        ("swiglu", (4, 8), "float32"): 1,
        ("add_rmsnorm", (4, 8), "float32", "eps=1e-05"): 1,
    }


def test_afterwards_nothing_is_counted_and_nothing_is_slower(path: Path) -> None:
    plain = Dispatcher.__call__
    with ksearch.capture(path) as captured:
        ksearch.ops.sigmoid(X)
        assert Dispatcher.__call__ is not plain
    ksearch.ops.sigmoid(X)
    X.softmax(-1)
    assert captured.counts.total() == 1
    assert Dispatcher.__call__ is plain


def test_an_error_inside_keeps_what_was_seen(path: Path) -> None:
    plain = Dispatcher.__call__

    def program() -> None:
        X.softmax(-1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), ksearch.capture(path):
        program()
    assert counts(path) == {("softmax", (4, 8), "float32"): 1}
    assert Dispatcher.__call__ is plain


def test_other_threads_count_where_they_call_ksearch(path: Path) -> None:
    def work() -> None:
        for _ in range(200):
            ksearch.ops.sigmoid(X)

    threads = [threading.Thread(target=work) for _ in range(4)]
    with ksearch.capture(path):
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert counts(path) == {("sigmoid", (4, 8), "float32"): 800}


def test_one_inside_the_other(path: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner.toml"
    with ksearch.capture(path):
        ksearch.ops.sigmoid(X)
        with ksearch.capture(inner):
            ksearch.ops.sigmoid(X)
            X.tanh()
        X.tanh()
    assert counts(path) == {("sigmoid", (4, 8), "float32"): 2, ("tanh", (4, 8), "float32"): 2}
    assert counts(inner) == {("sigmoid", (4, 8), "float32"): 1, ("tanh", (4, 8), "float32"): 1}


# ---- the file -------------------------------------------------------------------------------------------


def test_the_most_expensive_comes_first(path: Path) -> None:
    big = torch.randn(64, 1024)
    with ksearch.capture(path):
        for _ in range(20):
            X.tanh()
        big.sigmoid()
        X.softmax(-1)
    assert [entry.name for entry in study_file.read(path).entries] == ["sigmoid", "tanh", "softmax"]
    assert "calls = 20  # 256 bytes each" in path.read_text()


def test_counts_are_added_to_those_of_a_file_that_is_there(path: Path) -> None:
    path.write_text(
        '[study]\nname = "mine"\nbudget_s = 60\ndevice = "cuda:1"\n'
        '[[workload]]\nop = "softmax"\nshapes = [[4, 8], [2, 8]]\nweight = 3\n'
        '[[workload]]\nop = "flash_attention"\nshape = [4, 8]\nneeds = "a second product"\n'
    )
    for _ in range(2):
        with ksearch.capture(path):
            X.softmax(-1)
            X.tanh()
    study = study_file.read(path)
    assert (study.name, study.budget_s, study.device) == ("mine", 60.0, "cuda:1")
    assert counts(path) == {
        ("softmax", (4, 8), "float32"): 2,
        ("tanh", (4, 8), "float32"): 2,
        ("softmax", (2, 8), "float32"): 0,
        ("flash_attention", (4, 8), "float32"): 0,
    }
    assert {entry.weight for entry in study.entries if entry.name == "softmax"} == {3.0}
    assert [entry.needs for entry in study.entries if entry.name == "flash_attention"] == ["a second product"]


def test_what_a_kernel_cannot_take_is_told_apart(path: Path) -> None:
    with ksearch.capture(path) as captured:
        X.t().softmax(-1)
        X.cumsum(-1, dtype=torch.float64)
        X.double().softmax(-1)
        X + 1
        torch.empty(0, 8).softmax(-1)
        torch.zeros(4, 8, device="meta").softmax(-1)
        X.t().contiguous().softmax(-1)
    (strided, plain) = sorted(study_file.read(path).entries, key=lambda entry: not entry.needs)
    assert (strided.needs, strided.shape, strided.calls) == ("a tensor that is not contiguous", (8, 4), 1)
    assert (plain.needs, plain.shape, plain.calls) == ("", (8, 4), 1)
    assert captured.passed_over.total() == 4
    text = path.read_text()
    assert "cumsum: dtype=torch.float64 is not that of the input" in text
    assert "softmax: there are no kernels for float64" in text


def test_an_op_of_ones_own_is_named_by_its_file(tmp_path: Path, path: Path) -> None:
    from ksearch import operators

    (tmp_path / "my_ops.py").write_text(
        "import ksearch\n@ksearch.op\ndef swish(x, *, beta=1.0): return x * (beta * x).sigmoid()\n"
    )
    operators.resolve(f"{tmp_path / 'my_ops.py'}:swish")
    for _ in range(2):
        with ksearch.capture(path):
            ksearch.ops.swish(X, beta=2.0)
    assert tomllib.loads(path.read_text())["workload"] == [
        {
            "op": "my_ops.py:swish",
            "shape": [4, 8],
            "dtype": "float32",
            "options": {"beta": 2.0},
            "calls": 2,
        }
    ]
    (entry,) = study_file.read(path).entries
    assert operators.resolve(entry.op).name == "swish"


def test_the_device_is_said_where_there_is_one(path: Path) -> None:
    with ksearch.capture(path):
        X.tanh()
    assert study_file.read(path).device == "cpu"


def test_where_nothing_was_seen_nothing_is_written(path: Path) -> None:
    with ksearch.capture(path):
        torch.zeros(3).sort()
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "says"), [("not toml", "is not TOML"), ("[study]\ncolour = 1\n", "colour: is no key here")]
)
def test_a_file_that_is_no_study_is_told_before_the_program_runs(path: Path, text: str, says: str) -> None:
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        ksearch.capture(path)
    assert path.read_text() == text


def test_a_folder_that_is_not_there_is_told_before_the_program_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        ksearch.capture(tmp_path / "missing" / "workloads.toml")
