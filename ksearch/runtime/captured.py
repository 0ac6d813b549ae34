"""Counts of calls as a study file: read, added up, and written most expensive first."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ksearch import files, operators, study_file
from ksearch.errors import KsearchError
from ksearch.operators.cost import cost_of
from ksearch.study import Entry, StudyFile
from ksearch.types import ITEMSIZE, Option


@dataclass(frozen=True, slots=True)
class Captured:
    """What calls that a study counts as one have in common."""

    op: str
    """As `operators.resolve` takes it."""
    shape: tuple[int, ...]
    """As `Op.workload` takes it."""
    dtype: str
    policy: str = "strict"
    options: tuple[tuple[str, Option], ...] = ()
    """Those that are not the defaults."""
    needs: str = ""
    """What kernels lack for such calls; empty where they can be tuned."""
    backend: str = ""
    """`cpu` or `cuda`, where the calls were seen."""


def read_counts(path: Path) -> StudyFile | None:
    """The study at `path`, None where there is no file. Raises UsageError."""
    return study_file.read(path) if path.exists() else None


def write_counts(path: Path, counts: Mapping[Captured, int], passed_over: Mapping[str, int]) -> None:
    """Add counts to the study at `path`, which is written anew. Raises UsageError."""
    before = read_counts(path)
    located = [replace(entry, op=_located(entry.op, path)) for entry in before.entries] if before else []
    entries = {_key(entry): entry for entry in located}
    for captured, calls in counts.items():
        entry = _entry(captured, calls)
        known = entries.get(_key(entry))
        entries[_key(entry)] = entry if known is None else replace(known, calls=known.calls + calls)
    ordered = sorted(entries.values(), key=lambda entry: -entry.calls * call_bytes(entry))
    backends = {captured.backend for captured in counts}
    device = backends.pop() if len(backends) == 1 else None
    lines = [*_head(before, device), *(line for entry in ordered for line in _table(entry, path))]
    if passed_over:
        lines += ["# Calls that no kernel can answer:"]
        lines += [f"#   {calls} {what}" for what, calls in Counter(passed_over).most_common()]
    files.write_text(path, ["\n".join(lines).rstrip(), "\n"])


def call_bytes(entry: Entry) -> int:
    """What a call must move at least; 0 where the op is not to be had."""
    try:
        op = operators.resolve(entry.op)
        options: dict[str, Any] = dict(entry.options)
        workload = op.workload(entry.shape, entry.dtype, policy=entry.policy, **options)
        return cost_of(op.program(**dict(workload.options)), workload).bytes
    except KsearchError:
        return math.prod(entry.shape) * ITEMSIZE[entry.dtype]


def _entry(captured: Captured, calls: int) -> Entry:
    return Entry(
        number=0,
        op=captured.op,
        shape=captured.shape,
        dtype=captured.dtype,
        options=captured.options,
        needs=captured.needs,
        policy=captured.policy,
        calls=calls,
    )


def _key(entry: Entry) -> tuple[object, ...]:
    """Equal for entries that stand for one workload, with their defaults stated or not."""
    options: object = entry.options
    name = entry.op
    try:
        op = operators.resolve(entry.op)
        options, name = op.bind(dict(entry.options)), op.location
    except KsearchError:  # what is not there any more is kept as it is
        pass
    return name, entry.shape, entry.dtype, entry.policy, options, entry.needs


def _head(before: StudyFile | None, device: str | None) -> list[str]:
    """The table [study]: what it said before, and where the calls were seen."""
    device = before.device if before else device
    stated: dict[str, Any] = {}
    if before:
        stated = {"name": before.name, "budget_s": before.budget_s, "trials": before.trials}
    lines = [f"{name} = {_toml(value)}" for name, value in {**stated, "device": device}.items() if value]
    return ["# Calls that were captured, most expensive (calls x bytes) first.", "[study]", *lines, ""]


def _table(entry: Entry, path: Path) -> list[str]:
    lines = ["[[workload]]", f"op = {_toml(_relative(entry.op, path))}", f"shape = {list(entry.shape)}"]
    lines.append(f"dtype = {_toml(entry.dtype)}")
    if entry.policy != "strict":
        lines.append(f"policy = {_toml(entry.policy)}")
    if entry.options:
        listed = ", ".join(f"{name} = {_toml(value)}" for name, value in entry.options)
        lines.append(f"options = {{ {listed} }}")
    if entry.needs:
        lines.append(f"needs = {_toml(entry.needs)}")
    if entry.weight != 1.0:
        lines.append(f"weight = {_toml(entry.weight)}")
    if entry.calls:
        lines.append(f"calls = {entry.calls}  # {call_bytes(entry):,} bytes each")
    return [*lines, ""]


def _relative(op: str, path: Path) -> str:
    """A file below the study's folder is named from there, so that both may move."""
    file, colon, name = op.rpartition(":")
    if colon and Path(file).is_relative_to(path.parent):
        file = str(Path(file).relative_to(path.parent))
    return f"{file}{colon}{name}"


def _located(op: str, path: Path) -> str:
    """The inverse of `_relative`; an entry that needs something comes as it is written."""
    file, colon, name = op.rpartition(":")
    return f"{path.parent / file}{colon}{name}" if colon else op


def _toml(value: Option) -> str:
    """TOML writes texts as JSON does, floats as Python does, and bools in small letters."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
