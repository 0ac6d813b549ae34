"""The memory of a worker: what it holds, what is left, and what bounds it."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

import torch

from ksearch.evaluate.process import limit


def held_bytes(device: torch.device) -> int:
    """By this process at its highest so far: of a GPU's memory, or of the main memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    status = _facts(Path("/proc/self/status"))
    # Where ru_maxrss is all there is: a process inherits it from the one that started it.
    return status.get("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_bytes(device: torch.device) -> int:
    """What may still be taken."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def bound(most_bytes: int) -> None:
    """From now on this process gets what is free, less a tenth, and no more than `most_bytes`: a kernel that
    allocates without end then fails by itself, before the system looks for somebody to end."""
    held = _facts(Path("/proc/self/status")).get("VmData")
    free = _facts(Path("/proc/meminfo")).get("MemAvailable")
    if held is not None and free is not None:
        limit(resource.RLIMIT_DATA, held + min(most_bytes, free * 9 // 10))


def _facts(path: Path) -> dict[str, int]:
    """The sizes, in bytes, that a file of the system tells by name; none where there is no such file."""
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {name: 1024 * int(text.split()[0]) for name, _, text in pairs if text.endswith("kB")}


def keep_heap() -> None:
    """Make the C library give freed memory to the next allocation, not back to the system.

    Otherwise PyTorch pays for page faults in every call that allocates: torch.softmax of 32 MB took
    9.4 ms, against 1.9 ms with `out=`, and a kernel would win by not allocating.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of glibc's malloc.h
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, -1)  # never
