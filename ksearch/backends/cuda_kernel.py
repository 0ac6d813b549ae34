"""A loaded cubin: its functions made ready, and started in order."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ksearch.backends.base import Entry, LaunchError
from ksearch.backends.cuda_driver import check, load_driver
from ksearch.backends.cuda_memory import TensorMaps, Workspaces
from ksearch.backends.cuda_start import Aim, Slot, Step, bind, direct
from ksearch.launch import Launch

_NO_CONTEXT = 201
"""CUDA_ERROR_INVALID_CONTEXT."""
_MOST_AIMS = 256
"""Streams come and go, and a kernel may serve many numbers of rows."""


class CudaKernel:
    """A cubin in the primary context of one device: one function, or several that are started in order.

    Arguments are pointers and a 64-bit row count, then the scratch, the packed weight, the workspace and the
    tensor maps.
    """

    def __init__(self, binary: Path, launch: Launch, index: int, module: Any = None) -> None:
        """`module`: the binary as another kernel has loaded it, which unloads it as well."""
        driver = self._driver = load_driver()
        self._launch = launch
        self._direct = direct()
        self._extras = bool(launch.scratch_bytes) + (launch.pack is not None)
        """Pointers that come after the rows."""
        self._slots: list[Slot] = []
        """Those that no thread uses now."""
        self._aims: dict[tuple[int, int], Aim] = {}
        """By rows and stream."""
        self._context = check(driver.cuDevicePrimaryCtxRetain(check(driver.cuDeviceGet(index))))
        check(driver.cuCtxPushCurrent(self._context))
        try:
            self._owns_module = module is None
            self._module = check(driver.cuModuleLoadData(binary.read_bytes())) if module is None else module
            try:
                functions = [
                    _Function(driver, self._module, step, index)
                    for step in (*launch.before, launch, *launch.after)
                ]
                self._steps = [function.step() for function in functions]
                self._maps = TensorMaps(driver, launch.maps)
                self._workspaces = self._allocate_workspaces() if launch.workspace_bytes else None
                self._packer = None
                if launch.pack is not None:
                    self._packer = CudaKernel(binary, launch.pack, index, self._module)
            except LaunchError:
                if self._owns_module:
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
        if self._extras:
            values = (*pointers[: -self._extras], rows, *pointers[-self._extras :])
        if self._workspaces is not None:
            values = (*values, self._workspaces.of(stream, self._is_capturing(stream)))
        try:  # taking and giving back are one step each, whatever other threads do
            slot = self._slots.pop()
        except IndexError:
            slot = Slot(len(values), len(launch.maps))
        slot.pack(slot.memory, slot.place, *values)
        if launch.maps:
            maps = self._maps.of(pointers, rows)
            slot.aim_maps(maps[0])
        for config, function in self._aim(rows, stream).starts:
            code = self._direct.start(config, function, slot.parameters, None)
            if code == _NO_CONTEXT:  # a thread that has not used CUDA yet
                check(self._driver.cuCtxSetCurrent(self._context))
                code = self._direct.start(config, function, slot.parameters, None)
            if code:
                check((self._driver.CUresult(code),))
        self._slots.append(slot)

    def _aim(self, rows: int, stream: int) -> Aim:
        aim = self._aims.get((rows, stream))
        if aim is None:
            if len(self._aims) >= _MOST_AIMS:
                self._aims.clear()
            aim = self._aims[rows, stream] = Aim(self._steps, rows, stream)
        return aim

    def pack(self, weight: int, packed: int, rows: int, stream: int) -> None:
        assert self._packer is not None
        self._packer((weight, packed), rows, stream)

    @property
    def _is_plain(self) -> bool:
        """A start takes the pointers and the rows, and nothing else."""
        return not (self._extras or self._launch.maps or self._workspaces is not None)

    def ready(self, pointers: tuple[int, ...], rows: int, stream: int) -> Callable[[], int] | None:
        if not self._is_plain:
            return None
        slot = Slot(len(pointers) + 1, 0)
        slot.pack(slot.memory, slot.place, *pointers, rows)
        return bind(self._direct.start, self._aim(rows, stream), slot)

    def entry(self, rows: int) -> Entry | None:
        if not self._is_plain:
            return None
        steps = tuple(
            (step.function, step.grid(rows), step.launch.block, step.launch.smem_bytes, step.launch.split > 1)
            for step in self._steps
        )
        return Entry(self._direct.address, steps, 0)

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
        if self._packer is not None:
            self._packer.unload()
        if self._owns_module:
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
