"""NVIDIA GPUs: NVRTC (or nvcc) compiles to a cubin, the driver loads and starts it.

Compiling works on a machine without a GPU or a driver. Looking at a device (`target`) asks the
driver but creates no CUDA context; `load` and launching use the device's primary context, the one
that PyTorch uses.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ksearch.backends.base import Compiled
from ksearch.backends.cuda_driver import check, load_driver
from ksearch.backends.cuda_kernel import CudaKernel
from ksearch.errors import CompileError, NoSuchDevice, ToolMissing
from ksearch.launch import Launch
from ksearch.types import Source, Target

_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")
_SMEM = re.compile(r"(\d+) bytes smem")
_ERROR = re.compile(
    r"\((\d+)\): (?:catastrophic )?error[^:]*: (.*)|^ptxas (?:error|fatal)\s*: (.*)", re.MULTILINE
)

_NO_NVRTC = (
    "no CUDA compiler: neither NVRTC nor nvcc was found; "
    "install NVRTC with: pip install 'nvidia-cuda-nvrtc>=13.0,<14' cuda-bindings"
)


class CudaBackend:
    """Compiles with NVRTC in process, nvcc as a fallback; starts with cuLaunchKernelEx."""

    name = "cuda"
    extension = "cubin"
    exclusive = False

    def target(self, index: int = 0) -> Target:
        driver = load_driver()
        count = check(driver.cuDeviceGetCount())
        if index >= count:
            raise NoSuchDevice(
                f"no device cuda:{index}: this machine has {count} CUDA device(s), counted from 0"
            )
        device = check(driver.cuDeviceGet(index))
        attribute = driver.CUdevice_attribute
        prefix = "CU_DEVICE_ATTRIBUTE_"

        def get(name: str) -> int:
            return int(check(driver.cuDeviceGetAttribute(getattr(attribute, prefix + name), device)))

        name = check(driver.cuDeviceGetName(128, device)).split(b"\0")[0].decode()
        major, minor = get("COMPUTE_CAPABILITY_MAJOR"), get("COMPUTE_CAPABILITY_MINOR")
        return Target(
            backend="cuda",
            arch=f"sm_{major}{minor}",
            device=name,
            index=index,
            units=get("MULTIPROCESSOR_COUNT"),
            memory_bytes=int(check(driver.cuDeviceTotalMem(device))),
            smem_bytes=get("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
            cache_bytes=get("L2_CACHE_SIZE"),
        )

    @functools.cache  # noqa: B019  (one backend a process)
    def compiler_id(self) -> str:
        if (nvrtc := _nvrtc()) is not None:
            major, minor = check(nvrtc.nvrtcVersion())
            return f"nvrtc {major}.{minor}"
        nvcc = _nvcc()
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        return f"nvcc {text.strip().splitlines()[-1]}"

    def compile(self, source: Source) -> Compiled:
        nvrtc = _nvrtc()
        ok, binary, log = _compile_nvrtc(nvrtc, source) if nvrtc is not None else _compile_nvcc(source)
        if not ok:
            raise CompileError(_first_error(source, log), log)
        return Compiled(
            binary=binary,
            log=log,
            registers=max(map(int, _REGISTERS.findall(log)), default=0),
            spill_bytes=max(map(int, _SPILLS.findall(log)), default=0),
            smem_bytes=max(map(int, _SMEM.findall(log)), default=0),
        )

    def load(self, binary: Path, launch: Launch, index: int) -> CudaKernel:
        return CudaKernel(binary, launch, index)


@functools.cache
def _nvrtc() -> Any | None:
    """The NVRTC bindings, or None where the library is not there."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError):
        return None
    return nvrtc


def _nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        raise ToolMissing(_NO_NVRTC)
    return found


def _compile_nvrtc(nvrtc: Any, source: Source) -> tuple[bool, bytes, str]:
    options = [
        f"--gpu-architecture={_full_arch(source)}",
        "--std=c++17",
        "--ptxas-options=-v",
        *source.options,
    ]
    program = check(nvrtc.nvrtcCreateProgram(source.text.encode(), b"source.cu", 0, [], []))
    try:
        (code,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        log = b" " * check(nvrtc.nvrtcGetProgramLogSize(program))
        check(nvrtc.nvrtcGetProgramLog(program, log))
        text = log.decode(errors="replace").rstrip("\0 ")
        if int(code) != 0:
            return False, b"", text or str(code)
        cubin = b" " * check(nvrtc.nvrtcGetCUBINSize(program))
        check(nvrtc.nvrtcGetCUBIN(program, cubin))
        return True, cubin, text
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _compile_nvcc(source: Source) -> tuple[bool, bytes, str]:
    with tempfile.TemporaryDirectory(prefix="ksearch-") as scratch:
        text, binary = Path(scratch, "source.cu"), Path(scratch, "kernel.cubin")
        text.write_text(source.text)
        command = [
            _nvcc(),
            "-cubin",
            f"-arch={_full_arch(source)}",
            "-std=c++17",
            "-Xptxas",
            "-v",
            *source.options,
        ]
        done = subprocess.run(
            [*command, "-o", str(binary), str(text)], capture_output=True, text=True, check=False
        )
        log = done.stdout + done.stderr
        return done.returncode == 0, binary.read_bytes() if binary.exists() else b"", log


def _full_arch(source: Source) -> str:
    """A cubin runs on no other architecture anyway, so it may use all that its own has (wgmma: sm_90a)."""
    return f"{source.arch}a" if source.arch == "sm_90" else source.arch


def _first_error(source: Source, log: str) -> str:
    """The compiler's first error, at the template's own line."""
    if (found := _ERROR.search(log)) is None:
        return (
            f"does not compile: {log.strip().splitlines()[0] if log.strip() else 'the compiler said nothing'}"
        )
    line, message, ptxas = found.groups()
    return f"ptxas: {ptxas}" if line is None else f"{source.locate(int(line))}: {message.strip()}"
