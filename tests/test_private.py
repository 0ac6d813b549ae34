"""Nobody else writes into what is run from: the cache, the database."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksearch import artifacts, cli, env, private
from ksearch.errors import KsearchError
from ksearch.plan import device_lock
from ksearch.runtime import launcher
from ksearch.runtime.binary import place
from ksearch.store import Store
from ksearch.types import Source, Target, digest
from tests.test_artifacts import SOURCE, Counting

TARGET = Target("cpu", "x86_64", "a CPU")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o002)
    yield
    os.umask(before)


def test_the_database_and_its_folder_are_the_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "ksearch" / "k.db"
    with Store.open(path) as store:
        store.winners()
        assert {mode(file) for file in path.parent.iterdir()} == {0o600}, "those of SQLite beside it, too"
    assert (mode(path.parent), mode(path.parent.parent)) == (0o700, 0o700)
    assert mode(tmp_path) != 0o600


def test_a_database_that_is_there_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "k.db"
    Store.open(path).close()
    path.chmod(0o640)
    Store.open(path).close()
    assert mode(path) == 0o640


def test_the_cache_is_the_users_alone() -> None:
    artifacts.build(Counting(), SOURCE)
    place(b"binary", digest(b"binary"), "so")
    with device_lock(TARGET):
        pass
    assert mode(env.cache_dir()) == 0o700
    assert {mode(folder) for folder in env.cache_dir().iterdir()} == {0o700}
    assert {folder.name for folder in env.cache_dir().iterdir()} == {"artifacts", "kernels", "locks"}


def test_a_cache_that_everyone_may_write_into_is_refused_with_the_way_out() -> None:
    env.cache_dir().mkdir()
    env.cache_dir().chmod(0o777)
    way_out = f"may be written by everyone, .* chmod o-w {env.cache_dir()}"
    with pytest.raises(PermissionError, match=way_out):
        artifacts.build(Counting(), SOURCE)
    with pytest.raises(PermissionError, match=way_out):
        place(b"binary", digest(b"binary"), "so")
    with pytest.raises(KsearchError, match=f"{way_out}.*KSEARCH_CACHE_DIR"), device_lock(TARGET):
        pass
    env.cache_dir().chmod(0o775)
    artifacts.build(Counting(), SOURCE)


def test_a_folder_of_everyone_is_refused_though_it_is_sticky(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /tmp is: others may make a folder there before we do."""
    tmp_path.chmod(0o1777)
    monkeypatch.setenv("KSEARCH_CACHE_DIR", str(tmp_path))
    with pytest.raises(PermissionError, match="chmod o-w"):
        artifacts.build(Counting(), SOURCE)


def test_tune_says_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    env.cache_dir().mkdir()
    env.cache_dir().chmod(0o777)
    assert cli.main(["tune", "softmax", "--shape", "4x8", "--device", "cpu", "--trials", "1"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"chmod o-w {env.cache_dir()}" in said


def test_another_users_cache_is_refused_but_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers mount a user's folder, and root is not to refuse that."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 12345, 12345)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(PermissionError, match=r"belongs to another user \(uid \d+\)"):
        private.make_cache(folder, "artifacts")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert private.make_cache(folder) == folder


def test_an_entry_that_says_its_binary_is_elsewhere_is_not_followed(tmp_path: Path) -> None:
    """What somebody put into the cache loads nothing from beside it."""
    first = artifacts.build(Counting(), SOURCE)
    evil = tmp_path / "evil.so"
    evil.write_bytes(b"evil")
    facts = Path(first.folder) / "artifact.json"
    text = facts.read_text().replace(first.binary, str(evil)).replace(first.digest, digest(b"evil"))
    facts.write_text(text)
    assert artifacts.find(first.key) is None
    for other in ("[]", "7", '{"binary": 7}', "[" * 100_000):
        facts.write_text(other)
        assert artifacts.find(first.key) is None


def test_names_in_the_cache_are_digests() -> None:
    """Whatever the source says."""
    odd = Source(text="../../x\0", backend="../cpu", arch="../..", options=("/",))
    assert artifacts.folder(artifacts.key(odd, "../cc")).parents[2] == env.cache_dir()
    assert len(artifacts.key(odd, "../cc")) == 64


def test_a_folder_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        private.make_folder(tmp_path / "file" / "below")


def test_a_launcher_that_others_could_change_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = launcher.default_path()
    private.make_folder(path.parent)
    path.write_bytes(b"evil")
    monkeypatch.setattr(launcher.importlib.util, "module_from_spec", lambda _: pytest.fail("it is loaded"))
    for folder in (path.parent, env.cache_dir()):
        folder.chmod(0o777)
        launcher.forget()
        assert not launcher.is_usable()
        folder.chmod(0o700)
    launcher.forget()
    assert f"chmod o-w {path.parent}" in caplog.text
