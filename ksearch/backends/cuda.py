"""NVIDIA GPUs: NVRTC (or nvcc) compiles to a cubin, the driver loads and starts it.

Compiling works on a machine without a GPU or a driver. Looking at a device (`target`) asks the
driver but creates no CUDA context; `load` and launching use the device's primary context, the one
that PyTorch uses.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import struct
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from ksearch.backends.base import Compiled, LaunchError
from ksearch.errors import CompileError, NoSuchDevice, ToolMissing
from ksearch.types import Launch, Source, Target

_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")
_SMEM = re.compile(r"(\d+) bytes smem")
_ERROR = re.compile(
    r"\((\d+)\): (?:catastrophic )?error[^:]*: (.*)|^ptxas (?:error|fatal)\s*: (.*)", re.MULTILINE
)

# After these the context is gone: every later call of the process fails too (CUDA driver API, CUresult).
_STICKY = {700, 702, 704, 714, 715, 716, 717, 718, 719, 720, 721, 999}

_NO_NVRTC = (
    "no CUDA compiler: neither NVRTC nor nvcc was found; "
    "install NVRTC with: pip install 'nvidia-cuda-nvrtc>=13.0,<14' cuda-bindings"
)


def check(result: tuple[Any, ...]) -> Any:
    """The value of a driver call; raises LaunchError with the driver's name for its error."""
    code, *values = result
    if int(code) != 0:
        name = getattr(code, "name", str(code))
        raise LaunchError(f"{name} ({int(code)})", sticky=int(code) in _STICKY)
    return values[0] if len(values) == 1 else tuple(values)


