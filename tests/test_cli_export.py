"""`ksearch export`, `import` and `merge`, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ksearch import backends, env
from ksearch.runtime.bundle_file import BundleFile
from ksearch.store import Store
from ksearch.types import Winner, digest
from tests.export.exported import H200, kernel_of

Run = Callable[..., tuple[int, str, str]]
CPU = backends.get("cpu").target(0)


def error_of(result: tuple[int, str, str], status: int = 2) -> str:
    assert result[:2] == (status, "")
    assert result[2].startswith("ksearch: error: ")
    assert result[2].count("\n") == 1
    return result[2]


def keep(
    db: Path, op: str, shape: tuple[int, ...], *, low: float = 1.9, target=CPU, **changes: object
) -> Winner:
    """A kernel of that op, put in force as if it had been tuned."""
    kernel = kernel_of(op, shape, str(changes.pop("dtype", "float32")), target)
    binary = f"a binary of {kernel.workload} for {target.device}".encode()
    winner = replace(
        kernel.winner,
        artifact=digest(binary),
        certificate={"speedup_ci": [low, low + 0.2]},
        created="2026-11-20T12:00:00Z",
        **changes,
    )
    if winner.config is None:
        winner = replace(winner, launch=None, artifact=None, certificate={})
    with Store.open(db) as store:
        lost = winner.artifact is None
        store.promote(
            winner,
            source=None if lost else kernel.text,
            binary=None if lost else binary,
            environment={"ksearch": "0.1.0", "torch": "2.13.0"},
        )
    return winner


@pytest.fixture
def tuned() -> Path:
    """The default one: two softmax and a sigmoid for the CPU, a softmax for a GPU, one that PyTorch won."""
    db = env.database_path()
    keep(db, "softmax", (4, 8))
    keep(db, "softmax", (4, 16), dtype="bfloat16")
    keep(db, "softmax", (4, 8), target=H200)
    keep(db, "sigmoid", (4, 8))
    keep(db, "tanh", (4, 8), config=None)
    return db


# ---- bundles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ((), 5),
        (("softmax",), 3),
        (("softmax", "tanh"), 4),
        (("softmax", "--shape", "4x8"), 2),
        (("softmax", "--shape", "4x8", "--shape", "4x16"), 3),
        (("softmax", "--device", "H200"), 1),
        (("--dtype", "bfloat16"), 1),
        (("--device", "cpu"), 4),
    ],
)
def test_what_is_asked_for_is_in_the_bundle(run: Run, tuned: Path, tmp_path: Path, asked, count: int) -> None:
    path = tmp_path / "out.ksb"
    status, out, _ = run("export", "--bundle", path, *asked)
    assert status == 0
    assert f"{path}: {count} winner" in out
    assert BundleFile(path).count == count


def test_as_json_it_is_one_object(run: Run, tuned: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    path = tmp_path / "out.ksb"
    status, out, err = run("export", "--bundle", path, "--sign", key, "--json")
    assert (status, err) == (0, "")
    row = json.loads(out)
    assert row.pop("sha256")
    assert row == {
        "bundle": str(path),
        "winners": 5,
        "kernels": 4,
        "size_bytes": path.stat().st_size,
        "signed": True,
    }
    assert BundleFile(path, key).count == 5


def test_a_bundle_is_replaced_as_a_whole(run: Run, tuned: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.ksb"
    run("export", "--bundle", path)
    first = path.read_bytes()
    run("export", "--bundle", path)
    assert path.read_bytes() == first
    assert path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in tmp_path.iterdir() if "out.ksb" in each.name] == ["out.ksb"]


def test_there_and_back(run: Run, tuned: Path, tmp_path: Path) -> None:
    path, db = tmp_path / "out.ksb", tmp_path / "other.db"
    run("export", "--bundle", path)
    status, out, _ = run("import", path, "--db", db)
    assert status == 0
    assert "5 winners in force now" in out
    with Store.open(tuned) as before, Store.open(db) as after:
        assert after.winners() == before.winners()
        for winner in before.winners():
            assert after.environment(winner.workload, winner.target) == {
                "ksearch": "0.1.0",
                "torch": "2.13.0",
            }
            if winner.artifact:
                assert after.artifact(winner.artifact) == before.artifact(winner.artifact)
    status, out, _ = run("import", path, "--db", db, "--json")
    (row,) = json.loads(out)["added"]
    assert (row["winners"], row["known"], row["conflicts"]) == (0, 5, [])
    run("export", "--bundle", tmp_path / "again.ksb", "--db", db)
    assert (tmp_path / "again.ksb").read_bytes() == path.read_bytes()


def test_a_changed_bundle_is_not_imported_at_all(run: Run, tuned: Path, tmp_path: Path) -> None:
    good, bad, db = tmp_path / "good.ksb", tmp_path / "bad.ksb", tmp_path / "other.db"
    run("export", "--bundle", good, "sigmoid")
    run("export", "--bundle", bad, "softmax")
    content = bad.read_bytes()
    bad.write_bytes(content.replace(b"a binary of softmax 4x16", b"a binary of softmax 4x17"))
    assert f"{bad} was changed" in error_of(run("import", good, bad, "--db", db), 1)
    with Store.open(db) as store:
        assert store.winners() == []


def test_only_what_was_signed_is_imported(run: Run, tuned: Path, tmp_path: Path) -> None:
    key, path = tmp_path / "key", tmp_path / "out.ksb"
    key.write_bytes(bytes(32))
    run("export", "--bundle", path)
    assert "is not signed" in error_of(run("import", path, "--key", key, "--db", tmp_path / "x.db"), 1)
    assert not (tmp_path / "x.db").exists()


# ---- source files ---------------------------------------------------------------------------------------


def test_a_source_file(run: Run, tuned: Path, tmp_path: Path) -> None:
    path = tmp_path / "sigmoid.py"
    status, out, _ = run("export", "--source", path, "sigmoid", "--shape", "4x8")
    assert (status, out) == (0, f"{path}: sigmoid 4x8 float32 for {CPU.device}\n")
    assert "class ModelNew" in path.read_text()
    status, out, _ = run(
        "export", "--source", tmp_path / "softmax.cu", "softmax", "--device", "cuda", "--json"
    )
    assert status == 0
    row = json.loads(out)
    assert (row["op"], row["shape"], row["arch"]) == ("softmax", [4, 8], "sm_90")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("softmax", "--source", "a.py"), "holds one kernel, and 3 were chosen: .*narrow it by --shape"),
        (("--source", "a.py"), "name one OP"),
        (("tanh", "--source", "a.py"), "PyTorch won for tanh 4x8 float32"),
        (("sigmoid", "--source", "a.cu"), "can be written as .py or .cpp, not as .cu"),
        (("sigmoid", "--source", "a.py", "--sign", "key"), "--sign is for a bundle"),
        (("sigmoid",), "Say what to write"),
        (("sigmoid", "--source", "a.py", "--bundle", "b.ksb"), "Say what to write"),
        (("--bundle", "b.ksb", "--shape", "4x8"), "are for a named OP"),
        (("--bundle", "b.ksb", "relu"), "no winner for relu .*; to get one: ksearch tune relu --shape NxM"),
        (("--bundle", "b.ksb", "relu", "--shape", "4xx"), "shape '4xx'"),
        (("--bundle", "missing/b.ksb"), "cannot write .*missing/b.ksb: No such file"),
        (("--bundle", "b.ksb", "--sign", "missing"), "cannot read the key .*missing"),
        (("sigmoid", "--source", "missing/a.py"), "cannot write .*missing/a.py"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    run: Run, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, says: str
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    assert re.search(says, error_of(run("export", *arguments)))
    assert not list(tmp_path.glob("*.ksb"))
    assert not list(tmp_path.glob("a.*"))


def test_without_a_database_there_is_nothing_to_export(run: Run, tmp_path: Path) -> None:
    assert "no database at" in error_of(run("export", "--bundle", tmp_path / "b.ksb"), 1)


# ---- merge ----------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Both have a softmax, of which b has the better; each has another op."""
    a, b = tmp_path / "a.db", tmp_path / "b.db"
    keep(a, "softmax", (4, 8), low=1.2)
    keep(a, "sigmoid", (4, 8))
    keep(b, "softmax", (4, 8), low=1.6, time_us=7.0)
    keep(b, "tanh", (4, 8), config=None)
    return a, b


