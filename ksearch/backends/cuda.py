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
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from ksearch.backends.base import Compiled, LaunchError
from ksearch.backends.cuda_start import Slot, Step, direct
from ksearch.errors import CompileError, NoSuchDevice, ToolMissing
from ksearch.types import Launch, Source, Target, TensorMap

_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")
_SMEM = re.compile(r"(\d+) bytes smem")
_ERROR = re.compile(
    r"\((\d+)\): (?:catastrophic )?error[^:]*: (.*)|^ptxas (?:error|fatal)\s*: (.*)", re.MULTILINE
)

# After these the context is gone: every later call of the process fails too (CUDA driver API, CUresult).
_STICKY = {700, 702, 704, 714, 715, 716, 717, 718, 719, 720, 721, 999}

_TOO_NEW = "the binary is for a newer NVIDIA driver or another GPU; update the driver, or tune again here"
_HINTS = {
    2: "the GPU's memory is full",
    200: _TOO_NEW, 209: _TOO_NEW, 218: _TOO_NEW, 222: _TOO_NEW, 223: _TOO_NEW, 803: _TOO_NEW,
}  # fmt: skip
"""What to do about an error (CUresult)."""

_NO_CONTEXT = 201
"""CUDA_ERROR_INVALID_CONTEXT."""

_NO_NVRTC = (
    "no CUDA compiler: neither NVRTC nor nvcc was found; "
    "install NVRTC with: pip install 'nvidia-cuda-nvrtc>=13.0,<14' cuda-bindings"
)


def check(result: tuple[Any, ...]) -> Any:
    """The value of a driver call; raises LaunchError with the driver's name for its error."""
    code, *values = result
    if int(code) != 0:
        name, hint = getattr(code, "name", str(code)), _HINTS.get(int(code), "")
        raise LaunchError(f"{name} ({int(code)}){hint and ': '}{hint}", sticky=int(code) in _STICKY)
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
    """Compiles with NVRTC in process, nvcc as a fallback; starts with cuLaunchKernelEx."""

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


class CudaKernel:
    """A cubin in the primary context of one device: one function, or several that are started in order.

    Arguments are pointers and a 64-bit row count, then the scratch, the workspace and the tensor maps.
    """

    def __init__(self, binary: Path, launch: Launch, index: int) -> None:
        driver = self._driver = _driver()
        self._launch = launch
        self._direct = direct()
        self._slots: list[Slot] = []
        """Those that no thread uses now."""
        self._context = check(driver.cuDevicePrimaryCtxRetain(check(driver.cuDeviceGet(index))))
        check(driver.cuCtxPushCurrent(self._context))
        try:
            self._module = check(driver.cuModuleLoadData(binary.read_bytes()))
            try:
                functions = [
                    _Function(driver, self._module, step, index)
                    for step in (*launch.before, launch, *launch.after)
                ]
                self._steps = [function.step() for function in functions]
                self._maps = TensorMaps(driver, launch.maps)
                self._workspaces = self._allocate_workspaces() if launch.workspace_bytes else None
            except LaunchError:
                driver.cuModuleUnload(self._module)
                raise
        finally:
            check(driver.cuCtxPopCurrent())

    def _allocate_workspaces(self) -> Workspaces:
        blocks = self._steps[len(self._launch.before)].resident
        if blocks is None:
            raise LaunchError("only a persistent grid can have a workspace, whose size is that of the grid")
        return Workspaces(self._driver, blocks * self._launch.workspace_bytes)

    def __call__(self, pointers: tuple[int, ...], rows: int, stream: int) -> None:
        launch = self._launch
        values = (*pointers, rows)
        if launch.scratch_bytes:
            values = (*pointers[:-1], rows, pointers[-1])
        if self._workspaces is not None:
            values = (*values, self._workspaces.of(stream, self._is_capturing(stream)))
        try:  # taking and giving back are one step each, whatever other threads do
            slot = self._slots.pop()
        except IndexError:
            slot = Slot(self._steps, len(values), len(launch.maps))
        if slot.rows != rows or slot.stream != stream:
            slot.aim(rows, stream)
        slot.pack(slot.values, 0, *values)
        if launch.maps:
            maps = self._maps.of(pointers, rows)
            slot.params[len(values) :] = maps[0]
        for arguments in slot.starts:
            code = self._direct.start(*arguments)
            if code == _NO_CONTEXT:  # a thread that has not used CUDA yet
                check(self._driver.cuCtxSetCurrent(self._context))
                code = self._direct.start(*arguments)
            if code:
                check((self._driver.CUresult(code),))
        self._slots.append(slot)

    def _is_capturing(self, stream: int) -> bool:
        """Raises LaunchError."""
        status = ctypes.c_int()
        code = self._direct.is_capturing(stream, ctypes.byref(status))
        if code == _NO_CONTEXT:
            check(self._driver.cuCtxSetCurrent(self._context))
            code = self._direct.is_capturing(stream, ctypes.byref(status))
        if code:
            check((self._driver.CUresult(code),))
        return status.value != 0

    def unload(self) -> None:
        if self._workspaces is not None:
            self._workspaces.free()
        check(self._driver.cuModuleUnload(self._module))


