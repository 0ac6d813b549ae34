"""Finding the handle that fits a live tensor: one dictionary lookup for each call after the first.

The cache holds what was found when a shape was first met; `refresh` drops it.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch

from ksearch import operators
from ksearch.errors import KsearchError, UsageError
from ksearch.runtime.handle import Handle, Match, run_pytorch
from ksearch.runtime.loader import load
from ksearch.runtime.notice import forget, warn_once

if TYPE_CHECKING:
    from ksearch.operators import Op

_dispatchers: dict[str, Dispatcher] = {}


class Dispatcher:
    """One op as a function of tensors: `ksearch.ops.softmax`. Safe to call from several threads."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self._handles: dict[Hashable, Handle] = {}
        self._lock = threading.Lock()

    def __call__(
        self, *tensors: torch.Tensor, out: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        """The op of these tensors, into `out` where it is given; the best that is known for them runs.

        Tensors may be given by name, too. Raises UsageError where `out` does not fit.
        """
        if torch.compiler.is_compiling():  # the compiler sees the op's own function, and fuses it
            return run_pytorch(self.op, options, tensors, out)
        if options:
            tensors, options = self._bind(tensors, options)
        try:
            first = tensors[0]
            key: Hashable = (first.shape, first.dtype, first.device)
        except (IndexError, AttributeError):
            raise UsageError(f"{self.op.name} takes a tensor first, got {tensors[:1] or 'nothing'}") from None
        if options:
            # As text: 1, 1.0 and True are equal, but not the same option.
            key = (key, *((name, repr(options[name])) for name in sorted(options)))
        handle = self._handles.get(key) or self._find(key, first, options)
        return handle(*tensors, out=out)

    def __repr__(self) -> str:
        return f"<ksearch.ops.{self.op.name}: {len(self._handles)} shapes met>"

    def clear(self) -> None:
        """Look everything up again."""
        with self._lock:
            self._handles.clear()

    def _bind(
        self, tensors: tuple[torch.Tensor, ...], named: dict[str, Any]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        """Inputs that were given by name take their place among the tensors."""
        options = dict(named)
        bound = list(tensors)
        for tensor in self.op.inputs[len(bound) :]:
            if tensor.name not in options:
                break
            bound.append(options.pop(tensor.name))
        return tuple(bound), options

    def _find(self, key: Hashable, first: torch.Tensor, options: dict[str, Any]) -> Handle:
        with self._lock:
            if (known := self._handles.get(key)) is not None:  # another thread was quicker
                return known
            if first.is_cuda and torch.cuda.is_current_stream_capturing():
                reason = "loading a kernel would break the CUDA graph being captured; call it once before"
                warn_once((self.op.name, "capture"), f"{self.op.name} runs PyTorch: {reason}")
                return Handle(self.op, options, match=Match.FALLBACK, reason=reason)
            handle = self._handles[key] = self._load(first, options)
            return handle

    def _load(self, first: torch.Tensor, options: dict[str, Any]) -> Handle:
        try:
            return load(self.op, first.shape, first.dtype, first.device, **options)
        except KsearchError as error:  # no kernel can be had for such a tensor: PyTorch has the last word
            warn_once((self.op.name, str(error)), f"{self.op.name} runs PyTorch: {error}")
            return Handle(self.op, options, match=Match.FALLBACK, reason=str(error))


def dispatcher(name: str) -> Dispatcher:
    """The one of that op, which keeps its cache until the op is defined anew. Raises UnknownOp."""
    op = operators.get(name)
    found = _dispatchers.get(name)
    if found is None or found.op is not op:
        found = _dispatchers[name] = Dispatcher(op)
    return found


def refresh() -> None:
    """Forget what was looked up, so that winners added since are found, and may be reported on again.

    Handles that `load` returned stay as they are.
    """
    for each in list(_dispatchers.values()):
        each.clear()
    forget()
