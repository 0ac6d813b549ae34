"""Files that are written whole or not at all: no reader, and no other process, ever meets half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ksearch.errors import UsageError


@contextmanager
def replaced(path: Path, rights: int = 0o644) -> Iterator[BinaryIO]:
    """A new file, which takes the place of `path` when the block ends; what fails in it changes nothing.

    Raises OSError, also where the folder is not there.
    """
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, rights)  # mkstemp keeps it for its owner alone
            yield file
        Path(scratch).replace(path)
    finally:
        Path(scratch).unlink(missing_ok=True)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """The same for a file that the user named. Raises UsageError where it cannot be written."""
    try:
        with replaced(path) as file:
            yield file
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """In UTF-8, the pieces as they come. Raises UsageError."""
    with written(path) as file:
        file.writelines(piece.encode() for piece in pieces)
