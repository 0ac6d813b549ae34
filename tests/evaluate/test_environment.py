from __future__ import annotations

import platform

import torch

from ksearch import __version__, backends
from ksearch.evaluate.environment import _others, _reasons, describe


class Process:
    def __init__(self, pid: int) -> None:
        self.pid = pid


def test_the_certificate_says_what_was_measured_with() -> None:
    target = backends.get("cpu").target()
    facts = describe(target)
    assert facts["ksearch"] == __version__
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["device"] == target.device
    assert float(facts["load_average"]) >= 0
    assert all(isinstance(value, str) for value in facts.values())


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
