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
from ksearch.types import Launch

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


@dataclass(frozen=True, slots=True)
class Direct:
    """The driver's functions that a start needs. They run without the GIL, and give the driver's code."""

    start: Callable[..., int]
    """cuLaunchKernelEx(config, function, parameters, null)."""
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
        for function, count in ((start, 4), (is_capturing, 2)):
            function.argtypes, function.restype = [ctypes.c_void_p] * count, ctypes.c_int
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


class Slot:
    """The buffers of one start, for one thread at a time: the driver reads them without the GIL."""

    __slots__ = ("_configs", "_held", "_steps", "pack", "params", "rows", "starts", "stream", "values")

    def __init__(self, steps: Sequence[Step], count: int, maps: int) -> None:
        """`count` values of 8 bytes each, then that many tensor maps, whose addresses each start sets."""
        self.values = ctypes.create_string_buffer(8 * count)
        self.pack = struct.Struct(f"{count}Q").pack_into
        """(values, 0, *numbers): none of them is negative."""
        base = ctypes.addressof(self.values)
        addresses = [base + 8 * place for place in range(count)] + [0] * maps
        self.params: Any = (ctypes.c_uint64 * len(addresses))(*addresses)
        self.rows = self.stream = -1
        self._steps = steps
        self._configs = [LaunchConfig() for _ in steps]
        self._held: list[Attribute] = []
        for step, config in zip(steps, self._configs, strict=True):
            launch = step.launch
            config.grid[:] = config.block[:] = (1, 1, 1)
            config.block[0], config.smem_bytes = launch.block, launch.smem_bytes
            if launch.split > 1:  # the driver refuses what would wait for blocks that do not fit
                attribute = Attribute(kind=_COOPERATIVE)
                attribute.value[0] = 1
                self._held.append(attribute)
                config.attributes, config.attribute_count = ctypes.addressof(attribute), 1
        where = ctypes.addressof(self.params)
        self.starts = [
            (ctypes.addressof(config), step.function, where, None)
            for step, config in zip(steps, self._configs, strict=True)
        ]
        """What the driver's function takes, for each step in order."""

    def aim(self, rows: int, stream: int) -> None:
        """At that many rows, on that stream; it stays so."""
        for step, config in zip(self._steps, self._configs, strict=True):
            config.grid[0] = step.grid(rows)
            config.stream = stream
        self.rows, self.stream = rows, stream
