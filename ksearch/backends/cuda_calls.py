"""The driver's functions that finding a device and loading a kernel take, out of the driver's own library.

cuda.bindings has all functions, and takes 15 ms to import, as long as all else of a program's first load. It
is imported when something is asked for that is not here: a tensor map, a workspace, a grid of clusters.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ksearch.errors import NoSuchDevice

_INT, _SIZE, _TEXT, _HANDLE = ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p

_FUNCTIONS: dict[str, tuple[str, tuple[Any, ...], tuple[Any, ...]]] = {
    "cuInit": ("cuInit", (), (ctypes.c_uint,)),
    "cuDeviceGetCount": ("cuDeviceGetCount", (_INT,), ()),
    "cuDeviceGet": ("cuDeviceGet", (_INT,), (_INT,)),
    "cuDeviceGetAttribute": ("cuDeviceGetAttribute", (_INT,), (_INT, _INT)),
    "cuDeviceTotalMem": ("cuDeviceTotalMem_v2", (_SIZE,), (_INT,)),
    "cuDevicePrimaryCtxRetain": ("cuDevicePrimaryCtxRetain", (_HANDLE,), (_INT,)),
    "cuCtxPushCurrent": ("cuCtxPushCurrent_v2", (), (_HANDLE,)),
    "cuCtxPopCurrent": ("cuCtxPopCurrent_v2", (_HANDLE,), ()),
    "cuCtxSetCurrent": ("cuCtxSetCurrent", (), (_HANDLE,)),
    "cuModuleLoadData": ("cuModuleLoadData", (_HANDLE,), (_TEXT,)),
    "cuModuleGetFunction": ("cuModuleGetFunction", (_HANDLE,), (_HANDLE, _TEXT)),
    "cuModuleUnload": ("cuModuleUnload", (), (_HANDLE,)),
    "cuFuncSetAttribute": ("cuFuncSetAttribute", (), (_HANDLE, _INT, _INT)),
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": (
        "cuOccupancyMaxActiveBlocksPerMultiprocessor", (_INT,), (_HANDLE, _INT, _SIZE)
    ),
}  # fmt: skip
"""By name: the symbol in the library, what it gives, through pointers that come first, and what it takes."""


class Driver:
    """As the module cuda.bindings.driver: each function gives a tuple, the code first. Handles are ints."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=16,
        CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE=38,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=97,
    )
    CUfunction_attribute = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
        CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED=14,
    )

    def __init__(self, library: Any) -> None:
        """`library`: libcuda, or what stands in for it. Raises AttributeError where it lacks a function."""
        self._library = library
        for name, (symbol, gives, takes) in _FUNCTIONS.items():
            setattr(self, name, _call(getattr(library, symbol), gives, takes, self.CUresult))

    def CUresult(self, code: int) -> Code:  # noqa: N802  (the name that cuda.bindings has for it)
        return Code(code, self._library)

    def cuDeviceGetName(self, size: int, device: int) -> tuple[Code, bytes]:  # noqa: N802
        buffer = ctypes.create_string_buffer(size)
        return self.CUresult(self._library.cuDeviceGetName(buffer, size, device)), buffer.raw

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            from cuda.bindings import driver  # 15 ms
        except ImportError as error:
            raise NoSuchDevice(
                "no CUDA device: the package cuda-bindings is missing (pip install cuda-bindings)"
            ) from error
        return getattr(driver, name)


class Code(int):
    """What a function of the driver says of how it went; 0: well."""

    def __new__(cls, value: int, library: Any) -> Code:
        code = super().__new__(cls, value)
        code._library = library
        return code

    _library: Any

    @property
    def name(self) -> str:
        """Such as CUDA_ERROR_OUT_OF_MEMORY."""
        found = ctypes.c_char_p()
        self._library.cuGetErrorName(int(self), ctypes.byref(found))
        return found.value.decode() if found.value is not None else str(int(self))


def _call(
    function: Any, gives: tuple[Any, ...], takes: tuple[Any, ...], code: Callable[[int], Code]
) -> Callable[..., tuple[Any, ...]]:
    function.argtypes, function.restype = [*map(ctypes.POINTER, gives), *takes], ctypes.c_int

    def call(*values: Any) -> tuple[Any, ...]:
        found = [kind() for kind in gives]
        status = code(function(*map(ctypes.byref, found), *values))
        return status, *[each.value or 0 for each in found]  # a null pointer is None

    return call
