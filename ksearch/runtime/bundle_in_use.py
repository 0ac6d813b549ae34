"""The bundle that is used where no database is named: of the process, or of the environment.

Apart from the file's format, because it is a choice, which every lookup asks for.
"""

from __future__ import annotations

import functools
from pathlib import Path

from ksearch import env
from ksearch.runtime.bundle_file import BundleFile

_used: BundleFile | None = None


def used() -> BundleFile | None:
    """The bundle that is in use now, else that of KSEARCH_BUNDLE; None: the database. Raises BundleError."""
    if _used is not None:
        return _used
    path = env.bundle_path()
    return None if path is None else _of_environment(path)


def set_used(bundle: BundleFile | None) -> BundleFile | None:
    """Put one in use for the whole process, or none; gives the one before."""
    global _used
    before, _used = _used, bundle
    return before


@functools.lru_cache(maxsize=4)
def _of_environment(path: Path) -> BundleFile:
    return BundleFile(path)
