"""A search that goes on for long holds no more in the end than after its first candidates."""

from __future__ import annotations

import importlib
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.told import Told

SCRIPTS = Path(__file__).parents[2] / "scripts"
COUNT, EVERY = 100, 10


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    rows: list[dict[str, Any]] = importlib.import_module("_leaks").run(COUNT, EVERY, "cpu", lambda _: None)
    first, *during, last = rows
    assert len(during) == COUNT // EVERY
    assert last["candidates"] == COUNT
    assert last["failed"] == {"wrong": 1}, "two more would, in the first half of a longer one"
    assert (first["processes"], last["processes"]) == (0, 0)
    assert last["files"] <= first["files"] + 2, "the database's own, kept by nobody"
    assert last["temporary folders"] == 0
    middle, end = during[len(during) // 2], during[-1]
    for name in ("files", "worker files", "processes", "threads", "temporary folders"):
        assert end[name] <= middle[name], name
    for name in ("MB", "worker MB", "compiler MB"):
        assert end[name] < middle[name] + 10, name
    assert not [child for child in psutil.Process().children() if "open_session" in " ".join(child.cmdline())]
    told(f"a search of {COUNT} candidates", f"{end['MB'] - middle['MB']:.2f} MB more in its second half")


def test_the_page_has_a_row_for_each_fault_and_none_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    bench = importlib.import_module("bench_faults")
    told = '<properties><property name="fault" value="F"/><property name="outcome" value="a|b"/></properties>'
    cases = [
        (f'<testcase name="t" time="1.5">{told}</testcase>', ("F", "a/b")),
        (f'<testcase name="t" time="1.5">{told}<failure/></testcase>', ("F", "NOT SURVIVED")),
        ('<testcase name="t" time="1.5"><error/></testcase>', ("t", "NOT SURVIVED")),
    ]
    for text, expected in cases:
        row = bench._row(ElementTree.fromstring(text))
        assert (row["fault"], row["what becomes of it"], row["s"]) == (*expected, 1.5)
    assert bench._row(ElementTree.fromstring('<testcase name="t"/>')) is None, "it tells of no fault"
