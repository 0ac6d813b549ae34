"""A child process that answers messages, and that nobody outlives: not its parent, not its own children.

It is started as a plain interpreter on this module. `multiprocessing.Process` would import the
user's `__main__` again in every child, and forking a process that has used OpenMP or CUDA hangs.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from ksearch.errors import KsearchError

Answer: TypeAlias = Callable[[Any], Any]
"""What a child runs: takes one message, returns the reply."""

_PR_SET_PDEATHSIG = 1
_TAIL_BYTES = 4000
_FILE_BYTES = 256 << 20
"""The largest file that a child writes: a kernel that prints without end must not fill the disk, nor a source
whose object file would. What is kept of a candidate is a few MB at most."""
_REAP_S = 10.0
"""A killed process that is still there after this long hangs in the driver: it is left to the system."""


class ChildDied(Exception):
    """The child ended before it answered; `str()` is one line that says how."""

    def __init__(self, returncode: int | None, stderr_tail: str) -> None:
        super().__init__(describe_exit(returncode, stderr_tail))
        self.returncode = returncode
        self.stderr_tail = stderr_tail

    @property
    def by_force(self) -> bool:
        """SIGKILL: by a person, a batch system or the kernel that ran out of memory. What it was at work on
        need not be to blame."""
        return self.returncode == -signal.SIGKILL


class ChildTimeout(Exception):
    """The child did not answer in time and was killed."""


class ChildError(Exception):
    """The child's code raised something that is not meant for a person; `log` is its traceback."""

    def __init__(self, message: str, log: str = "") -> None:  # a default, because it is pickled
        super().__init__(message)
        self.log = log


def describe_exit(returncode: int | None, stderr_tail: str) -> str:
    """`SIGSEGV` or `exit status 3`, and the last line that it printed."""
    if returncode is None:
        how = "did not end when killed"
    elif returncode < 0:
        try:
            how = signal.Signals(-returncode).name
        except ValueError:
            how = f"signal {-returncode}"
    else:
        how = f"exit status {returncode}"
    lines = stderr_tail.strip().splitlines()
    return f"{how}: {lines[-1].strip()}" if lines else how


class Child:
    """One child process in a process group of its own.

    `target` is `module:function`; the function is called once in the child and returns the Answer.
    Start it from a thread that lives as long as it: Linux ends it when that *thread* ends.
    """

    def __init__(self, target: str) -> None:
        ours, theirs = socket.socketpair()
        self._folder = tempfile.TemporaryDirectory(prefix="ksearch-", ignore_cleanup_errors=True)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed by kill)
        self._sent = 0
        command = [sys.executable, "-P", "-m", "ksearch.evaluate.process", target]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*command, str(theirs.fileno()), str(os.getpid()), self._folder.name],
                    stdin=subprocess.DEVNULL,
                    stdout=self._stderr,  # what a kernel prints must not mix with our own output
                    stderr=self._stderr,
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join(p or str(os.curdir) for p in sys.path),
                        "TMPDIR": self._folder.name,  # what it leaves behind when it is killed goes, too
                    },
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            self._stderr.close()
            self._folder.cleanup()
            raise
        self._connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return not self._connection.closed and self._process.poll() is None

    def call(self, message: Any, timeout_s: float) -> Any:
        """The child's reply. Raises ChildDied, ChildTimeout (both leave no process), what the child
        raised if it is a KsearchError or an OSError, else ChildError.

        An interrupt (Ctrl-C) while waiting leaves the child at work; its late reply is dropped.
        """
        deadline = time.monotonic() + timeout_s
        self._sent += 1
        try:
            self._connection.send((self._sent, message))
            while True:
                if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                    self.kill()
                    raise ChildTimeout(f"no answer within {timeout_s:.3g} s")
                number, error, value = self._receive()
                if number == self._sent:
                    break
        except (EOFError, OSError) as error:
            raise self._death() from error
        if error is not None:
            raise error
        return value

    def _receive(self) -> tuple[int, Exception | None, Any]:
        """One reply; an interrupt in the middle of it would leave half a message, so then all goes."""
        try:
            reply: tuple[int, Exception | None, Any] = self._connection.recv()
        except (EOFError, OSError):
            raise
        except BaseException:
            self.kill()
            raise
        return reply

    def _death(self) -> ChildDied:
        # It closed the pipe; give it a moment to end by itself, so that the exit status is its own.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_S)
        tail = self._stderr_tail()
        self.kill()
        return ChildDied(self._process.returncode, tail)

    def _stderr_tail(self) -> str:
        if self._stderr.closed:
            return ""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _TAIL_BYTES))
        return self._stderr.read().decode(errors="replace")

    def terminate(self) -> None:
        """End the whole process group now. From any thread: a `call` of another then raises ChildDied."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the whole process group, reap the child, free what it held; harmless when repeated."""
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_S)
        self._connection.close()
        self._stderr.close()
        self._folder.cleanup()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def serve(target: str, descriptor: int, parent: int, folder: str) -> None:
    """The child's side: answer messages until the parent is gone. `folder` is for its temporary files."""
    _die_with(parent, descriptor, folder)
    _bound()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    connection = Connection(descriptor)
    module, _, name = target.partition(":")
    answer: Answer = getattr(importlib.import_module(module), name)()
    while True:
        try:
            number, message = connection.recv()
        except EOFError:
            return
        error: Exception | None = None
        value = None
        try:
            value = answer(message)
        except (KsearchError, OSError) as raised:
            error = raised
        except Exception as raised:  # noqa: BLE001  (the process boundary: the parent decides what it means)
            first = (str(raised).strip().splitlines() or ["no message"])[0]  # CUDA's errors go on with advice
            error = ChildError(f"{type(raised).__name__}: {first}", traceback.format_exc())
        connection.send((number, error, value))


def _bound() -> None:
    """What goes wrong in this process, and in those that it starts, must cost the machine little."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # thousands of candidates may crash, at GBs each
    limit(resource.RLIMIT_FSIZE, _FILE_BYTES)
    with contextlib.suppress(OSError):  # where memory runs out this is to go, not the tuner
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit(kind: int, most: int) -> None:
    """Lower one of this process's limits to `most`; it stays where it is lower already."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _die_with(parent: int, descriptor: int, folder: str) -> None:
    """End with the parent. A thread watches the pipe and ends the whole group, a compiler that was started
    here too; and should native code hold the interpreter then, the system's signal ends this process."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        # alarm() itself is the handler: called with the number of SIGHUP, 1, it ends us in 1 s, by which
        # time the thread has acted. At once, this process would be gone before its compiler was ended.
        libc.signal(signal.SIGHUP, ctypes.cast(libc.alarm, ctypes.c_void_p))
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    def watch() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # nothing but the other end being closed
        poll.poll()
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    # By its full name: under `-m` this module is `__main__`, whose classes the parent could not unpickle.
    importlib.import_module("ksearch.evaluate.process").serve(
        sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    )
