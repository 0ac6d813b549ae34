from __future__ import annotations

import logging
import shutil
import sqlite3
import subprocess
import sys
import textwrap

import pytest
import torch

import ksearch
from ksearch import env, operators
from ksearch.errors import BadShape, KsearchError, NoSuchDevice, StoreError, UnknownOp, UnsupportedDtype
from ksearch.runtime import Match, refresh
from ksearch.store import Store
from ksearch.types import Winner
from tests.runtime.conftest import TARGET, promote

SHAPE = (4, 8)


def runs_the_kernel(handle, shape=SHAPE) -> bool:
    """True for the fake kernel's 42, False for PyTorch's values; anything else fails."""
    x = torch.randn(shape)
    result = handle(x)
    if bool((result == 42).all()):
        return True
    torch.testing.assert_close(result, torch.softmax(x, -1))
    return False


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "ksearch"]


def edit(statement: str, *values) -> None:
    connection = sqlite3.connect(env.database_path())
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def test_a_winner_is_loaded_and_runs(backend, caplog):
    winner = promote("softmax", SHAPE)
    handle = ksearch.load("softmax", shape=SHAPE, dtype=torch.float32, device="cpu")
    assert handle.match is Match.EXACT
    assert handle.reason == ""
    assert handle.winner == winner
    assert runs_the_kernel(handle)
    assert backend.launched[-1][1:] == (4, 0), "rows, and no stream on a CPU"
    assert repr(handle) == "<ksearch softmax 4x8 float32 on Fake CPU: exact, runs a kernel, 2.00 x PyTorch>"
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "question",
    [
        {"shape": "4x8", "dtype": "float32", "device": "cpu"},
        {"shape": [4, 8], "dtype": torch.float32, "device": torch.device("cpu")},
        {"shape": torch.Size(SHAPE)},
    ],
)
def test_the_same_question_in_other_words(backend, question):
    promote("softmax", SHAPE)
    assert ksearch.load("softmax", **question).match is Match.EXACT


def test_where_pytorch_won_it_runs_and_nothing_is_missing(backend, caplog):
    promote("softmax", SHAPE, None)
    handle = ksearch.load("softmax", SHAPE)
    assert (handle.match, handle.reason) == (Match.EXACT, "")
    assert handle.winner.status == "baseline"
    assert not runs_the_kernel(handle)
    assert "PyTorch, which won" in repr(handle)
    assert warnings(caplog) == []


def test_without_a_database_pytorch_runs_and_the_log_says_once_what_to_do(backend, caplog):
    for _ in range(3):
        handle = ksearch.load("softmax", SHAPE, "float16", device="cpu")
    assert handle.match is Match.FALLBACK
    assert handle.winner is None
    (said,) = warnings(caplog)
    assert str(env.database_path()) in said
    assert "ksearch tune softmax --shape 4x8 --dtype float16 --device cpu" in said
    assert caplog.records[0].levelno == logging.WARNING
    assert not env.database_path().exists(), "looking makes no file"


def test_another_database_is_named_in_what_to_run(backend, caplog, tmp_path):
    ksearch.load("softmax", SHAPE, db=tmp_path / "my winners.db")
    assert f"--db '{tmp_path}/my winners.db'" in warnings(caplog)[0]


@pytest.mark.parametrize("question", [{"shape": (8, 4)}, {"shape": (32,)}, {"dtype": "bfloat16"}])
def test_a_winner_for_something_else_is_not_used(backend, question):
    promote("softmax", SHAPE)
    handle = ksearch.load("softmax", **{"shape": SHAPE, **question})
    assert handle.match is Match.FALLBACK
    assert "no winner" in handle.reason
    assert "to get one: ksearch tune softmax --shape" in handle.reason
    assert "runs PyTorch" in repr(handle)


def test_a_winner_of_another_machine_is_not_used(backend):
    promote("softmax", SHAPE)
    edit("UPDATE winners SET target_key = 'cpu/x86_64-avx512/Another'")
    assert ksearch.load("softmax", SHAPE).match is Match.FALLBACK


def test_the_winner_in_force_is_the_one_that_runs(backend):
    promote("softmax", SHAPE, 7.0)
    promote("softmax", SHAPE, 42.0)
    assert runs_the_kernel(ksearch.load("softmax", SHAPE))
    assert backend.loaded == ["42.0 x 32 x 1"]


def test_new_winners_are_seen_after_refresh(backend, caplog):
    x = torch.zeros(SHAPE)
    assert ksearch.ops.softmax(x)[0, 0] == 0.125
    promote("softmax", SHAPE)
    assert ksearch.ops.softmax(x)[0, 0] == 0.125
    refresh()
    assert ksearch.ops.softmax(x)[0, 0] == 42.0


def falls_back(caplog, words: str) -> None:
    handle = ksearch.load("softmax", SHAPE)
    assert handle.match is Match.FALLBACK
    assert words in handle.reason
    assert not runs_the_kernel(handle)
    assert len(warnings(caplog)) == 1
    assert words in warnings(caplog)[0]


def test_a_changed_binary_is_refused(backend, caplog):
    promote("softmax", SHAPE)
    edit("UPDATE artifacts SET binary = ?", b"13 x 32")
    falls_back(caplog, "SHA-256 differs")
    assert backend.loaded == []


def test_a_lost_binary_is_refused(backend, caplog):
    promote("softmax", SHAPE)
    edit("DELETE FROM artifacts")
    falls_back(caplog, "SHA-256 differs")


