"""Files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ksearch import files
from ksearch.errors import UsageError


def test_a_file_takes_the_place_of_the_one_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("before", "after: ü"):
        files.write_text(path, [text, "\n"])
    assert path.read_text(encoding="utf-8") == "after: ü\n"
    assert path.stat().st_mode & 0o777 == 0o644, "as others' files are, not as scratch files"
    assert list(tmp_path.iterdir()) == [path]


def test_whoever_reads_meanwhile_has_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with files.replaced(path, rights=0o600) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)


def test_what_fails_on_the_way_leaves_what_was_there(tmp_path: Path) -> None:
    def pieces() -> Iterator[str]:
        yield "half of it"
        raise ZeroDivisionError

    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        files.write_text(path, pieces())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_where_it_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "no/a.txt", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=f"^cannot write {path}: {why}"):
            files.write_text(path, ["text"])
    assert list(tmp_path.iterdir()) == []
