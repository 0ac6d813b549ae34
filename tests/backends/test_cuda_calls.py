"""What the driver's functions are called with, by a library that stands in for the driver's."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from cuda.bindings import driver as bindings

from ksearch.backends import LaunchError
from ksearch.backends.cpu import compiler_command, run_compiler
from ksearch.backends.cuda_calls import Driver
from ksearch.backends.cuda_driver import check

LIBCUDA = """
#include <stddef.h>
#include <string.h>
static long seen;
extern "C" {
long last() { return seen; }
int cuInit(unsigned flags) { return flags ? 2 : 0; }
int cuDeviceGetCount(int* count) { *count = 3; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = 10 + ordinal; return ordinal < 3 ? 0 : 101; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = 1000 * attribute + device;
  return 0;
}
int cuDeviceGetName(char* name, int size, int device) {
  strncpy(name, "NVIDIA Fake", size);
  return device != 10;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = (size_t)150 << 30; return device != 10; }
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (void*)(0x700000000000 + device);
  return 0;
}
int cuCtxPushCurrent_v2(void* context) { seen = (long)context; return 0; }
int cuCtxPopCurrent_v2(void** context) { *context = 0; return 0; }
int cuCtxSetCurrent(void* context) { seen = (long)context; return 0; }
int cuModuleLoadData(void** module, const void* image) {
  seen = ((const char*)image)[4];
  *module = (void*)0x7f0000000001;
  return memcmp(image, "\\0ELF", 4) ? 200 : 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = (void*)((char*)module + strlen(name));
  return 0;
}
int cuModuleUnload(void* module) { seen = (long)module; return 0; }
int cuFuncSetAttribute(void* function, int attribute, int value) {
  seen = (long)function + attribute + value;
  return 0;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int threads, size_t bytes) {
  *blocks = threads + (bytes == ((size_t)1 << 33));
  return (long)function != 0x7f0000000001;
}
int cuGetErrorName(int code, const char** name) {
  *name = code == 200 ? "CUDA_ERROR_INVALID_IMAGE" : 0;
  return 0;
}
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("libcuda")
    source, built = folder / "fake.cpp", folder / "libfake.so"
    source.write_text(LIBCUDA)
    done = run_compiler([*compiler_command(), "-shared", "-fPIC", str(source), "-o", str(built)])
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(built))
    loaded.last.restype = ctypes.c_long
    return loaded


def test_a_kernel_is_loaded_with_pointers_of_64_bits(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    check(driver.cuInit(0))
    assert check(driver.cuDeviceGetCount()) == 3
    device = check(driver.cuDeviceGet(0))
    attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
    assert check(driver.cuDeviceGetAttribute(attribute, device)) == 38010
    assert check(driver.cuDeviceGetName(128, device)).split(b"\0")[0] == b"NVIDIA Fake"
    assert check(driver.cuDeviceTotalMem(device)) == 150 << 30
    context = check(driver.cuDevicePrimaryCtxRetain(device))
    check(driver.cuCtxPushCurrent(context))
    assert library.last() == context == 0x70000000000A
    module = check(driver.cuModuleLoadData(b"\0ELF\x07rest"))
    assert library.last() == 7, "all of the image, beyond its zeros"
    function = check(driver.cuModuleGetFunction(module, b"ksearch_kernel"))
    assert function == module + len("ksearch_kernel")
    check(driver.cuFuncSetAttribute(function, 8, 100_000))
    assert library.last() == function + 100_008
    assert check(driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(module, 256, 1 << 33)) == 257
    assert check(driver.cuCtxPopCurrent()) == 0
    check(driver.cuModuleUnload(module))
    assert library.last() == module


def test_errors_have_the_drivers_names(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    with pytest.raises(LaunchError, match=r"CUDA_ERROR_INVALID_IMAGE \(200\): the binary is for"):
        check(driver.cuModuleLoadData(b"no image"))
    with pytest.raises(LaunchError, match=r"101 \(101\)"):
        check(driver.cuDeviceGet(5))
    with pytest.raises(LaunchError, match="the GPU's memory is full"):
        check((driver.CUresult(2),))


def test_the_numbers_are_those_of_cuda_bindings() -> None:
    for kind in ("CUdevice_attribute", "CUfunction_attribute"):
        for name, number in vars(getattr(Driver, kind)).items():
            assert int(getattr(getattr(bindings, kind), name)) == number, name


def test_all_else_is_that_of_cuda_bindings(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    assert driver.CUtensorMapDataType is bindings.CUtensorMapDataType
    assert driver.cuMemAlloc is bindings.cuMemAlloc
    assert not hasattr(driver, "cuNoSuchThing")
