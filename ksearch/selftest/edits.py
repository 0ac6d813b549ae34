"""Faults inside a kernel: small edits of the text that a template gave, each at a place that it must find.

A place that is not found is an error, never a mutant that equals the original. Whether a kernel has what a
fault is about (a sum, an exponential, a barrier) is asked first; some of the space may have it and some not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ksearch.errors import SelftestError
from ksearch.operators.program import Program
from ksearch.selftest.changes import (
    EXPONENTIALS,
    HALF_SUMS,
    NEAR_EXPONENTIALS,
    NO_BARRIER,
    NO_MAX,
    Change,
    Changes,
)
from ksearch.types import ConfigValue

_OWN = "source"
"""The node of an op whose template is the user's: what it computes is looked for in the text."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A fault of the arithmetic or of the order of things. `about` says it in a sentence."""

    name: str
    about: str
    concerns: Callable[[Program], bool]
    """Whether what a kernel computes has what the fault is about."""
    absent: str
    """What is said where it has not."""
    changes: Changes
    unknown: str = "no place for it is known in this template"
    """What is said where it has, and no kernel of the space has a place for the fault."""
    wish: Mapping[str, ConfigValue] = field(default_factory=dict)
    """Parameters of a kernel that has it, where the first guess has not."""
    by_size: bool = False
    """It is a matter of digits, of which PyTorch may have no more in this dtype."""

    def finds(self, text: str) -> bool:
        """Whether this kernel has what the fault is about."""
        return any(re.search(mark, text) for mark in self.changes)

    def apply(self, text: str) -> str:
        """The text with the fault, which `finds` has found. Raises SelftestError where a change finds no
        place."""
        changes = next(changes for mark, changes in self.changes.items() if re.search(mark, text))
        for change in changes:
            text = self._replace(text, change)
        return text

    def _replace(self, text: str, change: Change) -> str:
        changed = change(text) if callable(change) else re.sub(*change, text)
        if changed == text:
            where = "" if callable(change) else f", where nothing matches {change[0]!r}"
            raise SelftestError(
                f"the planted fault {self.name!r} finds no place in the kernel's text{where}: a template was "
                "changed, and ksearch/selftest/changes.py must follow"
            )
        return changed


def _uses(*begins: str) -> Callable[[Program], bool]:
    """Whether there is a function that begins so."""
    return lambda program: any(node.op.startswith(begins) for node in program.nodes)


def _subtracts_max(program: Program) -> bool:
    """Whether an exponential is taken of what is left of a row's maximum."""
    nodes = program.nodes
    differences = [nodes[node.operands[0]] for node in nodes if node.op == "exp"]
    return any(each.op == "-" and nodes[each.operands[1]].op == "reduce_max" for each in differences)


APPROXIMATE_EXPONENTIAL = Edit(
    "approximate exponential",
    "exp, and what is made of it (sigmoid, tanh, erf), is off by 1e-3",
    _uses(*EXPONENTIALS, _OWN),
    "the op takes no exponential",
    NEAR_EXPONENTIALS,
    by_size=True,
)

EDITS = (
    APPROXIMATE_EXPONENTIAL,
    Edit(
        "sums in float16",
        "every sum is rounded to float16 as it grows",
        _uses("reduce_sum", "linear", "scan_sum"),
        "the kernel takes no sum",
        HALF_SUMS,
        by_size=True,
    ),
    Edit(
        "no maximum subtracted",
        "exponentials are taken without the row's maximum having been subtracted",
        _subtracts_max,
        "the op subtracts no maximum",
        NO_MAX,
        wish={"reduction": "two_step"},
    ),
    Edit(
        "missing barrier",
        "threads do not wait for what others hand them, and some are late with it",
        lambda _: True,
        "",
        NO_BARRIER,
        unknown="no kernel for this op and shape has threads that wait for one another",
        wish={"split": True},
    ),
)
