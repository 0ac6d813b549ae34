from __future__ import annotations

import platform

import pytest
import torch

from ksearch import __version__, backends
from ksearch.evaluate.environment import _others, _reasons, versions, watched


class Process:
    def __init__(self, pid: int) -> None:
        self.pid = pid


def test_the_certificate_says_what_was_measured_with() -> None:
    target = backends.get("cpu").target()
    facts = versions(target)
    assert facts["ksearch"] == __version__
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["device"] == target.device
    assert all(isinstance(value, str) for value in facts.values())
    assert versions(target) == facts, "what changes from moment to moment is no version"


def test_a_cpu_has_a_load_and_no_counters() -> None:
    with watched(backends.get("cpu").target()) as state:
        now = state("before")
    assert (now.when, now.sm_clock_mhz, now.throttled_by) == ("before", None, None)
    assert now.load_average is not None
    assert now.load_average >= 0


@pytest.mark.gpu
def test_a_gpu_tells_its_clocks_and_its_heat() -> None:
    target = backends.get("cuda").target()
    assert "driver" in versions(target)
    with watched(target) as state:
        now = state("after")
    assert (now.sm_clock_mhz or 0) > 100
    assert 5 < (now.temperature_c or 0) < 110
    assert now.throttled_by is not None


def test_throttling_is_named() -> None:
    assert _reasons(0) == "nothing"
    assert _reasons(0x1) == "nothing"  # idle
    assert _reasons(0x4 | 0x40) == "power cap, hardware heat"


def test_other_processes_on_the_device_are_counted() -> None:
    import os

    assert _others([]) == 0
    assert _others([Process(os.getpid())]) == 0
    assert _others([Process(os.getpid()), Process(1)]) == 1
    assert _others([Process(10**7)]) == 0  # ourselves, by a number of another namespace
    assert _others([Process(10**7), Process(10**7 + 1)]) == 1
