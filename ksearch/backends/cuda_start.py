"""Starting a kernel with little of the host's time: the driver's own function on buffers made beforehand.

cuda.bindings converts every argument of every call: with it a launch took 4.5 us on the host of an H200,
where PyTorch's softmax took 6.7 in all. The structures are those of cuda.h (CUDA 12 and 13).
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ksearch.backends.base import LaunchError
from ksearch.launch import Launch

_COOPERATIVE = 2
"""CU_LAUNCH_ATTRIBUTE_COOPERATIVE."""


class Attribute(ctypes.Structure):
    """CUlaunchAttribute: which one, and 64 bytes for any value."""

    _fields_ = [("kind", ctypes.c_int), ("unused", ctypes.c_int), ("value", ctypes.c_int * 16)]


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("smem_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    ]


class _Config(LaunchConfig):
    """With memory for one attribute behind what the driver reads of it."""

    _fields_ = [("attribute", Attribute)]


@dataclass(frozen=True, slots=True)
class Direct:
    """The driver's functions that a start needs, and which give the driver's code.

    They run without the GIL, which costs 55 ns a call: the driver waits where its queue is full, and what the
    queue waits for may be another thread of Python's, with a collective on another GPU or a host function.
    """

    start: Callable[..., int]
    """cuLaunchKernelEx(config, function, parameters, null), of what `Aim` and `Slot` hold. It converts
    nothing, which took 140 ns of a call."""
    is_capturing: Callable[..., int]
    """cuStreamIsCapturing(stream, pointer to an int)."""
    address: int
    """Of `start`."""

    @classmethod
    def of(cls, library: Any) -> Direct:
        """Out of libcuda, or of what stands in for it. Raises LaunchError where it is too old (CUDA 11.7)."""
        try:
            start, is_capturing = library.cuLaunchKernelEx, library.cuStreamIsCapturing
        except AttributeError as error:
            raise LaunchError(f"the NVIDIA driver is too old: {error}") from error
        start.restype = ctypes.c_int
        is_capturing.argtypes, is_capturing.restype = [ctypes.c_void_p] * 2, ctypes.c_int
        return cls(start, is_capturing, ctypes.cast(start, ctypes.c_void_p).value or 0)


@functools.cache
def direct() -> Direct:
    """Of the driver that is loaded. Raises LaunchError."""
    try:
        return Direct.of(ctypes.CDLL("libcuda.so.1"))
    except OSError as error:
        raise LaunchError(f"the NVIDIA driver's library cannot be loaded: {error}") from error


@dataclass(frozen=True, slots=True)
class Step:
    """One function of a module, and how it is started."""

    function: int
    """The driver's handle."""
    launch: Launch
    resident: int | None
    """Blocks that the device holds at once, which the grid of a persistent launch is cut down to."""

    def grid(self, rows: int) -> int:
        grid = self.launch.grid(rows)
        return grid if self.resident is None else min(grid, self.resident)


class Aim:
    """How the steps of a kernel are started on that many rows, on that stream; never changed."""

    __slots__ = ("_configs", "starts")

    def __init__(self, steps: Sequence[Step], rows: int, stream: int) -> None:
        self._configs = [_config(step, rows, stream) for step in steps]
        functions = [ctypes.c_void_p.from_param(step.function) for step in steps]
        self.starts: list[Any] = list(zip(map(ctypes.byref, self._configs), functions, strict=True))
        """The first two arguments of the driver's function, for each step in order."""


def _config(step: Step, rows: int, stream: int) -> _Config:
    launch, config = step.launch, _Config()
    config.grid[:] = config.block[:] = (1, 1, 1)
    config.grid[0], config.block[0] = step.grid(rows), launch.block
    config.smem_bytes, config.stream = launch.smem_bytes, stream
    if launch.split > 1:  # the driver refuses what would wait for blocks that do not fit
        config.attribute.kind, config.attribute.value[0] = _COOPERATIVE, 1
        config.attributes = ctypes.addressof(config) + _Config.attribute.offset
        config.attribute_count = 1
    return config


class Slot:
    """What one start takes as parameters. Who writes into it needs it alone: the driver reads it without the
    GIL."""

    __slots__ = ("_maps", "memory", "pack", "parameters", "place")

    def __init__(self, count: int, maps: int) -> None:
        """`count` values of 8 bytes each, then that many tensor maps, whose addresses each start sets."""
        self._maps = slice(count, count + maps)
        self.memory: Any = (ctypes.c_uint64 * (2 * count + maps))()
        """The addresses of all that a function takes, then the values."""
        self.place = 8 * (count + maps)
        """Of the values in the memory, in bytes."""
        base = ctypes.addressof(self.memory) + self.place
        self.memory[:count] = list(range(base, base + 8 * count, 8))
        self.pack = struct.Struct(f"{count}Q").pack_into
        """(memory, place, *numbers): none of them is negative."""
        self.parameters = ctypes.byref(self.memory)
        """The third argument of the driver's function; it keeps the memory."""

    def aim_maps(self, addresses: Sequence[int]) -> None:
        """At the tensor maps there."""
        self.memory[self._maps] = addresses


def bind(start: Callable[..., int], aim: Aim, slot: Slot) -> Callable[[], int]:
    """What makes these starts in order, and gives the first code that is not 0. It keeps aim and slot, into
    which nobody may write any more."""
    bound = [functools.partial(start, *first, slot.parameters, None) for first in aim.starts]
    return bound[0] if len(bound) == 1 else functools.partial(_one_by_one, bound)


def _one_by_one(starts: Sequence[Callable[[], int]]) -> int:
    for start in starts:
        if code := start():
            return code
    return 0
