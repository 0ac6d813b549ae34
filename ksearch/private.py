"""Folders and files that their user alone may write into, because what is in them is run.

A binary in the cache is loaded into the process that asks for it, and a database holds such binaries: whoever
can write there can run code as this user.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_ROOT = 0


def make_folder(path: Path) -> Path:
    """The folder, made with those above it that are missing, for this user alone (0700). Raises OSError."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return path


def make_cache(root: Path, *below: str) -> Path:
    """A folder of the cache at `root`. Raises OSError, as `check_folder` for the root."""
    check_folder(make_folder(root))
    return make_folder(root.joinpath(*below))


def check_folder(path: Path) -> None:
    """Raises PermissionError where others can write into the folder, with the way out; OSError without one.

    A folder of a group stays allowed: a team may share one. So does a user's folder for root: containers
    mount such.
    """
    facts, user = path.stat(), os.geteuid()
    if user != _ROOT and facts.st_uid not in (user, _ROOT):
        _refuse(path, f"belongs to another user (uid {facts.st_uid}), who could change the kernels in it")
    if facts.st_mode & stat.S_IWOTH:
        _refuse(path, f"may be written by everyone, who could change the kernels in it: chmod o-w {path}")


def _refuse(path: Path, why: str) -> None:
    raise PermissionError(errno.EPERM, why, str(path))


def make_file(path: Path) -> None:
    """An empty file that this user alone may read and write (0600), where there is none. Raises OSError."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
