"""A worker's session without torch, so that the processes around it can be killed by the dozen.

It answers what the real one answers of a right kernel. Each candidate's time follows from its config, and
PyTorch is faster than all, so that nothing is random. What is measured is written down first, in the file
that FAULTS_LOG names; what FAULTS_DO names happens instead of an answer.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ksearch.errors import BadShape
from ksearch.evaluate.messages import Finding, Laps, Nearby, Ready, Timing
from ksearch.types import Candidate, Status

BASELINE_US = 1.0
_GONE = "CUDA error: no CUDA-capable device is detected"


def time_us(candidate: Candidate) -> float:
    return 10.0 + int(candidate.config["step"])


def open_session() -> Callable[[Any], Any]:
    def answer(message: tuple[Any, ...] | None) -> Any:
        verb, *arguments = message or ("warm",)
        _log(verb, arguments)
        if (found := _misbehave(verb)) is not None:
            return found
        match verb, arguments:
            case "start", _:
                return Ready(BASELINE_US, BASELINE_US / 2, {"torch": "played"}, 1 << 20)
            case "screen", (candidate, _):
                return Finding(Status.PASSED, error=0.5, timing=Timing(time_us(candidate), 0.1, 5))
            case "verify", _:
                return Finding(Status.PASSED, error=0.5)
            case "race", (candidates, _):
                mine = [[time_us(each)] * 5 for each in candidates]
                return Laps(mine, [BASELINE_US] * 5, [BASELINE_US / 2] * 5, {"torch": "played"})
            case "nearby", (_, rows, _):
                return Nearby(rows, 1.0)
        return None

    return answer


def _log(verb: str, arguments: list[Any]) -> None:
    if path := os.environ.get("FAULTS_LOG"):
        config = arguments[0].config if verb == "screen" else None
        with Path(path).open("a") as file:
            file.write(json.dumps([verb, config, os.getpid()]) + "\n")


def _misbehave(verb: str) -> Finding | None:
    """`VERB DEED [MARK]`: with a file MARK only the first time, which leaves it. What is lost stays lost."""
    wanted, _, rest = os.environ.get("FAULTS_DO", "").partition(" ")
    deed, _, mark = rest.partition(" ")
    if deed == "lose" and verb == "open" and Path(mark).exists():
        raise RuntimeError(_GONE)
    if wanted != verb or (mark and Path(mark).exists()):
        return None
    if mark:
        Path(mark).touch()
    match deed:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "lose":  # what the real session makes of a RuntimeError of PyTorch's
            return Finding(Status.CRASHED, _GONE, healthy=False)
        case "full":  # what the real session makes of torch.OutOfMemoryError
            raise BadShape("the workload does not fit into the device's memory: CUDA out of memory.")
    return None
