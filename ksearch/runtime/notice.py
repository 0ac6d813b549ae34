"""Saying a thing once in the log, however many calls or threads meet it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Hashable

_log = logging.getLogger("ksearch")
_said: set[Hashable] = set()
_lock = threading.Lock()

_MOST = 1000
"""A program that calls with a new number each time would fill its log, and memory: then it is quiet."""


def warn_once(key: Hashable, message: str) -> None:
    """A warning in the log `ksearch`, the first time that this key is seen since `forget`; 1000 at most."""
    _say(logging.WARNING, key, message)


def tell_once(key: Hashable, message: str) -> None:
    """The same as information, which a program sees that asks for it."""
    _say(logging.INFO, key, message)


def _say(level: int, key: Hashable, message: str) -> None:
    with _lock:
        if key in _said or len(_said) >= _MOST:
            return
        _said.add(key)
    _log.log(level, "%s", message)


def _after_fork() -> None:
    """Another thread may have held the lock when the process was forked."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def forget() -> None:
    """Everything may be said again."""
    with _lock:
        _said.clear()