class _Function:
    """One function of a module, made ready to be started."""

    def __init__(self, driver: Any, module: Any, launch: Launch, index: int) -> None:
        """Raises LaunchError."""
        self._driver, self._launch, self._index = driver, launch, index
        self._function = check(driver.cuModuleGetFunction(module, launch.entry.encode()))
        self._set_limits()

    def step(self) -> Step:
        """Raises LaunchError where it does not fit on the device."""
        resident = self._resident_blocks(self._index) if self._launch.persistent else None
        return Step(int(self._function), self._launch, resident)

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


class TensorMaps:
    """Descriptors of a kernel's tensor maps, made once for the memory that a call is about."""

    _MOST = 256
    """Calls remembered; tensors mostly come back to the addresses that the allocator gave them before."""

    def __init__(self, driver: Any, maps: tuple[TensorMap, ...]) -> None:
        self._driver, self._declared = driver, maps
        self._known: dict[tuple[int, ...], tuple[list[int], list[Any]]] = {}

    def of(self, pointers: tuple[int, ...], rows: int) -> tuple[list[int], list[Any]]:
        """Where the descriptors for these pointers lie in host memory, and what is to be held until they
        were read: another thread may make this forget them. Raises LaunchError."""
        key = (rows, *(pointers[each.pointer] for each in self._declared))
        known = self._known.get(key)
        if known is None:
            made = [self._encode(each, pointers[each.pointer], rows) for each in self._declared]
            known = ([int(each.getPtr()) for each in made], made)
            if len(self._known) >= self._MOST:
                self._known = {}
            self._known[key] = known
        return known

    def _encode(self, declared: TensorMap, pointer: int, rows: int) -> Any:
        driver = self._driver
        kinds = driver.CUtensorMapDataType
        kind = getattr(kinds, f"CU_TENSOR_MAP_DATA_TYPE_{declared.dtype.upper()}")
        width = 2 if declared.dtype.endswith("16") else 4
        swizzles = driver.CUtensorMapSwizzle
        return check(
            driver.cuTensorMapEncodeTiled(
                kind,
                2,
                pointer + declared.offset_bytes,
                [driver.cuuint64_t(declared.cols), driver.cuuint64_t(declared.rows or rows)],
                [driver.cuuint64_t(declared.cols * width)],
                [driver.cuuint32_t(declared.box_cols), driver.cuuint32_t(declared.box_rows)],
                [driver.cuuint32_t(1), driver.cuuint32_t(1)],
                driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzles.CU_TENSOR_MAP_SWIZZLE_128B
                if declared.swizzled
                else swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
                driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        )


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

    def of(self, stream: int, is_capturing: bool) -> int:
        """Address of the piece for a launch on `stream` now. Raises LaunchError where none is left."""
        owner = (stream, self._capture(stream) if is_capturing else 0)
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
