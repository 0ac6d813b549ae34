"""The NVIDIA driver, and what its errors mean."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from ksearch.backends.base import LaunchError
from ksearch.backends.cuda_calls import Driver
from ksearch.errors import NoSuchDevice

# After these the context is gone: every later call of the process fails too (CUDA driver API, CUresult).
_STICKY = {46, 100, 214, 700, 702, 704, 709, 710, 714, 715, 716, 717, 718, 719, 720, 721, 999}

_TOO_NEW = "the binary is for a newer NVIDIA driver or another GPU; update the driver, or tune again here"
_HINTS = {
    2: "the GPU's memory is full",
    200: _TOO_NEW, 209: _TOO_NEW, 218: _TOO_NEW, 222: _TOO_NEW, 223: _TOO_NEW, 803: _TOO_NEW,
}  # fmt: skip
"""What to do about an error (CUresult)."""


def check(result: tuple[Any, ...]) -> Any:
    """The value of a driver call; raises LaunchError with the driver's name for its error."""
    code, *values = result
    if int(code) != 0:
        name, hint = getattr(code, "name", str(code)), _HINTS.get(int(code), "")
        raise LaunchError(f"{name} ({int(code)}){hint and ': '}{hint}", sticky=int(code) in _STICKY)
    return values[0] if len(values) == 1 else tuple(values)


@functools.cache
def load_driver() -> Any:
    """The driver after cuInit, which creates no context. Raises NoSuchDevice."""
    try:
        driver = Driver(ctypes.CDLL("libcuda.so.1"))
        check(driver.cuInit(0))
    except (LaunchError, OSError, AttributeError) as error:
        raise NoSuchDevice(
            f"no CUDA device: {error}; is the NVIDIA driver installed (nvidia-smi)?"
        ) from error
    return driver
