"""Bundles as production meets them: a backend without a compiler stands in for the CPU."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import ksearch
from ksearch import env, operators, runtime
from ksearch.errors import BundleError, UsageError
from ksearch.export.bundle import write_bundle
from ksearch.launch import Launch, TensorMap
from ksearch.runtime import Match
from ksearch.runtime.bundle import Bundle
from ksearch.runtime.bundle_file import MAGIC, PAGE
from ksearch.store import Store
from ksearch.types import Workload
from tests.runtime.conftest import TARGET, FakeBackend, promote

KEY = b"a secret of 32 bytes, or so it is"


def export(path: Path, key: Path | None = None) -> Path:
    """Everything in the default database."""
    with Store.open(env.database_path(), readonly=True) as store:
        write_bundle(path, store, store.winners(), key)
    return path


@pytest.fixture
def bundle(backend: FakeBackend, tmp_path: Path) -> Path:
    """Two softmax kernels, one rmsnorm, and a sigmoid that PyTorch won; the database is gone."""
    promote("softmax", (4, 8), 1.0)
    promote("softmax", (4, 16), 2.0)
    promote("add_rmsnorm", (2, 8), 3.0, weight="none")
    promote("sigmoid", (4, 8), None)
    path = export(tmp_path / "ops.ksb")
    env.database_path().unlink()
    return path


def test_a_winner_is_loaded_from_the_file(bundle: Path, backend: FakeBackend) -> None:
    opened = ksearch.load_bundle(bundle)
    assert opened.count == 4
    handle = opened.load("softmax", (4, 16), device="cpu")
    assert handle.match is Match.EXACT
    assert torch.equal(handle(torch.zeros(4, 16)), torch.full((4, 16), 2.0))
    assert handle.winner.launch == Launch(alignment=4, threads=2)
    assert handle.winner.certificate == {"confidence": [1.9, 2.1]}
    assert len(backend.loaded) == 1
    first, second = opened.load("add_rmsnorm", "2x8", weight="none")(torch.ones(2, 8), torch.ones(2, 8))
    assert (first[0, 0], second[0, 0]) == (3.0, 4.0)


def test_where_pytorch_won_or_nothing_is_known_pytorch_runs(bundle: Path) -> None:
    opened = ksearch.load_bundle(bundle)
    x = torch.randn(4, 8)
    won, unknown = opened.load("sigmoid", (4, 8)), opened.load("softmax", (5, 8))
    assert won.match is Match.EXACT
    assert torch.equal(won(x), torch.sigmoid(x))
    assert unknown.match is Match.FALLBACK
    assert str(bundle) in unknown.reason
    assert torch.equal(unknown(torch.ones(5, 8)), torch.full((5, 8), 0.125))


def test_its_own_namespace_of_ops(bundle: Path) -> None:
    opened = ksearch.load_bundle(bundle)
    x = torch.zeros(4, 8)
    assert opened.ops.softmax(x)[0, 0] == 1.0
    assert opened.ops.softmax is opened.ops.softmax
    assert ksearch.ops.softmax(x)[0, 0] == 0.125  # the database has none
    with pytest.raises(AttributeError, match="no op 'softmaxx'"):
        opened.ops.softmaxx  # noqa: B018


def test_in_use_it_takes_the_place_of_the_database(bundle: Path) -> None:
    x = torch.zeros(4, 8)
    assert ksearch.ops.softmax(x)[0, 0] == 0.125
    with ksearch.load_bundle(bundle) as opened:
        assert ksearch.ops.softmax(x)[0, 0] == 1.0
        assert ksearch.load("softmax", (4, 8)).match is Match.EXACT
        with opened:
            assert ksearch.ops.softmax(x)[0, 0] == 1.0
        assert ksearch.ops.softmax(x)[0, 0] == 1.0
        promote("softmax", (4, 8), 7.0)
        assert ksearch.load("softmax", (4, 8), db=env.database_path())(x)[0, 0] == 7.0
    assert ksearch.ops.softmax(x)[0, 0] == 7.0
    ksearch.use(opened)
    assert ksearch.ops.softmax(x)[0, 0] == 1.0
    ksearch.use(None)
    assert ksearch.ops.softmax(x)[0, 0] == 7.0


def test_the_environment_names_one(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSEARCH_BUNDLE", str(bundle))
    assert ksearch.ops.softmax(torch.zeros(4, 8))[0, 0] == 1.0


def test_a_bad_one_in_the_environment_is_an_error_for_load_and_a_warning_for_ops(
    backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KSEARCH_BUNDLE", str(tmp_path / "missing.ksb"))
    with pytest.raises(BundleError, match=r"cannot read the bundle .*missing\.ksb: No such file"):
        ksearch.load("softmax", (4, 8))
    with caplog.at_level(logging.WARNING, "ksearch"):
        assert ksearch.ops.softmax(torch.zeros(4, 8))[0, 0] == 0.125
    assert "missing.ksb" in caplog.text


def test_all_of_a_launch_travels(backend: FakeBackend, tmp_path: Path) -> None:
    winner = promote("softmax", (4, 8), 1.0)
    steps = {"before": (Launch(entry="prepare"),), "after": (Launch(entry="finish", persistent=True),)}
    maps = (
        TensorMap(pointer=1, dtype="tfloat32", cols=8, rows=None, box_cols=4, box_rows=2, offset_bytes=64),
    )
    launch = Launch(
        block=256, cluster=2, workspace_bytes=32, scratch_bytes=512, maps=maps, torch_product=True, **steps
    )
    binary = b"1.0 x 32 x 1"
    with Store.open(env.database_path()) as store:
        changed = replace(winner, launch=launch)
        store.promote(changed, source="text", binary=binary, log="log", environment={"torch": "2.13"})
    opened = Bundle(export(tmp_path / "one.ksb"))
    (member,) = opened.members()
    assert member.winner == changed
    assert (member.binary, member.source, member.log) == (binary, "text", "log")
    assert member.environment == {"torch": "2.13"}


def test_the_same_winners_give_the_same_bytes(bundle: Path, backend: FakeBackend, tmp_path: Path) -> None:
    promote("sigmoid", (4, 8), None)
    promote("add_rmsnorm", (2, 8), 3.0, weight="none")
    promote("softmax", (4, 16), 2.0)
    promote("softmax", (4, 8), 1.0)
    assert export(tmp_path / "again.ksb").read_bytes() == bundle.read_bytes()


def test_many_winners_lie_on_several_pages(backend: FakeBackend, tmp_path: Path) -> None:
    count = 2 * PAGE + 7
    op = operators.get("sigmoid")
    with Store.open(env.database_path()) as store, store.union() as union:
        from ksearch.store import Record
        from ksearch.types import Winner

        lost = [
            Winner(op.workload((rows, 8)), TARGET, None, None, None, 1.0, 1.0, 1.0)
            for rows in range(1, count + 1)
        ]
        union.add("here", [Record(each, {}, None, None) for each in lost])
    opened = Bundle(export(tmp_path / "many.ksb"))
    assert opened.count == count
    assert len(opened._header["pages"]) == 3
    for rows in (1, 100, count):
        assert opened.find(op.workload((rows, 8)), TARGET).winner.workload.rows == rows
    with pytest.raises(LookupError):
        opened.find(op.workload((count + 1, 8)), TARGET)
    assert {member.winner.workload.rows for member in opened.members()} == set(range(1, count + 1))


def test_to_find_one_winner_the_others_are_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle(bundle)
    read = []
    pread = os.pread
    monkeypatch.setattr(
        os, "pread", lambda fd, length, start: read.append(length) or pread(fd, length, start)
    )
    opened.find(operators.get("softmax").workload((4, 8)), TARGET)
    assert len(read) == 3  # a page, the winner, its binary


def test_the_first_load_is_quick(bundle: Path) -> None:
    times = []
    workload = operators.get("softmax").workload((4, 8))
    for _ in range(5):
        start = time.perf_counter()
        Bundle(bundle).find(workload, TARGET)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.015


# ---- what is refused ------------------------------------------------------------------------------------


def test_a_changed_blob_is_refused_by_load_and_runs_pytorch_in_ops(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = bundle.read_bytes()
    assert content.count(b"1.0 x 32 x 1") == 1
    bundle.write_bytes(content.replace(b"1.0 x 32 x 1", b"9.0 x 32 x 1"))
    opened = ksearch.load_bundle(bundle)
    with pytest.raises(BundleError, match=r"ops\.ksb was changed or cut short \(the SHA-256 of the 12 bytes"):
        opened.load("softmax", (4, 8))
    with caplog.at_level(logging.WARNING, "ksearch"):
        assert opened.ops.softmax(torch.zeros(4, 8))[0, 0] == 0.125
    assert "was changed or cut short" in caplog.text
    assert opened.load("softmax", (4, 16))(torch.zeros(4, 16))[0, 0] == 2.0  # what is whole still runs


def _flip(at: Callable[[bytes], int]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        place = at(content)
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: b"", "is no bundle of ksearch"),
        (lambda content: content[:5], "is no bundle of ksearch"),
        (lambda content: b"PK\x03\x04" + content, "is no bundle of ksearch; `ksearch export"),
        (lambda content: MAGIC + b"2\n" + content.partition(b"\n")[2], "newer ksearch .format 2, this"),
        (lambda content: MAGIC + b"x\n", "newer ksearch"),
        (lambda content: content[: len(content) // 2], "was changed or cut short"),
        (lambda content: content[:-1], "was changed or cut short"),
        (lambda content: content + b"more", "was changed or cut short"),
        (lambda content: content[:16] + b"!" + content[17:], "newer ksearch|changed"),
        (lambda content: content + content.splitlines()[-1] + b"\n", "its length is not"),
        (_flip(lambda content: content.rindex(b'"targets"') + 3), "the SHA-256 of its header differs"),
        (_flip(lambda content: len(content) - 20), "was changed or cut short"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_refused(bundle: Path, change, says: str) -> None:
    bundle.write_bytes(change(bundle.read_bytes()))
    with pytest.raises(BundleError, match=says) as raised:
        ksearch.load_bundle(bundle)
    assert str(bundle) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_byte_counts(bundle: Path) -> None:
    content = bundle.read_bytes()
    unnoticed = []
    for place in range(0, len(content), 7):
        bundle.write_bytes(_flip(lambda _, place=place: place)(content))
        try:
            list(Bundle(bundle).members())
        except BundleError:
            continue
        unnoticed.append((place, content[max(0, place - 20) : place + 20]))
    # Only what is not part of anything: a line's end before the header.
    assert all(b"\n{" in around for _, around in unnoticed), unnoticed


def test_a_winner_under_the_key_of_another_is_refused(bundle: Path) -> None:
    """A page that says where a winner is can be trusted, and is compared with it all the same."""
    opened = Bundle(bundle)
    here, there = (operators.get("softmax").workload((4, cols)) for cols in (8, 16))
    page = opened._page(0)
    keys = {}
    for key, parts in page.items():
        workload = json.loads(opened._checked(*parts["winner"]))["workload"]
        if workload["op"] == "softmax":
            keys[workload["shape"][1]] = key
    swapped = {**page, keys[8]: page[keys[16]], keys[16]: page[keys[8]]}
    opened._page = lambda place: swapped
    for workload in (here, there):
        with pytest.raises(BundleError, match=r"what it holds for .* is for softmax"):
            opened.find(workload, TARGET)


@pytest.mark.parametrize("part", ["winner", "launch", "workload", "target"])
def test_a_winner_with_fields_of_a_later_ksearch_is_an_error_of_ours(
    part: str, backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_more(winner: object) -> dict:
        fields = asdict(winner)
        (fields if part == "winner" else fields[part])["novel"] = 1
        return fields

    promote("softmax", (4, 8), 1.0)
    monkeypatch.setattr("ksearch.export.bundle.asdict", with_more)
    opened = ksearch.load_bundle(export(tmp_path / "later.ksb"))
    with pytest.raises(BundleError, match=r"a winner in .*later\.ksb does not read .*'novel'.*upgrade"):
        opened.load("softmax", (4, 8))
    with pytest.raises(BundleError, match="does not read"):
        list(opened.members())
    assert opened.ops.softmax(torch.zeros(4, 8))[0, 0] == 0.125


def test_it_stays_right_when_the_file_is_replaced(bundle: Path, tmp_path: Path) -> None:
    opened = ksearch.load_bundle(bundle)
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    other.replace(bundle)
    assert opened.load("softmax", (4, 8))(torch.zeros(4, 8))[0, 0] == 1.0


def test_cut_short_while_it_is_open(bundle: Path) -> None:
    opened = ksearch.load_bundle(bundle)
    os.truncate(bundle, 20)
    with pytest.raises(BundleError, match="shorter than it states"):
        opened.load("softmax", (4, 8))


@pytest.mark.parametrize("place", ["folder", "missing"])
def test_what_is_no_file_is_refused(place: str, tmp_path: Path) -> None:
    path = tmp_path if place == "folder" else tmp_path / "missing.ksb"
    with pytest.raises(BundleError, match=f"cannot read the bundle {path}"):
        ksearch.load_bundle(path)


# ---- signatures -----------------------------------------------------------------------------------------


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY)
    return path


def test_a_signed_bundle(backend: FakeBackend, key: Path, tmp_path: Path) -> None:
    promote("softmax", (4, 8), 1.0)
    path = export(tmp_path / "signed.ksb", key)
    for given in (None, key, str(key), KEY):
        assert ksearch.load_bundle(path, key=given).load("softmax", (4, 8)).match is Match.EXACT
    for wrong in (KEY + b"\n", b"another key that is long enough"):
        with pytest.raises(BundleError, match=r"signed\.ksb was not signed with this key"):
            ksearch.load_bundle(path, key=wrong)
    assert KEY not in path.read_bytes()


def test_an_unsigned_bundle_is_refused_where_a_key_is_given(bundle: Path) -> None:
    with pytest.raises(BundleError, match="is not signed, and a key was given"):
        ksearch.load_bundle(bundle, key=KEY)


def test_what_is_signed_anew_without_the_key_is_refused(
    backend: FakeBackend, key: Path, tmp_path: Path
) -> None:
    """Who changes a bundle can mend every SHA-256 in it, but not the signature."""
    promote("softmax", (4, 8), 1.0)
    signed = export(tmp_path / "signed.ksb", key).read_bytes()
    promote("softmax", (4, 8), 9.0)
    forged = export(tmp_path / "forged.ksb").read_bytes()
    seal = json.loads(signed.splitlines()[-1])
    own = json.loads(forged.splitlines()[-1])
    own["hmac_sha256"] = seal["hmac_sha256"]
    body = forged[: forged.rindex(b"\n", 0, -1) + 1]
    path = tmp_path / "forged.ksb"
    path.write_bytes(body + json.dumps(own, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    assert ksearch.load_bundle(path).load("softmax", (4, 8)).match is Match.EXACT  # nobody asked who made it
    with pytest.raises(BundleError, match="was not signed with this key"):
        ksearch.load_bundle(path, key=KEY)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"", "has 0 bytes"),
        (b"short", "has 5 bytes, and 16 are the least"),
        ("missing", "cannot read the key"),
    ],
)
def test_a_key_that_is_none(bundle: Path, given, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ksearch.load_bundle(bundle, key=given)


# ---- what it needs --------------------------------------------------------------------------------------


def test_production_needs_neither_sqlalchemy_nor_the_database(bundle: Path) -> None:
    code = (
        "import sys, ksearch; b = ksearch.load_bundle(sys.argv[1]); "
        "print(b.count, *sorted({'sqlalchemy', 'optuna', 'jinja2', 'ksearch.store'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == ["4"]


def test_refresh_keeps_a_bundle_in_use(bundle: Path) -> None:
    with ksearch.load_bundle(bundle):
        runtime.refresh()
        assert ksearch.ops.softmax(torch.zeros(4, 8))[0, 0] == 1.0


def test_a_workload_comes_back(bundle: Path) -> None:
    wanted = operators.get("add_rmsnorm").workload((2, 8), weight="none")
    found = [
        each.winner.workload for each in Bundle(bundle).members() if each.winner.workload.op == wanted.op
    ]
    assert found == [wanted]
    assert isinstance(found[0], Workload)
    assert asdict(found[0]) == asdict(wanted)
