"""Tensor maps: what the driver is asked for, how often, how long it is kept; on a GPU, what a copy brings."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ksearch import backends
from ksearch.backends.base import LaunchError
from ksearch.backends.cuda_memory import TensorMaps
from ksearch.families.linear_tiles import SCHEMES
from ksearch.launch import Launch, TensorMap
from ksearch.render import render_text, template_folder
from ksearch.types import Source
from tests.families.cuda_cases import TARGETS
from tests.families.linear_cases import SPLIT, Case

driver = pytest.importorskip("cuda.bindings.driver")


class Descriptor:
    def __init__(self, number: int) -> None:
        self.number = number

    def getPtr(self) -> int:
        return 64 * self.number


class Driver:
    """The bindings, but for the one call, which notes what it gets."""

    def __init__(self, code: Any = driver.CUresult.CUDA_SUCCESS) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.code = code

    def __getattr__(self, name: str) -> Any:
        return getattr(driver, name)

    def cuTensorMapEncodeTiled(self, *arguments: Any) -> tuple[Any, ...]:
        self.calls.append(arguments)
        return self.code, Descriptor(len(self.calls))


X = TensorMap(0, "tfloat32", cols=500, rows=None, box_cols=32, box_rows=64)
W = TensorMap(2, "bfloat16", cols=504, rows=300, box_cols=16, box_rows=128, swizzled=False, offset_bytes=256)


def plain(values: Sequence[Any]) -> list[int]:
    return [int(value) for value in values]


def test_what_is_declared_is_what_the_driver_is_asked_for() -> None:
    fake = Driver()
    addresses, held = TensorMaps(fake, (X, W)).of((4096, 1, 8192), rows=77)
    assert addresses == [64, 128]
    assert [each.number for each in held] == [1, 2]
    (x, w), swizzle = fake.calls, driver.CUtensorMapSwizzle
    assert x[0] == driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
    assert w[0] == driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
    assert (x[2], w[2]) == (4096, 8192 + 256)
    assert plain(x[3]) == [500, 77], "as many rows as the call has"
    assert plain(w[3]) == [504, 300]
    assert (plain(x[4]), plain(w[4])) == ([2000], [1008]), "bytes from row to row"
    assert (plain(x[5]), plain(w[5])) == ([32, 64], [16, 128])
    assert x[8] == swizzle.CU_TENSOR_MAP_SWIZZLE_128B
    assert w[8] == swizzle.CU_TENSOR_MAP_SWIZZLE_NONE


def test_the_same_memory_is_described_once() -> None:
    fake = Driver()
    maps = TensorMaps(fake, (X, W))
    first = maps.of((4096, 1, 8192), 77)
    assert maps.of((4096, 2, 8192), 77) is first, "the pointer between is nobody's"
    assert len(fake.calls) == 2
    for pointers, rows in (((4352, 1, 8192), 77), ((4096, 1, 8448), 77), ((4096, 1, 8192), 78)):
        assert maps.of(pointers, rows) is not first
    assert len(fake.calls) == 8


def test_descriptors_live_as_long_as_who_got_them() -> None:
    """Calls on ever new memory must not grow it, nor take away what another thread launches with."""
    maps = TensorMaps(Driver(), (X,))
    addresses, held = maps.of((0,), 1)
    mine, other = weakref.ref(held[0]), weakref.ref(maps.of((256,), 1)[1][0])
    for call in range(1, 1000):
        maps.of((4096 * call,), 1)
        assert len(maps._known) <= 256
    assert mine() is not None
    assert other() is None
    assert addresses == [mine().getPtr()]


def test_threads_get_what_they_asked_for() -> None:
    maps, wrong = TensorMaps(Driver(), (X,)), []

    def work(first: int) -> None:
        for turn in range(2000):
            pointer = 256 * (first + turn % 200)
            addresses, held = maps.of((pointer,), 1)
            if addresses != [held[0].getPtr()]:
                wrong.append(pointer)

    threads = [threading.Thread(target=work, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_the_driver_refuses_is_a_launch_error() -> None:
    maps = TensorMaps(Driver(driver.CUresult.CUDA_ERROR_INVALID_VALUE), (X,))
    with pytest.raises(LaunchError, match="CUDA_ERROR_INVALID_VALUE"):
        maps.of((4096,), 1)
    assert maps._known == {}


@pytest.mark.parametrize(
    ("dtype", "policy", "dims"),
    [
        *[("float32", "strict", (200, 500, 516)), ("float32", "tf32", (1, 4, 1))],
        *[("float16", "strict", (8, 4096, 11008)), ("bfloat16", "strict", (300, 72, 129))],
    ],
)
def test_what_the_linear_family_declares_is_what_hardware_takes(
    dtype: str, policy: str, dims: tuple[int, int, int]
) -> None:
    """CUDA driver API, cuTensorMapEncodeTiled: rows of multiples of 16 bytes, boxes of at most 256 a side."""
    case = Case("linear", dims, dtype, policy, TARGETS["sm_90"])
    for config in case.configs:
        launch = case.family.launch(config, case.program, case.workload, case.target)
        assert len(launch.maps) == (2 if config["strategy"] == "direct" and config["scheme"] != "simt" else 0)
        for each in launch.maps:
            width = 2 if each.dtype.endswith("16") else 4
            assert each.cols * width % 16 == 0
            assert each.offset_bytes % 16 == 0
            assert 1 <= each.box_rows <= 256
            assert each.box_cols * width == (128 if each.swizzled else 64)
            assert not each.swizzled or each.box_rows % 8 == 0, "whole patterns"
        if config["scheme"] in SPLIT and launch.maps:
            x, weight = launch.maps
            terms = SCHEMES[str(config["scheme"])].terms
            assert (x.pointer, weight.pointer) == (4, 1), "after three inputs and an output"
            assert x.rows == terms * dims[0]
            assert x.rows * x.cols * (4 if x.dtype == "float32" else 2) <= launch.scratch_bytes


BODY = """
#define KS_FAST_MATH 0
{% include "include/device.cuh" %}
{% include "include/hopper.cuh" %}
extern "C" __global__ void ksearch_kernel(const float* in, float* out, long long rows, const __grid_constant__ ks::TensorMap map) {
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ __align__(8) unsigned long long place;
    const u32 barrier = ks::shared_address(&place);
    if (threadIdx.x == 0) {
        ks::barrier_init(barrier, 1);
        ks::cluster_fence_init();
        ks::barrier_expect(barrier, {{ box_rows }} * {{ box_cols }} * 4);
        ks::tile_load(ks::shared_address(memory), &map, {{ x }}, {{ y }}, barrier, ks::policy_evict_normal());
    }
    __syncthreads();
    ks::barrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < {{ box_rows }} * {{ box_cols }}; i += blockDim.x) out[i] = reinterpret_cast<const float*>(memory)[i];
}
"""  # noqa: E501


@pytest.mark.gpu
@pytest.mark.parametrize(("x", "y"), [(0, 0), (32, 8), (80, 40), (96, 48)])
@pytest.mark.parametrize("swizzled", [True, False])
def test_a_copy_brings_the_tile_and_zeros_beyond_the_matrix(
    tmp_path: Path, swizzled: bool, x: int, y: int
) -> None:
    rows, cols, box_rows, box_cols = 50, 100, 16, 32 if swizzled else 16
    (tmp_path / "copy.cu.j2").write_text(BODY)
    places = {"box_rows": box_rows, "box_cols": box_cols, "x": x, "y": y}
    text, origin = render_text("copy.cu.j2", places, [str(tmp_path), str(template_folder())])
    backend = backends.get("cuda")
    binary = tmp_path / "copy.cubin"
    binary.write_bytes(backend.compile(Source(text, "cuda", "sm_90", origin=origin)).binary)
    declared = TensorMap(0, "float32", cols, None, box_cols, box_rows, swizzled=swizzled)
    launch = Launch(work_per_block=1 << 20, block=128, smem_bytes=4096, maps=(declared,))
    kernel = backend.load(binary, launch, 0)
    matrix = torch.arange(1.0, rows * cols + 1, device="cuda").view(rows, cols)
    tile = torch.zeros(box_rows, box_cols, device="cuda")
    kernel((matrix.data_ptr(), tile.data_ptr()), rows, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    wanted = torch.nn.functional.pad(matrix, (0, 64, 0, 64))[y : y + box_rows, x : x + box_cols]
    if swizzled:  # in each 8 rows of 128 bytes, the 16 bytes at place c of row r lie at c ^ r
        chunks = tile.view(-1, 8, 8, 4)
        places_of = torch.arange(8)[:, None] ^ torch.arange(8)
        tile = torch.stack([chunks[:, row, places_of[row]] for row in range(8)], 1).reshape(tile.shape)
    assert torch.equal(tile, wanted)
    kernel.unload()
