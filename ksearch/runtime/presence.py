"""Whether there are kernels for tensors of which only the looks are known, as those who make graphs ask."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ksearch import backends
from ksearch.errors import KsearchError
from ksearch.runtime import known
from ksearch.runtime.handle import Handle
from ksearch.runtime.precision import allows_tf32
from ksearch.runtime.reading import Reader, Reading
from ksearch.runtime.route import MOST_ROUTES, look

if TYPE_CHECKING:
    from ksearch.operators import Op


class Presence:
    """For one op: an answer for each look of its tensors, found once."""

    def __init__(self, op: Op, reader: Reader, load: Callable[[torch.Tensor, Reading], Handle]) -> None:
        """`load` gives what answers a call, by its first tensor and how it is read. Raises KsearchError."""
        self._op = op
        self._reader = reader
        self._load = load
        self._known: dict[Hashable, bool] = {}

    def clear(self) -> None:
        self._known.clear()

    def has_kernel(self, tensors: Sequence[torch.Tensor | None], options: Mapping[str, Any]) -> bool:
        """For tensors that look like these, which may be fake; of sizes that are not known yet, for any."""
        tensors = [*tensors, *[None] * (len(self._op.inputs) - len(tensors))]  # PyTorch leaves those out
        present = [tensor for tensor in tensors if tensor is not None]
        if not all(type(size) is int for tensor in present for size in tensor.shape):
            return self._has_any(present[0])
        if not all(tensor.is_contiguous() for tensor in present):
            return False
        looks = tuple([look(tensor) for tensor in tensors])
        key = (looks, tuple([(name, look(options[name])) for name in sorted(options)]), allows_tf32())
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MOST_ROUTES:
                self.clear()
            found = self._known[key] = self._finds(tensors, options)
        return found

    def _finds(self, tensors: Sequence[torch.Tensor | None], options: Mapping[str, Any]) -> bool:
        try:
            reading = self._reader.understood(self._reader.read((*tensors,), options), tensors)
            if reading.reason or tensors[0] is None:
                return False
            return self._load(tensors[0], reading).kernel is not None
        except KsearchError:  # there can be none for such tensors
            return False

    def _has_any(self, first: torch.Tensor) -> bool:
        key = (first.dtype, first.device)
        found = self._known.get(key)  # in one step: another thread may forget it
        if found is None:
            try:
                target = backends.get(first.device.type).target(first.device.index or 0)
            except KsearchError:  # there are none for such devices
                found = False
            else:
                name = str(first.dtype).removeprefix("torch.")
                found = any(workload.dtype == name for workload in known.kernels(self._op.name, target))
            self._known[key] = found
        return found
