"""What is fuzzed: each target takes text or values from outside, and whatever they are, an answer or one
clear error of ours comes back. Hypothesis (test_*.py) and Atheris (fuzz_atheris.py) make the values.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ksearch import cli, env, operators, study_file, tuner
from ksearch.errors import BundleError, KsearchError, StoreError
from ksearch.export.bundle import records, write_bundle
from ksearch.launch import Launch, TensorMap
from ksearch.plan import make_plan
from ksearch.runtime import lookup
from ksearch.runtime.bundle_file import MAGIC, BundleFile
from ksearch.store import Store
from ksearch.types import Artifact, Outcome, Status, Target, Winner, Workload, digest

TARGET = Target("cpu", "x86_64-avx2", "a CPU, 2 threads", units=2, memory_bytes=1 << 34)
WORKLOAD = Workload("softmax", (4, 8), options=(("eps", 1e-6),), program="0123abcd")
CELLS = (
    *[("winners", name) for name in ("config", "launch", "artifact_digest", "time_us", "baseline_us")],
    *[("winners", name) for name in ("ceiling_us", "certificate", "created", "target_key", "superseded")],
    *[("workloads", name) for name in ("op", "shape", "rows", "cols", "inner", "dtype", "options")],
    *[("workloads", name) for name in ("program", "layout", "policy", "regime")],
    *[("targets", name) for name in ("key", "backend", "arch", "device", "index", "units", "memory_bytes")],
    *[("evaluations", name) for name in ("study", "number", "config", "status", "time_us", "spread_us")],
    *[("evaluations", name) for name in ("repeats", "error", "message", "registers", "compile_s", "created")],
    ("artifacts", "source"), ("artifacts", "binary"), ("artifacts", "log"),
    ("environments", "versions"), ("ksearch_schema", "version"),
)  # fmt: skip


def clear(error: KsearchError, place: Path | str = "") -> None:
    """One line, which says something, and where."""
    text = str(error)
    assert text
    assert str(place) in text
    assert "internal error" not in text
    assert "\n" not in text, text


def _promote(store: Store, workload: Workload, target: Target, binary: bytes | None) -> None:
    launch = Launch(
        threads=2, maps=(TensorMap(1, "float32", 8, None, 4, 2),), before=(Launch(entry="first"),)
    )
    winner = Winner(
        workload=workload,
        target=target,
        config={"simd": 8, "store": "stream", "keep": True} if binary else None,
        launch=launch if binary else None,
        artifact=digest(binary) if binary else None,
        time_us=1.0,
        baseline_us=2.0,
        ceiling_us=0.5,
        certificate={"near": [[4, 2.0], [8, 1.5]], "speedup_ci": [1.9, 2.1], "trials": 3, "failures": {}},
        created="2026-01-02T03:04:05+00:00",
    )
    store.promote(
        winner, source="int x;" if binary else None, binary=binary, log="said", environment={"torch": "2"}
    )


@functools.cache
def _content() -> tuple[bytes, bytes]:
    """A database with two winners and two candidates, and the bundle of it."""
    with tempfile.TemporaryDirectory() as folder:
        path, bundle = Path(folder, "k.db"), Path(folder, "k.ksb")
        with Store.open(path) as store:
            _promote(store, WORKLOAD, TARGET, b"binary")
            _promote(store, Workload("relu", (16,), program="p"), TARGET, None)
            artifact = Artifact("k", "f", "b", digest(b"binary"), 7, 0, 0, 0.1)
            store.record(WORKLOAD, TARGET, "s", 0, {"simd": 8}, Outcome(Status.PASSED, time_us=1.0), artifact)
            store.record(WORKLOAD, TARGET, "s", 1, {"simd": 4}, Outcome(Status.WRONG, message="zeros"))
            write_bundle(bundle, store, store.winners())
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.read_bytes(), bundle.read_bytes()


def database() -> bytes:
    return _content()[0]


def bundle() -> bytes:
    return _content()[1]


# ---- study files ----------------------------------------------------------------------------------------


def read_study(content: bytes, folder: Path) -> None:
    path = folder / "s.toml"
    path.write_bytes(content)
    try:
        found = study_file.read(path)
    except KsearchError as error:
        clear(error)
    else:
        assert all(dim >= 1 for entry in found.entries for dim in entry.shape)
        assert all(entry.op for entry in found.entries)


# ---- shapes ---------------------------------------------------------------------------------------------


def read_shape(text: str) -> None:
    try:
        dims = operators.parse_shape(text)
        operators.get("softmax").workload(dims)
        make_plan("softmax", dims, "float32", "cpu", {})
    except KsearchError as error:
        clear(error)


# ---- bundles --------------------------------------------------------------------------------------------


def open_bundle(content: bytes, folder: Path) -> None:
    """All that can be asked of it, in production and when it is imported."""
    path = folder / "b.ksb"
    path.write_bytes(content)
    opened = None
    try:
        opened = BundleFile(path)
        assert opened.count >= 0
        for ask in (
            lambda: list(opened.members()),
            lambda: opened.neighbours(WORKLOAD),
            lambda: opened.find(WORKLOAD, TARGET),
            lambda: _import(opened, folder),
        ):
            with contextlib.suppress(LookupError):
                ask()
    except (BundleError, StoreError) as error:
        clear(error, folder)
    finally:
        if opened is not None:
            opened.close()
        for name in ("into.db", "into.db-wal", "into.db-shm"):
            (folder / name).unlink(missing_ok=True)


def _import(opened: BundleFile, folder: Path) -> None:
    with Store.open(folder / "into.db") as store:
        with store.union() as union:
            union.add("bundle", records(opened))
        for winner in store.winners():
            assert winner.workload.op.isidentifier()


def parts_of_bundle() -> dict[str, Any]:
    """Header, pages by place, and winners by their key: what `sealed` makes a bundle of again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "b.ksb")
        path.write_bytes(bundle())
        opened = BundleFile(path)
        page = opened._page(0)
        winners = {key: json.loads(opened._checked(*parts["winner"])) for key, parts in page.items()}
        blobs = {
            key: {name: opened._blob(parts[name]) for name in ("binary", "source", "log")}
            for key, parts in page.items()
        }
        opened.close()
        return {"header": copy.deepcopy(opened._header), "page": page, "winners": winners, "blobs": blobs}