def test_a_changed_file_in_the_cache_is_replaced(backend):
    promote("softmax", SHAPE)
    ksearch.load("softmax", SHAPE)
    (file,) = (env.cache_dir() / "kernels").iterdir()
    file.write_text("13 x 32")
    assert runs_the_kernel(ksearch.load("softmax", SHAPE))
    assert [path.name for path in file.parent.iterdir()] == [file.name], "no scratch files stay"


def test_a_cache_that_cannot_be_written(backend, caplog, monkeypatch, tmp_path):
    promote("softmax", SHAPE)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KSEARCH_CACHE_DIR", str(tmp_path / "file" / "below"))
    falls_back(caplog, str(tmp_path / "file" / "below"))


def test_a_binary_that_does_not_load(backend, caplog):
    promote("softmax", SHAPE)
    backend.refuse_load = True
    falls_back(caplog, "no kernel image")


def test_a_text_file_for_a_database(backend, caplog):
    env.database_path().write_text("dear diary " * 100)
    falls_back(caplog, "is not a database")


def test_a_folder_for_a_database(backend, caplog):
    env.database_path().mkdir()
    falls_back(caplog, "no database at")


def test_a_path_below_a_file_for_a_database(backend, caplog, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KSEARCH_DB", str(tmp_path / "file" / "k.db"))
    falls_back(caplog, "no database at")


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.6, 0.9])
def test_a_truncated_database(backend, caplog, keep):
    promote("softmax", SHAPE)
    whole = env.database_path().read_bytes()
    env.database_path().write_bytes(whole[: int(len(whole) * keep)])
    falls_back(caplog, "damaged")


def test_an_empty_file_and_a_database_of_optuna_alone_hold_no_winners(backend, caplog):
    env.database_path().touch()
    falls_back(caplog, "holds no results of ksearch yet")


def test_a_newer_database(backend, caplog):
    promote("softmax", SHAPE)
    edit("INSERT INTO ksearch_schema VALUES (999, 'later')")
    falls_back(caplog, "newer ksearch")


@pytest.mark.parametrize("column", ["config", "launch"])
def test_a_record_that_does_not_read(backend, caplog, column):
    promote("softmax", SHAPE)
    edit(f"UPDATE winners SET {column} = '{{\"unknown\": ['")
    falls_back(caplog, "does not read")


def test_a_certificate_that_does_not_read_is_no_matter_before_somebody_asks(backend):
    promote("softmax", SHAPE)
    edit("UPDATE winners SET certificate = '{\"unknown\": ['")
    handle = ksearch.load("softmax", SHAPE)
    assert runs_the_kernel(handle)
    with pytest.raises(StoreError, match="does not read"):
        handle.winner.certificate["near"]


def test_a_launch_of_another_version_is_not_guessed_at(backend, caplog):
    promote("softmax", SHAPE)
    edit("UPDATE winners SET launch = '{\"warps\": 4}'")
    falls_back(caplog, "does not read")


def test_a_writer_at_work_does_not_keep_readers_out(backend):
    promote("softmax", SHAPE)
    writer = sqlite3.connect(env.database_path(), isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE winners SET superseded = 'now'")
    assert runs_the_kernel(ksearch.load("softmax", SHAPE))
    writer.execute("COMMIT")
    writer.close()
    assert ksearch.load("softmax", SHAPE).match is Match.FALLBACK


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ({"op": "softmaxx"}, UnknownOp),
        ({"shape": (4, 0)}, BadShape),
        ({"shape": "4by8"}, BadShape),
        ({"shape": ()}, BadShape),
        ({"dtype": torch.int64}, UnsupportedDtype),
        ({"dtype": "float31"}, UnsupportedDtype),
        ({"device": "tpu"}, NoSuchDevice),
        ({"device": "cuda:99"}, NoSuchDevice),
        ({"temperature": 2.0}, KsearchError),
    ],
)
def test_a_wrong_question_is_an_error(backend, question, error):
    with pytest.raises(error) as caught:
        ksearch.load(**{"op": "softmax", "shape": SHAPE, "device": "cpu", **question})
    assert "\n" not in str(caught.value)


def test_a_read_only_disk_is_enough_to_load_from(tmp_path):
    """A WAL database in a folder that cannot be written needs SQLite's immutable mode."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a folder read-only")
    folder = tmp_path / "disk"
    workload = operators.get("softmax").workload(SHAPE, "float32")
    with Store.open(folder / "k.db") as store:
        pytorch_won = Winner(workload, TARGET, None, None, None, 1.0, 1.0, 1.0)
        store.promote(pytorch_won, source=None, binary=None, environment={})
    code = f"""
        from pathlib import Path
        from ksearch.operators import get
        from ksearch.runtime import lookup
        from ksearch.types import Target
        target = Target("cpu", "x86_64-fake", "Fake CPU", units=2)
        workload = get("softmax").workload({SHAPE}, "float32")
        print(lookup.find(Path({str(folder / "k.db")!r}), workload, target))
    """
    mount = (
        f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}' || exit 77; exec \"$@\""
    )
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("may not mount here")
    assert done.stdout.startswith("Found(winner=Winner("), done.stderr


def test_production_needs_no_compiler_no_search_and_no_orm(backend):
    promote("softmax", SHAPE)
    code = """
        import sys, torch, ksearch
        ksearch.load("softmax", (4, 8), device="cpu")(torch.randn(4, 8))
        ksearch.ops.sigmoid(torch.randn(4, 8))
        heavy = {"sqlalchemy", "optuna", "jinja2", "ksearch.store", "ksearch.render", "ksearch.search"}
        print(sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
