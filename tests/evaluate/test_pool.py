from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ksearch.errors import KsearchError, NoSuchDevice, ToolMissing
from ksearch.evaluate.pool import CompilePool
from ksearch.types import Source, Status
from tests.evaluate import kernels


def right(number: int = 0) -> Source:
    return kernels.source(f"const int number = {number}; (void)number; " + kernels.CPU_SIGMOID, 64)


@pytest.fixture
def endless(tmp_path: Path) -> Source:
    """A source on which the compiler waits forever: it includes a pipe that nobody writes to."""
    pipe = tmp_path / "pipe.h"
    os.mkfifo(pipe)
    return Source(f'#include "{pipe}"\n', "cpu", "native")


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_compiles_many_and_gives_each_its_tag() -> None:
    with CompilePool("cpu", width=2) as pool:
        for number in range(4):
            pool.submit(("trial", number), right(number))
        assert pool.pending == 4
        builds = pool.completed(wait_for_all=True)
        assert pool.pending == 0
        assert sorted(build.tag for build in builds) == [("trial", number) for number in range(4)]  # type: ignore[type-var]
        for build in builds:
            assert build.status is None
            assert build.artifact is not None
            assert Path(build.artifact.binary).is_file()
            assert build.artifact.compile_s > 0
        assert pool.completed() == []


def test_what_is_on_disk_is_not_compiled_again() -> None:
    with CompilePool("cpu", width=1) as pool:
        for _ in range(2):
            pool.submit("same", right())
        first, second = (build.artifact for build in pool.completed(wait_for_all=True))
    assert first is not None
    assert second is not None
    assert (second.key, second.compile_s) == (first.key, 0.0)


def test_a_compile_error_carries_its_log_and_stops_nobody() -> None:
    with CompilePool("cpu", width=1) as pool:
        pool.submit("bad", kernels.source("int x = undeclared_name;", 64))
        pool.submit("good", right())
        bad, good = pool.completed(wait_for_all=True)
    assert (bad.tag, bad.status, bad.artifact) == ("bad", Status.COMPILE_ERROR, None)
    assert "undeclared_name" in bad.message
    assert "\n" not in bad.message
    assert "undeclared_name" in bad.log
    assert good.artifact is not None


def test_the_fast_do_not_wait_for_the_hanging(endless: Source) -> None:
    with CompilePool("cpu", width=2, timeout_s=6.0) as pool:
        pool.submit("hangs", endless)
        pool.submit("fast", right())
        assert [build.tag for build in pool.completed()] == ["fast"]
        assert pool.pending == 1
        (hung,) = pool.completed()
        assert (hung.tag, hung.status) == ("hangs", Status.COMPILE_TIMEOUT)
        assert "6 s" in hung.message
        pool.submit("after", right(1))
        pool.submit("after", right(2))
        assert all(build.artifact for build in pool.completed(wait_for_all=True))


def test_leaving_ends_every_process_at_once(endless: Source) -> None:
    before = children()
    with CompilePool("cpu", width=2) as pool:
        for number in range(6):
            pool.submit(number, endless)
        deadline = time.monotonic() + 20
        while len(children() - before) < 4 and time.monotonic() < deadline:  # two of ours, two compilers
            time.sleep(0.05)
        assert len(children() - before) >= 4
        began = time.monotonic()
    assert time.monotonic() - began < 5
    deadline = time.monotonic() + 5
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children() - before == set()


def test_a_compiler_that_dies_is_that_sources_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiling process itself is killed, as by a machine that runs out of memory."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-shared*) kill -9 $PPID;; *) exec c++ "$@";; esac\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("KSEARCH_CXX", str(compiler))
    with CompilePool("cpu", width=1) as pool:
        pool.submit("killed", right())
        (build,) = pool.completed()
    assert build.status is Status.CRASHED
    assert "SIGKILL" in build.message


def test_a_missing_compiler_is_nobodys_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSEARCH_CXX", "/nowhere/c++")
    with CompilePool("cpu", width=1) as pool:
        pool.submit("x", right())
        with pytest.raises(ToolMissing, match="/nowhere/c"):
            pool.completed()
        assert pool.pending == 0


def test_a_cache_that_cannot_be_written_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("KSEARCH_CACHE_DIR", str(blocked))
    with CompilePool("cpu", width=1) as pool:
        pool.submit("x", right())
        with pytest.raises(KsearchError, match="KSEARCH_CACHE_DIR") as error:
            pool.completed()
    assert str(blocked) in str(error.value)


def test_an_unknown_backend_is_said_as_such() -> None:
    with CompilePool("abacus", width=1) as pool:
        pool.submit("x", right())
        with pytest.raises(NoSuchDevice, match="abacus"):
            pool.completed()


def test_compiling_needs_no_torch_in_the_parent_or_the_child() -> None:
    modules = "ksearch.evaluate.pool, ksearch.evaluate.worker, ksearch.artifacts, ksearch.backends.cuda"
    script = f"import sys, {modules}; print('torch' in sys.modules)"
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.strip() == "False"