@functools.cache
def _driver() -> Any:
    """The driver bindings after cuInit, which creates no context. Raises NoSuchDevice."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise NoSuchDevice(
            "no CUDA device: the package cuda-bindings is missing (pip install cuda-bindings)"
        ) from error
    try:
        check(driver.cuInit(0))
    except (LaunchError, RuntimeError) as error:
        raise NoSuchDevice(
            f"no CUDA device: {error}; is the NVIDIA driver installed (nvidia-smi)?"
        ) from error
    return driver


class CudaBackend:
    """Compiles with NVRTC in process, nvcc as a fallback; starts with cuLaunchKernel."""

    name = "cuda"
    extension = "cubin"
    exclusive = False

    def target(self, index: int = 0) -> Target:
        driver = _driver()
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
    options = [f"--gpu-architecture={source.arch}", "--std=c++17", "--ptxas-options=-v", *source.options]
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
        command = [_nvcc(), "-cubin", f"-arch={source.arch}", "-std=c++17", "-Xptxas", "-v", *source.options]
        done = subprocess.run(
            [*command, "-o", str(binary), str(text)], capture_output=True, text=True, check=False
        )
        log = done.stdout + done.stderr
        return done.returncode == 0, binary.read_bytes() if binary.exists() else b"", log


def _first_error(source: Source, log: str) -> str:
    """The compiler's first error, at the template's own line."""
    if (found := _ERROR.search(log)) is None:
        return (
            f"does not compile: {log.strip().splitlines()[0] if log.strip() else 'the compiler said nothing'}"
        )
    line, message, ptxas = found.groups()
    return f"ptxas: {ptxas}" if line is None else f"{source.locate(int(line))}: {message.strip()}"


class CudaKernel:
    """A cubin in the primary context of one device; arguments are pointers and a 64-bit row count."""

    def __init__(self, binary: Path, launch: Launch, index: int) -> None:
        driver = self._driver = _driver()
        self._launch = launch
        self._local = threading.local()
        self._context = check(driver.cuDevicePrimaryCtxRetain(check(driver.cuDeviceGet(index))))
        check(driver.cuCtxPushCurrent(self._context))
        try:
            self._module = check(driver.cuModuleLoadData(binary.read_bytes()))
            self._function = check(driver.cuModuleGetFunction(self._module, b"ksearch_kernel"))
            self._set_limits()
            self._grid_limit = self._resident_blocks(index) if launch.persistent else None
            self._workspaces = self._allocate_workspaces() if launch.workspace_bytes else None
        finally:
            check(driver.cuCtxPopCurrent())

    def _set_limits(self) -> None:
        """Shared memory over 48 KB (static and dynamic together) and clusters over 8 must be asked for."""
        attribute = self._driver.CUfunction_attribute
        if self._launch.smem_bytes:
            check(
                self._driver.cuFuncSetAttribute(
                    self._function,
                    attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    self._launch.smem_bytes,
                )
            )
        if self._launch.cluster > 8:
            check(
                self._driver.cuFuncSetAttribute(
                    self._function, attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1
                )
            )

    def _resident_blocks(self, index: int) -> int:
        """Blocks that the device holds at once: whole clusters live inside one GPC, so ask, not divide."""
        driver, launch = self._driver, self._launch
        if launch.cluster > 1:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            attribute.value.clusterDim.x = launch.cluster
            attribute.value.clusterDim.y = attribute.value.clusterDim.z = 1
            config = driver.CUlaunchConfig()
            config.gridDimX, config.gridDimY, config.gridDimZ = launch.cluster, 1, 1
            config.blockDimX, config.blockDimY, config.blockDimZ = launch.block, 1, 1
            config.sharedMemBytes = launch.smem_bytes
            config.attrs, config.numAttrs = [attribute], 1
            blocks = launch.cluster * int(check(driver.cuOccupancyMaxActiveClusters(self._function, config)))
        else:
            per_unit = check(
                driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    self._function, launch.block, launch.smem_bytes
                )
            )
            count = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
            blocks = int(per_unit) * int(
                check(driver.cuDeviceGetAttribute(count, check(driver.cuDeviceGet(index))))
            )
        blocks = blocks // launch.split * launch.split
        if blocks == 0:
            raise LaunchError("no block of this kernel fits on the device")
        return blocks

    def _allocate_workspaces(self) -> Workspaces:
        if self._grid_limit is None:
            raise LaunchError("only a persistent grid can have a workspace, whose size is that of the grid")
        return Workspaces(self._driver, self._grid_limit * self._launch.workspace_bytes)

    def __call__(self, pointers: tuple[int, ...], rows: int, stream: int) -> None:
        local = self._local
        values = (*pointers, rows)
        if self._workspaces is not None:
            if not int(check(self._driver.cuCtxGetCurrent())):  # a thread that has not used CUDA yet
                check(self._driver.cuCtxSetCurrent(self._context))
            values = (*values, self._workspaces.of(stream))
        if not hasattr(local, "values"):  # per thread: cuLaunchKernel runs without the GIL
            count = len(values)
            local.values = ctypes.create_string_buffer(8 * count)
            base = ctypes.addressof(local.values)
            local.params = (ctypes.c_void_p * count)(*(base + 8 * i for i in range(count)))
            local.address = ctypes.addressof(local.params)
            local.layout = struct.Struct(f"{len(pointers)}Qq" + "Q" * (count - len(pointers) - 1))
        local.layout.pack_into(local.values, 0, *values)
        launch = self._launch
        grid = launch.grid(rows)
        if self._grid_limit is not None:
            grid = min(grid, self._grid_limit)
        (code,) = self._start(grid, stream, local.address)
        if int(code) == 201:  # CUDA_ERROR_INVALID_CONTEXT: a thread that has not used CUDA yet
            check(self._driver.cuCtxSetCurrent(self._context))
            (code,) = self._start(grid, stream, local.address)
        check((code,))

    def _start(self, grid: int, stream: int, parameters: int) -> Any:
        launch = self._launch
        where = (grid, 1, 1, launch.block, 1, 1, launch.smem_bytes, stream, parameters)
        if launch.split > 1:  # the driver refuses what would wait for blocks that do not fit
            return self._driver.cuLaunchCooperativeKernel(self._function, *where)
        return self._driver.cuLaunchKernel(self._function, *where, 0)

    def unload(self) -> None:
        if self._workspaces is not None:
            self._workspaces.free()
        check(self._driver.cuModuleUnload(self._module))


class Workspaces:
    """Zeroed device memory for launches of one kernel; two that may overlap never get the same piece.

    Launches of one stream follow one another, so each stream has a piece. So has each graph under
    capture, for as long as the kernel lives: it may be replayed on any stream. Pieces are made beforehand,
    because memory cannot be allocated during a capture.
    """

    _PIECES = 64

    def __init__(self, driver: Any, size_bytes: int) -> None:
        """Raises LaunchError."""
        self._driver = driver
        self._size_bytes = -(-size_bytes // 256) * 256
        self._blocks: list[Any] = []
        self._free: list[int] = []
        self._owners: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()
        self._add()

    def of(self, stream: int) -> int:
        """Address of the piece for a launch on `stream` now. Raises LaunchError where none is left."""
        owner = (stream, self._capture(stream))
        piece = self._owners.get(owner)
        return self._take(owner) if piece is None else piece

    def _take(self, owner: tuple[int, int]) -> int:
        with self._lock:
            if owner not in self._owners:
                if not self._free and owner[1]:
                    raise LaunchError("other CUDA graphs hold all workspaces of this kernel")
                if not self._free:
                    self._add()
                self._owners[owner] = self._free.pop()
            return self._owners[owner]

    def free(self) -> None:
        for block in self._blocks:
            check(self._driver.cuMemFree(block))

    def _capture(self, stream: int) -> int:
        """Number of the capture that the stream is in, 0 where it is in none."""
        status, number = check(self._driver.cuStreamGetCaptureInfo(stream))[:2]
        active = self._driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
        return int(number) if int(status) == int(active) else 0

    def _add(self) -> None:
        block = check(self._driver.cuMemAlloc(self._PIECES * self._size_bytes))
        check(self._driver.cuMemsetD8(block, 0, self._PIECES * self._size_bytes))
        check(self._driver.cuStreamSynchronize(0))  # other streams do not wait for that one
        self._blocks.append(block)
        self._free += [int(block) + i * self._size_bytes for i in range(self._PIECES)]