def sealed(
    parts: dict[str, Any],
    *,
    header: Callable[[dict[str, Any]], object] = lambda it: it,
    page: Callable[[dict[str, Any]], object] = lambda it: it,
    winner: Callable[[dict[str, Any]], object] = lambda it: it,
) -> bytes:
    """A bundle whose every digest is right, with whatever somebody put into a part of it."""
    content = MAGIC + b"1\n"

    def add(blob: bytes) -> list[Any]:
        nonlocal content
        content += blob
        return [len(content) - len(blob), len(blob), digest(blob)]

    index: dict[str, Any] = {}
    for key, fields in parts["winners"].items():
        blobs = {name: None if blob is None else add(blob) for name, blob in parts["blobs"][key].items()}
        index[key] = {"winner": add(_json(winner(copy.deepcopy(fields)))), **blobs}
    pages = [[min(index), *add(_json(page(index)))]]
    text = _json(header({**parts["header"], "pages": pages})) + b"\n"
    first = MAGIC + b"1\n"
    seal = {"header": [len(content), len(text)], "hmac_sha256": None, "sha256": digest(first + text)}
    return content + text + _json(seal) + b"\n"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


# ---- rows of a database ---------------------------------------------------------------------------------


def forget_database(path: Path) -> None:
    """The loader keeps a file open, and files beside it are another's."""
    lookup._close(path)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def read_database(content: bytes, folder: Path, change: tuple[str, str, object] | None = None) -> None:
    """All that can be asked of it; `change`: table, column and value of every row."""
    path = folder / "k.db"
    forget_database(path)
    path.write_bytes(content)
    if change is not None:
        table, column, value = change
        with closing(sqlite3.connect(path)) as connection, connection:
            try:
                connection.execute(f'UPDATE OR IGNORE {table} SET "{column}" = ?', (value,))
            except (sqlite3.IntegrityError, OverflowError, UnicodeEncodeError):  # SQLite's own rules
                return

    def everything() -> None:
        with Store.open(path, readonly=True) as store:
            store.winners()
            store.history(WORKLOAD, TARGET)
            store.evaluations(WORKLOAD, TARGET)
            store.neighbours(Workload("softmax", (8, 8), program="0123abcd"), TARGET)
            store.environment(WORKLOAD, TARGET)
            list(store.records())
            list(store.trials())

    def bundled() -> None:
        with Store.open(path, readonly=True) as store:
            write_bundle(folder / "out.ksb", store, store.winners())

    def merged() -> None:
        with Store.open(path) as store, store.union() as union:
            union.add("itself", [])

    asks: Sequence[Callable[[], object]] = (
        everything,
        bundled,
        merged,
        lambda: lookup.find(path, WORKLOAD, TARGET),
        lambda: lookup.neighbours(path, WORKLOAD),
        lambda: lookup.stored(path, "softmax"),
        lambda: lookup.newest(path),
    )
    for ask in asks:
        try:
            ask()
        except KsearchError as error:
            clear(error)
        except LookupError:  # there is no winner
            pass


# ---- command lines --------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_search() -> Iterator[None]:
    """`ksearch tune` refuses what can be refused, and then does not search."""

    def plan_only(op: str, shape: tuple[int, ...], **how: Any) -> tuner.Report:
        make_plan(op, shape, how["dtype"], how["device"] or "cpu", how["options"] or {}, how["policy"])
        raise StoreError("no search here")

    tune, tuner.tune = tuner.tune, plan_only  # type: ignore[assignment]
    try:
        yield
    finally:
        tuner.tune = tune


def run_command(arguments: Sequence[str]) -> None:
    """Exit status 0, 1 or 2, and a line on stderr where it is not 0; never an error that we did not mean."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_search():
        status = cli.main(list(arguments))
    said = err.getvalue()
    assert status in (0, 1, 2), (status, said)
    assert "internal error" not in said, said
    if status:
        assert "ksearch: error: " in said
    if "--json" in arguments and status and out.getvalue():
        assert "error" in json.loads(out.getvalue())


def fill_default_database() -> None:
    """What commands look into."""
    env.database_path().parent.mkdir(parents=True, exist_ok=True)
    env.database_path().write_bytes(database())
