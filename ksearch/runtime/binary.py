"""Putting a winner's binary where the system's loader can read it: a file named by its content.

The file is always replaced by a rename, never written over: another process may have it mapped.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ksearch import env, files, private


def place(binary: bytes, digest: str, extension: str) -> Path:
    """A file in the cache that holds exactly `binary`, whose SHA-256 is `digest`. Raises OSError."""
    path = private.make_cache(env.cache_dir(), "kernels") / f"{digest}.{extension}"
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == binary:
            return path
    with files.replaced(path, rights=0o600) as file:
        file.write(binary)
    return path
