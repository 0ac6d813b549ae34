"""Tests share the memory of a GPU: those that take much of it take turns, over all processes."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, get_args

Share = Literal["some", "large", "whole"]
"""What a test takes: up to 8 GB, as any number of them may at a time; up to half of the GPU, one at a time
beside those; or all there is, and no other test with a GPU runs meanwhile."""


@contextmanager
def turn(share: Share, folder: Path | None = None) -> Iterator[None]:
    """Waits until the share is free, and holds it. A process that dies gives back what it held.

    Of locked files in `folder`: by default one for all runs of this user on this machine.
    """
    if share not in get_args(Share):
        raise ValueError(f"gpu_memory({share!r}): a share is one of {', '.join(get_args(Share))}")
    if folder is None:
        folder = Path(tempfile.gettempdir()) / f"ksearch-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as held:
        if share == "large":
            held.enter_context(_locked(folder / "large", fcntl.LOCK_EX))
        # Whoever waits for the whole of it keeps the gate shut: others would else come in for ever.
        with _locked(folder / "gate", fcntl.LOCK_EX):
            held.enter_context(_locked(folder / "gpu", fcntl.LOCK_EX if share == "whole" else fcntl.LOCK_SH))
        yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has it open, too
        os.close(descriptor)