def test_into_a_third(run: Run, two: tuple[Path, Path], tmp_path: Path) -> None:
    before = [path.read_bytes() for path in two]
    goal = tmp_path / "c.db"
    status, out, _ = run("merge", *two, "--into", goal)
    assert status == 0
    assert "softmax 4x8 float32 on" in out
    assert "took the one that is surely 1.60x PyTorch, not 1.20x" in out
    assert [path.read_bytes() for path in two] == before
    with Store.open(goal) as store:
        assert {winner.workload.op: winner.time_us for winner in store.winners()} == {
            "sigmoid": 10.0,
            "softmax": 7.0,
            "tanh": 10.0,
        }
        assert len(store.history(store.winners("softmax")[0].workload, CPU)) == 2


def test_into_the_first(run: Run, two: tuple[Path, Path]) -> None:
    a, b = two
    status, out, err = run("merge", a, b, "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["db"] == str(a)
    (row,) = told["added"]
    assert (row["source"], row["winners"], row["known"]) == (str(b), 2, 0)
    (conflict,) = row["conflicts"]
    assert (conflict["op"], conflict["kept"]) == ("softmax", "source")
    assert (conflict["kept_confirmed_speedup"], conflict["dropped_confirmed_speedup"]) == (1.6, 1.2)
    again = json.loads(run("merge", a, b, "--json")[1])
    assert [row["winners"] for row in again["added"]] == [0]


def test_the_order_does_not_matter(run: Run, two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two
    run("merge", a, b, "--into", tmp_path / "ab.db")
    run("merge", b, a, "--into", tmp_path / "ba.db")
    with Store.open(tmp_path / "ab.db") as one, Store.open(tmp_path / "ba.db") as other:
        assert one.winners() == other.winners()


@pytest.mark.parametrize("broken", ["missing.db", "text.db"])
def test_one_bad_database_and_nothing_is_merged(
    run: Run, two: tuple[Path, Path], tmp_path: Path, broken: str
) -> None:
    (tmp_path / "text.db").write_text("this is no database, but a text that is long enough to be read as one")
    a, b = two
    before = a.read_bytes()
    assert broken in error_of(run("merge", a, b, tmp_path / broken), 1)
    assert a.read_bytes() == before
    assert broken in error_of(run("merge", a, tmp_path / broken, "--into", tmp_path / "new.db"), 1)
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize(
    "arguments", [("a.db",), ("a.db", "a.db"), ("a.db", "b.db", "--into", "x", "--db", "y")]
)
def test_what_cannot_be_merged_is_one_line(run: Run, tmp_path: Path, monkeypatch, arguments) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--into" in error_of(run("merge", *arguments))


def test_workloads_of_equal_shape_stay_apart(run: Run, two: tuple[Path, Path], tmp_path: Path) -> None:
    """The options are a part of what is compared."""
    a, b = two
    keep(a, "leaky_relu", (4, 8))
    with Store.open(a) as store:
        (ours,) = store.winners("leaky_relu")
    other = replace(ours, workload=replace(ours.workload, options=(("negative_slope", 0.5),)))
    with Store.open(b) as store:
        lost = replace(other, config=None, launch=None, artifact=None)
        store.promote(lost, source=None, binary=None, environment={})
    added = json.loads(run("merge", a, b, "--json")[1])["added"][0]
    assert [conflict["op"] for conflict in added["conflicts"]] == ["softmax"]
