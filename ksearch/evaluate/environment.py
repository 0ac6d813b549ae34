"""Under what conditions a time was measured: versions, clocks, heat, and who else used the device."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ksearch import __version__
from ksearch.certificate import Conditions
from ksearch.types import Target

_THROTTLE = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "heat",
    0x40: "hardware heat",
    0x80: "power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons that slow a kernel down."""


def versions(target: Target) -> dict[str, str]:
    """What is the same for all that is measured here today. What cannot be asked is left out."""
    facts = {
        "ksearch": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "device": target.device,
        "arch": target.arch,
    }
    if target.backend == "cpu":
        facts["torch_threads"] = str(torch.get_num_threads())
    else:
        facts["cuda"] = str(torch.version.cuda)
        with _nvml(target) as found:
            if found is not None:
                nvml, _ = found
                with contextlib.suppress(nvml.NVMLError):
                    facts["driver"] = str(nvml.nvmlSystemGetDriverVersion())
    return facts


@contextlib.contextmanager
def watched(target: Target) -> Iterator[Callable[[str], Conditions]]:
    """A function that tells the state of the device at the moment it is called, `before` or `after`.

    NVML is opened once, which takes far longer than the questions.
    """
    if target.backend == "cpu":
        yield lambda when: Conditions(when, load_average=_load())
        return
    with _nvml(target) as found:
        yield lambda when: Conditions(when, load_average=_load(), **(_gpu_facts(*found) if found else {}))


def _load() -> float:
    return round(os.getloadavg()[0], 2)


@contextlib.contextmanager
def _nvml(target: Target) -> Iterator[tuple[Any, Any] | None]:
    """NVML and its handle of the device, by UUID: CUDA_VISIBLE_DEVICES does not count for NVML."""
    try:
        import pynvml  # optional (the cuda extra), and of no use on a CPU
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        uuid = "GPU-" + str(torch.cuda.get_device_properties(target.index).uuid).removeprefix("GPU-")
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError:  # a MIG slice has a UUID of another form
            handle = None
        yield (pynvml, handle) if handle is not None else None
    finally:
        pynvml.nvmlShutdown()


def _gpu_facts(nvml: Any, handle: Any) -> dict[str, Any]:
    questions: dict[str, Callable[[], int | str]] = {
        "sm_clock_mhz": lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "memory_clock_mhz": lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        "temperature_c": lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        "power_w": lambda: int(nvml.nvmlDeviceGetPowerUsage(handle)) // 1000,
        "throttled_by": lambda: _reasons(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
        "other_processes": lambda: _others(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
    }
    facts = {}
    for name, ask in questions.items():
        with contextlib.suppress(nvml.NVMLError):  # each is missing on some device or in some container
            facts[name] = ask()
    return facts


def _reasons(bits: int) -> str:
    return ", ".join(text for bit, text in _THROTTLE.items() if bits & bit) or "nothing"


def _others(processes: list[Any]) -> int:
    """Processes on the device besides this one. In a container the driver reports foreign process ids,
    of which one is our own."""
    others = [process for process in processes if process.pid != os.getpid()]
    return len(others) - 1 if others and len(others) == len(processes) else len(others)
