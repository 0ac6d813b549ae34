"""The CPU backend compiles, loads and starts real code, and says clearly why it cannot."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ksearch.backends import LaunchError, cpu, get
from ksearch.errors import CompileError, NoSuchDevice, ToolMissing
from ksearch.launch import Launch
from ksearch.types import Source

DOUBLER = """
#include <cstdint>
#include <omp.h>
extern "C" void ksearch_kernel(const float* in, float* out, int64_t rows, int32_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < rows; ++i) out[i] = 2 * in[i] + 1000 * (omp_get_num_threads() == threads);
}
"""


def source(text: str, **facts: object) -> Source:
    return Source(text=text, backend="cpu", arch="any", **facts)  # type: ignore[arg-type]


@pytest.fixture
def backend() -> cpu.CpuBackend:
    return cpu.CpuBackend()


def test_is_found_by_name() -> None:
    assert get("cpu").name == "cpu"


def test_compiles_loads_and_runs(backend: cpu.CpuBackend, tmp_path: Path) -> None:
    compiled = backend.compile(source(DOUBLER))
    assert "-march=native" in compiled.log
    binary = tmp_path / "kernel.so"
    binary.write_bytes(compiled.binary)
    kernel = backend.load(binary, Launch(threads=2), 0)
    values, results = (ctypes.c_float * 5)(1, 2, 3, 4, 5), (ctypes.c_float * 5)()
    kernel((ctypes.addressof(values), ctypes.addressof(results)), 4, 0)
    assert list(results) == [1002, 1004, 1006, 1008, 0]
    kernel.unload()


def test_error_is_shown_at_the_templates_line(backend: cpu.CpuBackend) -> None:
    origin = (("cpu/own.cpp.j2", 7), ("include/simd.hpp", 31))
    with pytest.raises(CompileError, match=r"^include/simd\.hpp:31: .*nonsense") as caught:
        backend.compile(source("int a;\nint b = nonsense;\n", origin=origin))
    assert "kernel.cpp:2" in caught.value.log
    assert "-fopenmp" in caught.value.log


def test_error_without_a_line_is_the_compilers_first(backend: cpu.CpuBackend) -> None:
    with pytest.raises(CompileError, match="no-such-option"):
        backend.compile(source("int a;", options=("--no-such-option",)))


def test_missing_compiler_says_how_to_get_one(
    backend: cpu.CpuBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KSEARCH_CXX", "/no/such/g++")
    with pytest.raises(ToolMissing, match="/no/such/g"):
        backend.compile(source("int a;"))
    monkeypatch.delenv("KSEARCH_CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match=r"apt-get install g\+\+"):
        backend.compiler_id()


def test_a_compiler_that_does_not_work_is_a_missing_tool(
    backend: cpu.CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSEARCH_CXX", "false")
    with pytest.raises(ToolMissing, match="false does not work"):
        backend.compiler_id()


def test_compiler_id_tells_versions_and_instruction_sets_apart(
    backend: cpu.CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = backend.compiler_id()
    assert plain == backend.compiler_id()
    monkeypatch.setenv("KSEARCH_CXX", "c++ -DOTHER")
    assert backend.compiler_id() != plain


def test_a_file_that_is_no_library_is_a_launch_error(backend: cpu.CpuBackend, tmp_path: Path) -> None:
    binary = tmp_path / "kernel.so"
    binary.write_bytes(b"not a library")
    with pytest.raises(LaunchError, match="cannot be loaded"):
        backend.load(binary, Launch(), 0)


def test_a_library_without_the_kernel_is_a_launch_error(backend: cpu.CpuBackend, tmp_path: Path) -> None:
    binary = tmp_path / "kernel.so"
    binary.write_bytes(backend.compile(source('extern "C" void other() {}')).binary)
    with pytest.raises(LaunchError, match="exports no ksearch_kernel"):
        backend.load(binary, Launch(), 0)


def test_target_is_this_machine(backend: cpu.CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    target = backend.target()
    assert target.backend == "cpu"
    assert target.units == len(os.sched_getaffinity(0))
    assert 1 << 28 < target.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert f"{target.units} thread" in target.device
    with pytest.raises(NoSuchDevice, match="cpu:1"):
        backend.target(1)


@pytest.mark.parametrize("setting", ["1", "4096", "1,2"])
def test_omp_num_threads_decides_as_it_does_for_torch(
    backend: cpu.CpuBackend, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    script = "import torch; print(torch.get_num_threads())"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert backend.target().units == int(said)


@pytest.mark.parametrize(
    ("flags", "arch"),
    [
        ("sse2 avx", "x86_64-sse2"),
        ("sse2 avx avx2 fma f16c avx512f", "x86_64-avx2"),
        ("sse2 avx2 fma f16c avx512f avx512bw avx512dq avx512vl", "x86_64-avx512"),
    ],
)
def test_arch_is_the_widest_complete_instruction_set(
    flags: str, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "_cpu_facts", lambda: {"flags": flags, "model name": "Some CPU"})
    target = cpu.CpuBackend().target()
    assert target.arch == arch
    assert target.device.startswith("Some CPU, ")


def test_needs_no_torch() -> None:
    script = (
        "import sys, ksearch.backends.cpu as c; c.CpuBackend().target(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
