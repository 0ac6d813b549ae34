"""Saying a thing once in the log, however many calls or threads meet it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable

_log = logging.getLogger("ksearch")
_said: set[Hashable] = set()
_lock = threading.Lock()

_MOST = 1000
"""A program that calls with a new number each time would fill its log, and memory: then it is quiet."""


def warn_once(key: Hashable, message: str) -> None:
    """A warning in the log `ksearch`, the first time that this key is seen since `forget`; 1000 at most."""
    with _lock:
        if key in _said or len(_said) >= _MOST:
            return
        _said.add(key)
    _log.warning("%s", message)


def forget() -> None:
    """Everything may be said again."""
    with _lock:
        _said.clear()
