"""The contract of a family, and the space that it searches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ksearch.launch import Launch
from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Target, Workload


@dataclass(frozen=True, slots=True)
class Rule:
    """A constraint on a few parameters, asked as soon as these have values.

    Enumeration then never enters a part of the space that is ruled out: 64x8192 softmax took 5.1 s as one
    product, and takes 0.2 s.
    """

    needs: tuple[str, ...]
    holds: Callable[[Config], bool]


@dataclass(frozen=True)
class Space:
    """The allowed values of each parameter, and which combinations are valid.

    `axes` decide validity; `free` axes (cache policies) combine with every valid point.
    """

    axes: Mapping[str, Sequence[ConfigValue]]
    is_valid: Callable[[Config], bool] = lambda _: True
    """Asked about whole configs, of those that pass the rules."""
    free: Mapping[str, Sequence[ConfigValue]] = field(default_factory=dict)
    matters: Callable[[Config], bool] = lambda _: True
    """False where a free value changes nothing, so that another config of the space is the same kernel."""
    rules: Sequence[Rule] = ()

    @property
    def values(self) -> dict[str, Sequence[ConfigValue]]:
        return {**self.axes, **self.free}

    def allows(self, config: Config) -> bool:
        """Whether a config with a value for every parameter is a point of the space."""
        known = all(config[name] in values for name, values in self.values.items())
        return known and self._follows(config) and self.matters(config)

    def __iter__(self) -> Iterator[dict[str, ConfigValue]]:
        """Every valid config, in a fixed order."""
        tails = [
            dict(zip(self.free, values, strict=True)) for values in itertools.product(*self.free.values())
        ]
        for head in self._heads({}, list(self.axes)):
            if self.is_valid(head):
                yield from filter(self.matters, ({**head, **tail} for tail in tails))

    def _follows(self, config: Config) -> bool:
        return all(rule.holds(config) for rule in self.rules) and self.is_valid(config)

    def _heads(self, begun: dict[str, ConfigValue], left: list[str]) -> Iterator[dict[str, ConfigValue]]:
        """All ways to go on from values for the first axes that every rule about them lets pass."""
        if not left:
            yield begun.copy()
            return
        name, *rest = left
        rules = [rule for rule in self.rules if name in rule.needs and not set(rest) & set(rule.needs)]
        for value in self.axes[name]:
            begun[name] = value
            if all(rule.holds(begun) for rule in rules):
                yield from self._heads(begun, rest)
        begun.pop(name, None)


def nearest(space: Space, *wishes: Config) -> list[dict[str, ConfigValue]]:
    """For each wish the valid config that agrees with most of it, earlier values first; no repeats.

    A wish may name some of the parameters only.
    """
    configs: list[dict[str, ConfigValue]] = []
    found: list[dict[str, ConfigValue]] = []
    for wish in wishes:
        if wish.keys() == space.values.keys() and space.allows(wish):  # most whole ones are: no walk then
            best = {**wish}
        else:
            configs = configs or list(space)
            best = max(configs, key=lambda config: sum(config[name] == value for name, value in wish.items()))
        if best not in found:
            found.append(best)
    return found


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


@runtime_checkable
class Multiplier(Protocol):
    """A family of linears that can take products in ways that differ in their accuracy."""

    def way(self, config: Config) -> str:
        """What decides how accurate this config's products are; empty where it is as PyTorch is."""
        ...
