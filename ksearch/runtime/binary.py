"""Putting a winner's binary where the system's loader can read it: a file named by its content.

The file is always replaced by a rename, never written over: another process may have it mapped.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from ksearch import env, private


def place(binary: bytes, digest: str, extension: str) -> Path:
    """A file in the cache that holds exactly `binary`, whose SHA-256 is `digest`. Raises OSError."""
    path = private.make_cache(env.cache_dir(), "kernels") / f"{digest}.{extension}"
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == binary:
            return path
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(binary)
        Path(scratch).replace(path)
    except OSError:
        Path(scratch).unlink()
        raise
    return path
