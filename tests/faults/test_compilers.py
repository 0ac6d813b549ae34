"""Sources that take the compiler with them: what it costs is bounded, and the next one compiles."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ksearch.evaluate.pool import Build, CompilePool
from ksearch.types import Source, Status
from tests.evaluate import kernels
from tests.faults.told import Told

_DOUBLING = "\n".join(f"#define A{n + 1} A{n} A{n}" for n in range(40)) + "\nA40\n"
_KERNEL = 'extern "C" __global__ void k() {}\n'
_NO_LIMIT_ON_STEPS = ("-fconstexpr-ops-limit=2147483647", "-fconstexpr-loop-limit=2147483647")

# name: (source, status, part of the message)
BOMBS: dict[str, tuple[Source, Status, str]] = {
    "g++: a bomb of memory": (
        Source(f"#define A0 int f(int);\n{_DOUBLING}", "cpu", "native"),
        Status.COMPILE_ERROR,
        "out of memory|cannot allocate|memory exhausted",
    ),
    "g++: a bomb on the disk": (
        Source("char big[1LL << 36] = {1};\n", "cpu", "native"),
        Status.COMPILE_ERROR,
        "File size limit|File too large",
    ),
    "g++: a bomb of time": (
        Source(
            "constexpr long f(long n) { return n < 2 ? n : f(n - 1) + f(n - 2); }\nconstexpr long x = f(90);",
            "cpu",
            "native",
            _NO_LIMIT_ON_STEPS,
        ),
        Status.COMPILE_TIMEOUT,
        "did not finish within 2 s",
    ),
    "NVRTC: a bomb of memory": (
        Source("__device__ char big[1LL << 36] = {1};\n" + _KERNEL, "cuda", "sm_90"),
        Status.CRASHED,
        "the compiler died: SIGABRT: LLVM ERROR: out of memory",
    ),
    "NVRTC: a bomb of time": (
        Source(f"#define A0 __device__ int f(int);\n{_DOUBLING}{_KERNEL}", "cuda", "sm_90"),
        Status.COMPILE_TIMEOUT,
        "did not finish within 2 s",
    ),
}


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; nothing is to be left there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert list(folder.iterdir()) == []


def compile_with(pool: CompilePool, source: Source) -> Build:
    pool.submit("x", source)
    (build,) = pool.completed()
    return build


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_no_more_than_is_allowed(name: str, scratch: Path, told: Told) -> None:
    bomb, status, message = BOMBS[name]
    if bomb.backend == "cuda":
        pytest.importorskip("cuda.bindings.nvrtc")
        after = Source(_KERNEL, "cuda", "sm_90")
    else:
        after = kernels.source(kernels.CPU_SIGMOID, 64)
    timeout_s = 2.0 if status is Status.COMPILE_TIMEOUT else 60.0
    with CompilePool(bomb.backend, width=1, timeout_s=timeout_s, memory_bytes=1 << 29) as pool:
        build = compile_with(pool, bomb)
        assert build.status is status, build
        assert re.search(message, build.message), build.message
        pool._timeout_s = 60.0  # what is to compile may take its time on a busy machine
        assert compile_with(pool, after).artifact is not None
    told(f"compile bomb, {name}", f"{build.status}: {build.message}")


def test_a_compiler_that_crashes_is_that_sources_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-shared*) kill -SEGV $$;; *) exec c++ "$@";; esac\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("KSEARCH_CXX", str(compiler))
    with CompilePool("cpu", width=1) as pool:
        build = compile_with(pool, kernels.source(kernels.CPU_SIGMOID, 64))
    assert build.status is Status.COMPILE_ERROR
    assert "exited with status -11" in build.message
    told("compiler crash", f"{build.status}: {build.message}")


def test_a_compile_process_that_is_killed_once_costs_the_source_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    """As by a person, or by a machine that needed memory; who is killed twice is to blame."""
    compiler, mark = tmp_path / "c++", tmp_path / "killed"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *-shared*) '
        f'[ -e {mark} ] || {{ touch {mark}; kill -9 $PPID; sleep 9; }};; esac\nexec c++ "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("KSEARCH_CXX", str(compiler))
    with CompilePool("cpu", width=1) as pool:
        build = compile_with(pool, kernels.source(kernels.CPU_SIGMOID, 64))
        assert mark.exists()
        assert build.artifact is not None, build
    told("compile process killed with SIGKILL", "compiled again")


def test_compile_processes_that_are_killed_between_sources_are_replaced() -> None:
    killed = 0
    with CompilePool("cpu", width=1) as pool:
        for number in range(3):
            build = compile_with(pool, kernels.source(f"(void){number};" + kernels.CPU_SIGMOID, 64))
            assert build.artifact is not None
            for child in psutil.Process().children():
                if "ksearch.evaluate.pool:open_compiler" in child.cmdline():
                    os.kill(child.pid, signal.SIGKILL)
                    killed += 1
    assert killed == 3
