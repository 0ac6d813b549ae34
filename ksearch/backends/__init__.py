"""WHERE kernels run: compile text to a binary, load a binary, start it.

Compiling needs no device and running never compiles, so a pool can do the one anywhere and
production can do the other without a compiler. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import importlib

from ksearch.backends.base import Backend, Compiled, Entry, Kernel, LaunchError
from ksearch.errors import NoSuchDevice

__all__ = ["Backend", "Compiled", "Entry", "Kernel", "LaunchError", "get", "parse_device"]

_CLASSES = {"cuda": "ksearch.backends.cuda:CudaBackend", "cpu": "ksearch.backends.cpu:CpuBackend"}


@functools.cache
def get(name: str) -> Backend:
    """The backend `cuda` or `cpu`. Raises NoSuchDevice for another name."""
    if name not in _CLASSES:
        raise NoSuchDevice(f"no backend {name!r}: use cpu, cuda or cuda:N")
    module, _, attribute = _CLASSES[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend


def parse_device(text: str | None) -> tuple[str, int]:
    """(`cuda`, 1) from `cuda:1`; None or `auto` gives the first GPU, or the CPU where there is none."""
    if text is None or text == "auto":
        try:
            get("cuda").target(0)
        except NoSuchDevice:
            return "cpu", 0
        return "cuda", 0
    name, _, index = text.partition(":")
    if name not in _CLASSES or (index and not index.isdigit()) or (name == "cpu" and index):
        raise NoSuchDevice(f"no device {text!r}: use cpu, cuda or cuda:N")
    return name, int(index or 0)
