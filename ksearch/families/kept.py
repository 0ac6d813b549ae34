"""Sums whose terms the output needs again: a template can keep them instead of computing them twice.

They are found in a schedule's text, where an equal name of a value means an equal value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ksearch.operators.stages import Kind, Schedule

_OUTPUT = re.compile(r"(KS_FN void output)\((.*?\n\}\n?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the terms come from, and the text that uses them."""

    stage: int
    index: int
    """Of the sum among the stage's reductions."""
    text: str
    """The schedule's, and `output_kept`: `output`, given the term as its first argument."""
    inputs: tuple[str, ...]
    """What `output_kept` still reads of each element."""


def find(schedule: Schedule, kind: Kind) -> Kept | None:
    """The last stage's sum of that kind, SUM or SUM_EXP, whose terms the output computes again."""
    output = _OUTPUT.search(schedule.text)
    if output is None:
        return None
    last = len(schedule.stages) - 1
    for index, reduction in enumerate(schedule.stages[last].reductions):
        if reduction.kind is not kind:
            continue
        if reduction.anchor is None:
            term = _value(schedule, last, index)
        else:
            anchor = schedule.stages[last].reductions[reduction.anchor]
            term = _exponential(output[2], _value(schedule, last, reduction.anchor), anchor.name)
        body, count = re.subn(rf"const T {term} = .*?;", f"const T {term} = kept;", output[2])
        if count == 1:
            body = _without_unused(body)
            inputs = tuple(name for name in schedule.output_inputs if re.search(rf"\be\.{name}\b", body))
            text = f"{schedule.text}\ntemplate <class T> {output[1]}_kept(const T kept, {body}\n"
            return Kept(last, index, text, inputs)
    return None


def _value(schedule: Schedule, stage: int, index: int) -> str:
    """What a stage's function hands to a reduction: `t7`, or `e.x`."""
    body = re.search(rf"KS_FN void stage{stage}\(.*?\n\}}", schedule.text, re.DOTALL)
    value = re.search(rf"value\[{index}\] = (.*?);", body[0]) if body else None
    return value[1] if value else ""


def _exponential(output: str, value: str, maximum: str) -> str:
    """The output's name for exp(value - maximum)."""
    difference = re.search(rf"const T (t\d+) = {re.escape(value)} - ks::splat<T>\(row\.{maximum}\);", output)
    found = difference and re.search(rf"const T (t\d+) = ks::exp\({difference[1]}\);", output)
    return found[1] if found else ""


def _without_unused(body: str) -> str:
    """The body without values that nothing needs any more."""
    for name in reversed(re.findall(r"const T (t\d+) =", body)):
        if len(re.findall(rf"\b{name}\b", body)) == 1:
            body = re.sub(rf" *const T {name} = .*?;\n", "", body)
    return body
