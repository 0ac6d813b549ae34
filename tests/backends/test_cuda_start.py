"""What a start hands to the driver: the buffers are read back by a function that stands in for it."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.bindings import driver

from ksearch.backends import LaunchError, cuda
from ksearch.backends.cuda_start import Aim, Attribute, Direct, LaunchConfig, Slot, Step, bind
from ksearch.launch import Launch

START = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)


def test_the_structures_are_the_drivers() -> None:
    """Against those of cuda.bindings, whose layout comes from cuda.h."""
    theirs = driver.CUlaunchConfig()
    theirs.gridDimX, theirs.gridDimY, theirs.gridDimZ = 70000, 2, 3
    theirs.blockDimX, theirs.blockDimY, theirs.blockDimZ = 256, 4, 5
    theirs.sharedMemBytes, theirs.hStream = 12345, 0x123456789ABC
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
    attribute.value.cooperative = 1
    theirs.attrs, theirs.numAttrs = [attribute], 1
    ours = LaunchConfig.from_address(int(theirs.getPtr()))
    assert list(ours.grid) == [70000, 2, 3]
    assert list(ours.block) == [256, 4, 5]
    assert (ours.smem_bytes, ours.stream, ours.attribute_count) == (12345, 0x123456789ABC, 1)
    assert ctypes.sizeof(Attribute) == 72
    first = Attribute.from_address(ours.attributes)
    assert (first.kind, first.value[0]) == (2, 1)


def started(aim: Aim, slot: Slot, count: int) -> list[dict[str, Any]]:
    """What each start would tell the driver."""
    seen: list[dict[str, Any]] = []

    def record(config: int, function: int, parameters: int, _extra: int) -> int:
        read = LaunchConfig.from_address(config)
        addresses = (ctypes.c_void_p * count).from_address(parameters)
        values = [ctypes.c_uint64.from_address(address or 0).value for address in addresses]
        attribute = Attribute.from_address(read.attributes) if read.attribute_count else None
        seen.append({
            "grid": tuple(read.grid), "block": tuple(read.block), "smem": read.smem_bytes,
            "stream": read.stream or 0, "function": function, "values": values,
            "cooperative": bool(attribute and attribute.kind == 2 and attribute.value[0]),
        })  # fmt: skip
        return 0

    call = START(record)
    assert bind(call, aim, slot)() == 0
    return seen


def test_every_step_gets_the_same_values_and_its_own_grid() -> None:
    steps = [
        Step(0xF00000001, Launch(block=64), None),
        Step(0xF00000002, Launch(block=128, work_per_block=4, smem_bytes=100_000, split=8), 24),
    ]
    slot = Slot(count=3, maps=0)
    aim = Aim(steps, rows=10, stream=0x7F0000000000)
    slot.pack(slot.memory, slot.place, 0xAAAA00000000, 0xBBBB00000000, 10)
    one, two = started(aim, slot, 3)
    assert one["values"] == two["values"] == [0xAAAA00000000, 0xBBBB00000000, 10]
    assert (one["grid"], one["block"], one["smem"], one["cooperative"]) == ((10, 1, 1), (64, 1, 1), 0, False)
    assert (two["grid"], two["block"], two["smem"], two["cooperative"]) == (
        (24, 1, 1), (128, 1, 1), 100_000, True,
    )  # fmt: skip
    assert (one["function"], two["function"]) == (0xF00000001, 0xF00000002)
    assert one["stream"] == two["stream"] == 0x7F0000000000
    one, two = started(Aim(steps, rows=2, stream=0), slot, 3)
    assert (one["grid"], two["grid"], one["stream"]) == ((2, 1, 1), (8, 1, 1), 0)


def test_a_driver_without_the_function_is_told() -> None:
    with pytest.raises(LaunchError, match="driver is too old"):
        Direct.of(SimpleNamespace())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (222, "newer NVIDIA driver"),
        (218, "newer NVIDIA driver"),
        (200, "tune again here"),
        (2, "memory is full"),
    ],
)
def test_an_error_says_what_to_do(code: int, words: str) -> None:
    with pytest.raises(LaunchError, match=words) as error:
        cuda.check((driver.CUresult(code),))
    assert f"({code})" in str(error.value)
