"""The contract of a family, and the space that it searches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Launch, Target, Workload


@dataclass(frozen=True)
class Space:
    """The allowed values of each parameter, and which combinations are valid.

    `axes` decide validity; `free` axes (cache policies) combine with every valid point, which keeps the
    enumeration of a product of 2 10^6 points at 0.6 s (rowwise, 8192 columns).
    """

    axes: Mapping[str, Sequence[ConfigValue]]
    is_valid: Callable[[Config], bool]
    free: Mapping[str, Sequence[ConfigValue]] = field(default_factory=dict)
    matters: Callable[[Config], bool] = lambda _: True
    """False where a free value changes nothing, so that another config of the space is the same kernel."""

    @property
    def values(self) -> dict[str, Sequence[ConfigValue]]:
        return {**self.axes, **self.free}

    def __iter__(self) -> Iterator[dict[str, ConfigValue]]:
        """Every valid config, in a fixed order."""
        tails = [
            dict(zip(self.free, values, strict=True)) for values in itertools.product(*self.free.values())
        ]
        for values in itertools.product(*self.axes.values()):
            head = dict(zip(self.axes, values, strict=True))
            if self.is_valid(head):
                yield from filter(self.matters, ({**head, **tail} for tail in tails))


class Family(Protocol):
    """A way to compute a class of ops on one backend: the same four verbs for all."""

    @property
    def name(self) -> str: ...

    @property
    def template(self) -> str:
        """Path of the template below `templates/`, such as `cuda/rowwise.cu.j2`."""
        ...

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        """The valid configs of this workload; the one statement of the constraints."""
        ...

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        """What an expert would try first, best first; each a point of the space."""
        ...

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        """How a kernel of this config is started on this workload."""
        ...

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        """What the template sees besides the config itself."""
        ...
