"""Two winners side by side: what they share, what they don't, and the lines in which their sources differ."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ksearch.pages.final_figures import times
from ksearch.pages.plotting import TIME, Figure, log_axis
from ksearch.pages.views import WorkloadView

_CONTEXT = 3
"""Lines around each that differs."""
_WIDE = 5.0
"""Samples so far apart that the smaller would be one dot on a linear axis."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact of both; empty where one lacks it."""

    name: str
    left: str
    right: str

    @property
    def is_same(self) -> bool:
        return self.left == self.right


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the sources' difference."""

    kind: str
    """`same`, `left` where only the left has it, `right`, or `gap` where lines were left out."""
    left: int | None
    """Its number there, counted from 1."""
    right: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of two workloads, which may be of different ops and devices."""

    left: WorkloadView
    right: WorkloadView

    @property
    def config(self) -> tuple[Difference, ...]:
        return _differences(*map(_config, (self.left, self.right)))

    @property
    def launch(self) -> tuple[Difference, ...]:
        return _differences(self.left.launch, self.right.launch)

    @property
    def evidence(self) -> tuple[Difference, ...]:
        return _differences(self.left.evidence, self.right.evidence)

    @property
    def has_equal_sources(self) -> bool:
        return self.left.source == self.right.source

    def lines(self) -> Iterator[Line]:
        """Of the two sources; nothing where they are equal, or one has none."""
        if self.left.source is None or self.right.source is None or self.has_equal_sources:
            return
        left, right = self.left.source.splitlines(), self.right.source.splitlines()
        matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
        for group in matcher.get_grouped_opcodes(_CONTEXT):
            yield Line("gap", None, None, "")
            for kind, i, i_end, j, j_end in group:
                if kind == "equal":
                    for k in range(i_end - i):
                        yield Line("same", i + k + 1, j + k + 1, left[i + k])
                    continue
                for k in range(i, i_end):
                    yield Line("left", k + 1, None, left[k])
                for k in range(j, j_end):
                    yield Line("right", None, k + 1, right[k])

    def samples(self) -> Figure:
        """Of both finals in one figure; each was measured in rounds of its own."""
        drawn = [
            replace(each, name=f"{side}: {each.name}", kind=_KINDS[side][each.kind])
            for side, view in (("left", self.left), ("right", self.right))
            for each in view.compared
            if each.kind in _KINDS[side] and each.samples_us
        ]
        if not drawn:
            return Figure(empty="Neither certificate keeps samples of a final.")
        variant = times(drawn)
        values = [value for each in drawn for value in each.samples_us]
        if max(values) > _WIDE * min(values):
            variant.layout["xaxis"] = log_axis(values, TIME)
        return Figure((variant,))


_KINDS = {
    "left": {"winner": "winner", "pytorch": "pytorch"},
    "right": {"winner": "runner_up", "pytorch": "ceiling"},
}
"""What is shown of each side, and as what it is coloured."""


def _config(view: WorkloadView) -> list[tuple[str, str]]:
    """Of what won; empty where that is PyTorch."""
    config = view.winner.config if view.winner else None
    return [(name, str(value)) for name, value in (config or {}).items()]


def _differences(left: Iterable[tuple[str, str]], right: Iterable[tuple[str, str]]) -> tuple[Difference, ...]:
    """In the order of the left; what only the right has comes last."""
    ours, theirs = dict(left), dict(right)
    return tuple(
        Difference(name, ours.get(name, ""), theirs.get(name, "")) for name in dict.fromkeys((*ours, *theirs))
    )
