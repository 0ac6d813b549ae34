"""The CUDA backend as far as it goes without a GPU: both compilers, their reports and errors, no device."""

from __future__ import annotations

import shutil

import pytest

from ksearch import backends
from ksearch.backends import LaunchError, cuda
from ksearch.errors import CompileError, NoSuchDevice, ToolMissing
from ksearch.types import Source

COPY = """
extern "C" __global__ void ksearch_kernel(const float* x, float* y, long long rows) {
    __shared__ float staged[256];
    staged[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = staged[255 - threadIdx.x];
}
"""
ORIGIN = (("cuda/mine.cu.j2", 10), ("cuda/mine.cu.j2", 11), ("cuda/mine.cu.j2", 30), ("cuda/mine.cu.j2", 31))


@pytest.fixture(params=["nvrtc", "nvcc"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> cuda.CudaBackend:
    if request.param == "nvcc":
        if shutil.which("nvcc") is None and shutil.which("/usr/local/cuda/bin/nvcc") is None:
            pytest.skip("no nvcc on this machine")
        monkeypatch.setattr(cuda, "_nvrtc", lambda: None)
    return cuda.CudaBackend()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_a_kernel_compiles_to_a_cubin_with_its_needs(backend: cuda.CudaBackend, arch: str) -> None:
    compiled = backend.compile(Source(COPY, "cuda", arch))
    assert compiled.binary[:4] == b"\x7fELF"
    assert compiled.smem_bytes == 1024
    assert 0 < compiled.registers < 64
    assert compiled.spill_bytes == 0


def test_spilled_registers_are_reported(backend: cuda.CudaBackend) -> None:
    body = "\n".join(f"    float v{i} = x[{i} * rows];" for i in range(100))
    total = "\n".join(f"    __syncthreads(); y[{i}] = v{i} * v{99 - i};" for i in range(100))
    text = (
        'extern "C" __global__ void __launch_bounds__(1024, 2) ksearch_kernel('
        f"const float* __restrict__ x, float* __restrict__ y, long long rows) {{\n{body}\n{total}\n}}\n"
    )
    assert backend.compile(Source(text, "cuda", "sm_90")).spill_bytes > 0


def test_the_first_error_is_told_at_the_templates_line(backend: cuda.CudaBackend) -> None:
    text = "__device__ int a;\n__device__ int b;\n__device__ int c = missing;\n__device__ int d = lost;\n"
    with pytest.raises(CompileError) as error:
        backend.compile(Source(text, "cuda", "sm_90", origin=ORIGIN))
    assert str(error.value).startswith("cuda/mine.cu.j2:30: ")
    assert "missing" in str(error.value)
    assert "lost" in error.value.log


def test_what_ptxas_refuses_is_a_compile_error(backend: cuda.CudaBackend) -> None:
    text = 'extern "C" __global__ void ksearch_kernel() { asm volatile("no.such.instruction;"); }\n'
    with pytest.raises(CompileError, match="ptxas"):
        backend.compile(Source(text, "cuda", "sm_90"))


def test_an_unknown_architecture_is_a_compile_error(backend: cuda.CudaBackend) -> None:
    with pytest.raises(CompileError, match=r"sm_12345|architecture"):
        backend.compile(Source(COPY, "cuda", "sm_12345"))


def test_the_compiler_is_named_with_its_version(backend: cuda.CudaBackend) -> None:
    assert backend.compiler_id().split()[0] in ("nvrtc", "nvcc")
    assert any(character.isdigit() for character in backend.compiler_id())


def test_without_any_compiler_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_nvrtc", lambda: None)
    monkeypatch.setattr(cuda.shutil, "which", lambda _: None)
    with pytest.raises(ToolMissing, match="pip install"):
        cuda.CudaBackend().compile(Source(COPY, "cuda", "sm_90"))


def test_the_drivers_error_keeps_its_name_and_what_it_costs() -> None:
    for code, name, sticky in (
        (1, "CUDA_ERROR_INVALID_VALUE", False),
        (700, "CUDA_ERROR_ILLEGAL_ADDRESS", True),
    ):
        refused = type("Result", (int,), {"name": name})(code)
        with pytest.raises(LaunchError, match=name) as error:
            cuda.check((refused,))
        assert error.value.sticky is sticky
    assert cuda.check((0, 7)) == 7
    assert cuda.check((0, 7, 8)) == (7, 8)


def test_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(NoSuchDevice, match=r"no CUDA device|no device cuda:99"):
        backends.get("cuda").target(99)
    for text in ("gpu", "cuda:x", "cpu:1", ""):
        with pytest.raises(NoSuchDevice, match="use cpu, cuda or cuda:N"):
            backends.parse_device(text)
