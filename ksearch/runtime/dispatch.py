"""Finding the handle that fits a live tensor: one dictionary lookup for each call after the first.

The cache holds what was found when a shape was first met; `refresh` drops it.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ksearch import operators
from ksearch.errors import KsearchError, UsageError
from ksearch.runtime.handle import Handle, call_pytorch
from ksearch.runtime.loader import load
from ksearch.runtime.notice import forget, warn_once
from ksearch.runtime.outputs import Outputs
from ksearch.runtime.reading import Reader, Reading
from ksearch.runtime.traced import is_traced

if TYPE_CHECKING:
    from ksearch.operators import Op

_MOST_ROUTES = 4096
"""Ways of calling that are kept, with their handles: numbers as arguments could make new ones without end."""

_dispatchers: dict[str, Dispatcher] = {}


@dataclass(frozen=True, slots=True)
class Route:
    """What is done with calls that look the same."""

    reading: Reading
    handle: Handle | None
    """None: PyTorch runs what the reading says."""
    is_plain: bool = False
    """The arguments are the handle's tensors in order, and nothing else."""


class Dispatcher:
    """One op as a function of tensors: `ksearch.ops.softmax`. Safe to call from several threads."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self._reader = Reader(op)
        self._routes: dict[Hashable, Route] = {}
        """By how a call looks."""
        self._handles: dict[Hashable, Handle] = {}
        """By what it means: several ways of writing one call share a kernel."""
        self._lock = threading.Lock()

    def __call__(self, *args: Any, out: Outputs | None = None, **named: Any) -> Outputs:
        """The op of these tensors, into `out` where it is given; the best that is known for them runs.

        Arguments are those of the op, or of the PyTorch function that it equals; tensors may be given by
        name, too. Raises UsageError where `out` does not fit, and for what neither of the two takes.
        """
        if not args and named:
            args, named = self._first(named)
        if is_traced():  # a compiler sees the op's own function, and fuses it
            return self._pytorch(self._reader.read(args, named), args, named, out)
        if not args or not isinstance(args[0], torch.Tensor):
            given = f"a {type(args[0]).__name__}" if args else "nothing"
            raise UsageError(f"{self.op.name} takes a tensor first, got {given}")
        key: Hashable = tuple([_look(arg) for arg in args])
        if named:
            key = (key, *((name, _look(named[name])) for name in sorted(named)))
        route = self._routes.get(key) or self._find(key, args, named)
        if route.handle is None:
            return self._pytorch(route.reading, args, named, out)
        tensors = args if route.is_plain else route.reading.tensors(args, named)
        return route.handle(*tensors, out=out)

    def __repr__(self) -> str:
        return f"<ksearch.ops.{self.op.name}: {len(self._handles)} shapes met>"

    def clear(self) -> None:
        """Look everything up again."""
        with self._lock:
            self._routes.clear()
            self._handles.clear()

    def _first(self, named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The first tensor may be given by the op's name for it, or by PyTorch's."""
        for name in (self.op.inputs[0].name, "input"):
            if name in named:
                return (named[name],), {other: named[other] for other in named if other != name}
        return (), named

    def _pytorch(
        self, reading: Reading, args: tuple[Any, ...], named: dict[str, Any], out: Outputs | None
    ) -> Outputs:
        arguments, keywords = reading.arguments(args, named)
        return call_pytorch(self.op.name, reading.function, arguments, keywords, out)

    def _find(self, key: Hashable, args: tuple[Any, ...], named: dict[str, Any]) -> Route:
        with self._lock:
            if (known := self._routes.get(key)) is not None:  # another thread was quicker
                return known
            reading = self._reader.read(args, named)
            if reading.reason:
                return self._keep(key, self._without_kernel(reading, reading.reason))
            first: torch.Tensor = args[0]
            if first.is_nested:
                return self._keep(key, self._without_kernel(reading, "a nested tensor has no single shape"))
            if first.is_cuda and torch.cuda.is_current_stream_capturing():
                reason = "loading a kernel would break the CUDA graph being captured; call it once before"
                return self._without_kernel(reading, reason)
            try:
                handle = self._load(first, {**reading.options, **reading.roles})
            except KsearchError as error:  # no kernel can be had for such a tensor: PyTorch has the last word
                return self._keep(key, self._without_kernel(reading, str(error)))
            return self._keep(key, Route(reading, handle, reading.slots == tuple(range(len(args)))))

    def _load(self, first: torch.Tensor, options: dict[str, Any]) -> Handle:
        """Raises KsearchError."""
        meaning = (_look(first), self.op.bind(options))
        if meaning not in self._handles:
            self._handles[meaning] = load(self.op, first.shape, first.dtype, first.device, **options)
        return self._handles[meaning]

    def _keep(self, key: Hashable, route: Route) -> Route:
        if len(self._routes) >= _MOST_ROUTES:
            self._routes.clear()
            self._handles.clear()
        self._routes[key] = route
        return route

    def _without_kernel(self, reading: Reading, reason: str) -> Route:
        warn_once((self.op.name, reason), f"{self.op.name} runs PyTorch: {reason}")
        return Route(reading, None)


def _look(thing: Any) -> Hashable:
    """What of an argument decides how a call is read, and which kernel it needs."""
    if isinstance(thing, torch.Tensor):
        return None if thing.is_nested else thing.shape, thing.dtype, thing.device
    return type(thing), repr(thing)  # as text: 1, 1.0 and True are equal, but not the same option


def dispatcher(name: str) -> Dispatcher:
    """The one of that op, which keeps its cache until the op is defined anew. Raises UnknownOp."""
    op = operators.get(name)
    found = _dispatchers.get(op.name)
    if found is None or found.op is not op:
        found = _dispatchers[op.name] = Dispatcher(op)
    return found


def refresh() -> None:
    """Forget what was looked up, so that winners added since are found, and may be reported on again.

    Handles that `load` returned stay as they are.
    """
    for each in list(_dispatchers.values()):
        each.clear()
    forget()
