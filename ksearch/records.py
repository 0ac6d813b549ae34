"""What a file says a winner is, taken at its word only where it can be one.

Databases and bundles are merged, copied and sent around, so their rows are read as anyone's text: an op's
name becomes part of a path, a launch goes to the driver, a shape is divided by. Each function raises
ValueError with the first thing that is wrong. The digest of a binary is checked where it is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ksearch.launch import Launch, TensorMap
from ksearch.types import Outcome, Target, Winner, Workload

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading text or JSON of any kind as if it were ours may raise."""

_MOST = 2**63
"""No number that a kernel or the database takes is as large."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"[0-9A-Za-z]*")
_LAYOUT = re.compile(r"[a-z]+( [a-z0-9,-]+)?")
_KINDS = {"int": int, "bool": bool, "str": str}
_LAUNCH, _MAP, _TARGET = (
    {each.name: _KINDS[str(each.type)] for each in fields(kind) if str(each.type) in _KINDS}
    for kind in (Launch, TensorMap, Target)
)
_AT_LEAST_1 = {"work_per_row", "work_per_block", "block", "cluster", "split", "threads", "alignment"}


def check_workload(workload: Workload) -> Workload:
    """Names are identifiers, sizes are sizes."""
    for name in ("op", "dtype", "policy", "regime"):
        if not _is_name(getattr(workload, name)):
            raise ValueError(f"{name} is {getattr(workload, name)!r}")
    if not all(_is_count(dim, 1) for dim in workload.shape):
        raise ValueError(f"shape is {workload.shape!r}")
    if not _is_count(workload.inner, 0):
        raise ValueError(f"inner is {workload.inner!r}")
    for name, form in (("program", _DIGEST), ("layout", _LAYOUT)):
        if not (isinstance(text := getattr(workload, name), str) and form.fullmatch(text)):
            raise ValueError(f"{name} is {text!r}")
    if workload.rows * workload.cols != workload.numel:
        raise ValueError(f"layout is {workload.layout!r} of shape {workload.shape!r}")
    for name, value in workload.options:
        if not (isinstance(name, str) and name.isidentifier() and _is_plain(value)):
            raise ValueError(f"option {name!r} is {value!r}")
    return workload


def check_config(config: Mapping[str, Any]) -> None:
    """Names and plain values; whether they are in a space is for the space to say."""
    if not isinstance(config, dict):
        raise ValueError(f"config is {config!r}")
    for name, value in config.items():
        if not isinstance(name, str) or not name.isprintable() or not _is_plain(value):
            raise ValueError(f"config has {name!r} as {value!r}")


def check_trial(number: int, config: Mapping[str, Any], outcome: Outcome) -> None:
    """One evaluated candidate."""
    check_config(config)
    times = [each for each in (outcome.time_us, outcome.error) if each is not None]
    numbers = [outcome.spread_us, outcome.repeats, *times]
    if not (_is_count(number, 0) and all(map(_is_number, numbers)) and isinstance(outcome.message, str)):
        raise ValueError(f"trial {number!r} came to {outcome!r:.200}")
    if outcome.time_us is not None and not _is_time(outcome.time_us):
        raise ValueError(f"time_us is {outcome.time_us!r}")


def check_launch(launch: Launch) -> None:
    """Every number is one that the driver could be given; steps before and after it, too."""
    _check_fields(launch, _LAUNCH)
    if not _is_name(launch.entry):
        raise ValueError(f"entry is {launch.entry!r}")
    for tensor_map in launch.maps:
        _check_fields(tensor_map, _MAP)
        if tensor_map.rows is not None and not _is_count(tensor_map.rows, 1):
            raise ValueError(f"rows is {tensor_map.rows!r}")
    if (launch.pack is None) != (launch.packed_bytes == 0) or launch.packed_bytes % 4:
        raise ValueError(f"packed_bytes is {launch.packed_bytes!r}")
    if launch.torch_bias is not None and not (launch.torch_product and _is_count(launch.torch_bias, 0)):
        raise ValueError(f"torch_bias is {launch.torch_bias!r}")
    for step in (*launch.before, *launch.after, *([] if launch.pack is None else [launch.pack])):
        check_launch(step)


def check_winner(winner: Winner) -> Winner:
    """All of it, but for those parts of the certificate that only matter to who shows them."""
    check_certificate(winner.certificate)
    return check_kernel(winner)


def check_kernel(winner: Winner) -> Winner:
    """A kernel with all that belongs to one, or PyTorch; not its certificate."""
    check_workload(winner.workload)
    _check_fields(winner.target, _TARGET)
    if not all(map(str.isprintable, (winner.target.backend, winner.target.arch, winner.target.device))):
        raise ValueError(f"target is {winner.target.key!r}")
    return check_answer(winner)


def check_answer(winner: Winner) -> Winner:
    """What won, and how fast it is; not what it won for, which a lookup asked with."""
    for name in ("time_us", "baseline_us", "ceiling_us"):
        if not _is_time(getattr(winner, name)):
            raise ValueError(f"{name} is {getattr(winner, name)!r}")
    if not isinstance(winner.created, str) or not winner.created.isprintable():
        raise ValueError(f"created is {winner.created!r}")
    absent = [each is None for each in (winner.config, winner.launch, winner.artifact)]
    if len(set(absent)) > 1:
        raise ValueError("it has a part of a kernel only")
    if winner.config is not None and winner.launch is not None and winner.artifact is not None:
        check_config(winner.config)
        check_launch(winner.launch)
        if not isinstance(winner.artifact, str) or not _SHA256.fullmatch(winner.artifact):
            raise ValueError(f"artifact is {winner.artifact!r}")
    return winner


def check_certificate(certificate: Any) -> None:
    """What lists and lookups use of it."""
    if not isinstance(certificate, dict):
        raise ValueError(f"certificate is {certificate!r:.60}")
    check_near(certificate.get("near", []))
    interval = certificate.get("speedup_ci")
    if interval is not None and not (isinstance(interval, list) and all(map(_is_number, interval[:2]))):
        raise ValueError(f"speedup_ci is {interval!r}")


def check_near(near: Any) -> None:
    """Pairs of a number of rows and a speed-up there."""
    pairs = isinstance(near, list) and all(isinstance(each, list) and len(each) == 2 for each in near)
    if not pairs or not all(_is_count(rows, 1) and _is_number(ratio) for rows, ratio in near):
        raise ValueError(f"near is {near!r:.60}")


def _check_fields(value: object, kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        found = getattr(value, name)
        if type(found) is not kind or (kind is int and not _is_count(found, name in _AT_LEAST_1)):
            raise ValueError(f"{name} is {found!r}")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isidentifier()


def _is_plain(value: object) -> bool:
    """A number, a bool, or a text on one line, for it is printed, and written into exported sources."""
    return value.isprintable() if isinstance(value, str) else isinstance(value, bool | int | float)


def _is_count(value: object, least: int) -> bool:
    return type(value) is int and least <= value < _MOST


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and 0 < value < math.inf
