"""Compiles many sources at once, and never waits for one that hangs.

Each lane is a thread that owns one child process: NVRTC inside a thread cannot be stopped, a
process can.
"""

from __future__ import annotations

import queue
import resource
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ksearch.errors import CompileError, KsearchError, WorkerError
from ksearch.evaluate.process import Answer, Child, ChildDied, ChildError, ChildTimeout, limit
from ksearch.types import Artifact, Source, Status

_MEMORY_BYTES = 6 << 30
"""What one compiler may take, so that a source which takes all there is costs itself alone."""
_ATTEMPTS = 3
_START_S = 60.0
"""Starting a child takes 0.1 s; on a machine whose cores and disk are all busy, many times that."""


@dataclass(frozen=True, slots=True)
class Build:
    """What became of one source: an artifact, or a status that says why there is none."""

    tag: Hashable
    artifact: Artifact | None = None
    status: Status | None = None
    message: str = ""
    log: str = ""


class CompilePool:
    """`width` compilations at a time, in processes that start when first needed.

    A compiler that takes longer than `timeout_s`, or more than `memory_bytes`, is that source's outcome.
    Leaving the context drops what was not compiled yet and ends every process.
    """

    def __init__(
        self, backend: str, width: int, timeout_s: float = 60.0, memory_bytes: int = _MEMORY_BYTES
    ) -> None:
        self.width = width
        self._opening = backend, memory_bytes
        self._timeout_s = timeout_s
        self._waiting: queue.SimpleQueue[tuple[Hashable, Source] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Build | Exception] = queue.SimpleQueue()
        self._pending = 0
        self._lock = threading.Lock()
        self._children: dict[int, Child] = {}
        self._closed = False
        self._lanes = [
            threading.Thread(target=self._work, args=(lane,), name=f"compile-{lane}", daemon=True)
            for lane in range(width)
        ]
        for thread in self._lanes:
            thread.start()

    @property
    def pending(self) -> int:
        """Submitted and not yet returned by `completed`."""
        return self._pending

    def submit(self, tag: Hashable, source: Source) -> None:
        """Queue one source; returns at once. `tag` comes back with the Build."""
        self._pending += 1
        self._waiting.put((tag, source))

    def completed(self, wait_for_all: bool = False) -> list[Build]:
        """What is finished, in order of finishing; waits for at least one, or for all, if any is pending.

        Raises what is not one source's fault: ToolMissing, KsearchError for a full disk, WorkerError.
        """
        builds: list[Build] = []
        while self._pending and (wait_for_all or not builds or not self._done.empty()):
            done = self._done.get()
            self._pending -= 1
            if isinstance(done, Exception):
                raise done
            builds.append(done)
        return builds

    def _work(self, lane: int) -> None:
        while (task := self._waiting.get()) is not None:
            tag, source = task
            try:
                self._done.put(self._compile(lane, tag, source))
            except OSError as error:
                place = f" ({error.filename})" if error.filename else ""
                message = f"cannot store compiled kernels: {error.strerror or error}{place}"
                advice = "free some space there, or point KSEARCH_CACHE_DIR elsewhere"
                self._done.put(KsearchError(f"{message}; {advice}"))
            except KsearchError as error:
                self._done.put(error)
        if (child := self._children.pop(lane, None)) is not None:
            child.kill()

    def _compile(self, lane: int, tag: Hashable, source: Source) -> Build:
        try:
            try:
                artifact: Artifact = self._child(lane).call(source, self._timeout_s)
            except ChildDied as death:
                if not death.by_force or self._closed:
                    raise
                artifact = self._child(lane).call(source, self._timeout_s)  # twice is no accident
        except CompileError as error:
            return Build(tag, status=Status.COMPILE_ERROR, message=str(error), log=error.log)
        except ChildTimeout:
            message = f"the compiler did not finish within {self._timeout_s:.3g} s"
            return Build(tag, status=Status.COMPILE_TIMEOUT, message=message)
        except ChildDied as death:
            message = f"the compiler died: {death}"
            return Build(tag, status=Status.CRASHED, message=message, log=death.stderr_tail)
        except ChildError as error:
            return Build(tag, status=Status.CRASHED, message=f"the compiler failed: {error}", log=error.log)
        return Build(tag, artifact)

    def _child(self, lane: int) -> Child:
        """The lane's process, started anew where the last one was killed. Raises WorkerError."""
        child = self._children.get(lane)
        if child is not None and child.is_alive:
            return child
        reason = ""
        for _ in range(_ATTEMPTS):
            if child is not None:
                child.kill()
            with self._lock:
                if self._closed:
                    raise WorkerError("the compile pool is closed")
                child = self._children[lane] = Child("ksearch.evaluate.pool:open_compiler")
            try:
                child.call(self._opening, _START_S)
            except (ChildDied, ChildTimeout, ChildError) as error:
                child.kill()
                reason = str(error)
            else:
                return child
        raise WorkerError(f"a compile process does not start: {reason}")

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
        while not self._waiting.empty():
            try:
                self._waiting.get_nowait()
            except queue.Empty:  # a lane was faster
                break
        for _ in self._lanes:
            self._waiting.put(None)
        for child in list(self._children.values()):
            child.terminate()
        for thread in self._lanes:
            thread.join()


def open_compiler() -> Answer:
    """The child's side: the first message names the backend, and how much memory this process, and each that
    it starts, may take; each later one is a Source to build."""
    from ksearch import artifacts, backends  # in the child alone: the parent's pool needs neither

    chosen: backends.Backend | None = None

    def answer(message: Any) -> Artifact | None:
        nonlocal chosen
        if chosen is None:
            name, memory_bytes = message
            chosen = backends.get(name)
            limit(resource.RLIMIT_DATA, memory_bytes)
            return None
        return artifacts.build(chosen, message)

    return answer
