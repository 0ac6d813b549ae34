"""The valid set of a space as columns of ranks: what lies near what, in about 1 ms over 100,000 configs."""

from __future__ import annotations

import bisect

import numpy as np

from ksearch.errors import UsageError
from ksearch.families.base import Space
from ksearch.types import Config, ConfigValue


class Points:
    """The valid configs by index, and which are taken. Raises UsageError where there is none."""

    def __init__(self, space: Space) -> None:
        self.configs = list(space)
        if not self.configs:
            raise UsageError("no config of the family's space is valid for this workload on this device")
        found: dict[str, dict[ConfigValue, None]] = {name: {} for name in space.values}
        for config in self.configs:
            for name, value in config.items():
                found[name][value] = None
        self.ordered = {
            name: all(isinstance(v, int) and not isinstance(v, bool) for v in values)
            for name, values in found.items()
        }
        self.values: dict[str, list[ConfigValue]] = {
            name: sorted(values) if self.ordered[name] else list(values) for name, values in found.items()
        }
        """Those in use, the ordered ones in order."""
        self.rank = {name: {v: i for i, v in enumerate(values)} for name, values in self.values.items()}
        self._index = {self.ranks(config): i for i, config in enumerate(self.configs)}
        self.columns = np.array(list(self._index), dtype=np.intp).reshape(len(self.configs), -1).T.copy()
        """The rank of each config on each axis: an array of axes x configs."""
        self.taken = np.zeros(len(self.configs), dtype=bool)
        self.left = len(self.configs)

    def ranks(self, config: Config) -> tuple[int, ...]:
        """The place of each of its values on its axis. Raises KeyError for what is not in the space."""
        return tuple([ranks[config[name]] for name, ranks in self.rank.items()])

    def find(self, config: Config) -> int | None:
        try:
            return self._index.get(self.ranks(config))
        except KeyError:
            return None

    def nearest(self, config: Config) -> int:
        """The untried valid config that differs least: a step in an ordered axis is a part of a change."""
        if (exact := self.find(config)) is not None and not self.taken[exact]:
            return exact
        distance = self.taken * 1e9
        for (name, values), column in zip(self.values.items(), self.columns, strict=True):
            wanted = config.get(name)
            if self.ordered[name] and isinstance(wanted, int):
                place = bisect.bisect_left(values, wanted)
                steps = np.abs(np.arange(len(values)) - place) / max(1, len(values) - 1)
            else:
                steps = np.array([float(value != wanted) for value in values])
            distance += steps[column]
        return int(distance.argmin())

    def steps(self, index: int) -> list[int]:
        """The valid configs one step away: a neighbour on one ordered axis, or another kind."""
        ranks = self.ranks(self.configs[index])
        found = []
        for axis, (name, values) in enumerate(self.values.items()):
            place = ranks[axis]
            for other in (place - 1, place + 1) if self.ordered[name] else range(len(values)):
                near = self._index.get((*ranks[:axis], other, *ranks[axis + 1 :]))
                if near is not None and near != index:
                    found.append(near)
        return found

    def take(self, index: int) -> None:
        self.taken[index] = True
        self.left -= 1
