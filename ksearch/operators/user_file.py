"""Run a user's Python file for the ops that it defines.

Each file runs under a module name of its own, so two files of one name can be used together, and runs
again only when its text has changed.
"""

from __future__ import annotations

import hashlib
import linecache
import sys
import traceback
from pathlib import Path
from types import ModuleType

from ksearch.errors import UserFileError

_ran: dict[Path, tuple[bytes, ModuleType]] = {}
"""Files that ran without error: the text that did, and what it made."""


def has_run(path: Path) -> bool:
    return path in _ran


def is_stale(path: Path) -> bool:
    """Whether `path` ran and has another text by now. Raises UserFileError."""
    return path in _ran and _ran[path][0] != _read(path)


def lookup(path: Path, name: str) -> object:
    """What the file at `path`, which ran, calls `name`; None where it has no such name."""
    return getattr(_ran[path][1], name, None)


def run(path: Path) -> None:
    """Run the file at `path`, which registers its ops. Raises UserFileError with the file's own line."""
    text = _read(path)
    _ran.pop(path, None)
    name = f"ksearch_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and inspect look classes up there
    linecache.checkcache(str(path))
    sys.path.insert(0, str(path.parent))  # as `python file.py` has it
    try:
        # Not the import system: its cached bytecode is keyed by the second and misses a quick edit.
        exec(compile(text, path, "exec"), module.__dict__)  # noqa: S102
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        del sys.modules[name]
        raise UserFileError(describe(error, path)) from error
    finally:
        sys.path.remove(str(path.parent))
    _ran[path] = text, module


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserFileError(f"cannot read {path}: {error.strerror}") from error


def describe(error: BaseException, path: Path) -> str:
    """One line for what the code in the file at `path` raised: its own line, kind and text."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    text = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{path}:{lines[-1] if lines else 1}: {type(error).__name__}: {text}"
