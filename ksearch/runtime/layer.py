"""The kernels of a linear layer whose weight is a constant: one for each look of what it is called with.

`ksearch.nn.PrepackedLinear` asks here; where there is no such kernel it goes the way of a plain linear.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Hashable

import torch

from ksearch.errors import KsearchError
from ksearch.operators.signature import NONE
from ksearch.runtime.handle import Handle
from ksearch.runtime.loader import load_best
from ksearch.runtime.precision import allows_tf32
from ksearch.runtime.prepacked import Prepacked

MOST_COPIES = 4
"""Packed weights of one layer, each as large as the weight: numbers of rows beyond these have none."""
_MOST_LOOKS = 256
"""Of which it is remembered that there is no kernel."""

_all: weakref.WeakSet[PackedLayer] = weakref.WeakSet()
_lock = threading.RLock()
"""Of all layers: a model's copies take none with them."""


class PackedLayer:
    """The handles of one weight. Safe to use from several threads."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self._handles: dict[Hashable, Prepacked] = {}
        self._without: dict[Hashable, str] = {}
        """Why there is no kernel."""
        _all.add(self)

    def find(self, x: torch.Tensor, bias: torch.Tensor | None) -> Prepacked | str:
        """The handle for such an input, which takes it and the bias; or why there is none."""
        if x.is_nested:
            return "a nested tensor has no single shape"
        if torch.is_autocast_enabled(x.device.type):
            return "autocast has a dtype of its own for it"
        if x.dtype is torch.float32 and allows_tf32():
            return "PyTorch may use TF32, which a packed weight is not made for"
        look = (x.shape, x.dtype, x.device, bias is None)
        return self._handles.get(look) or self._without.get(look) or self._find(look, x, bias)

    def repack(self) -> None:
        """Pack the weight again, for every handle: after a change by way of `weight.data`."""
        for handle in list(self._handles.values()):
            handle.repack()

    def clear(self) -> None:
        """Look everything up again."""
        with _lock:
            self._handles.clear()
            self._without.clear()

    @property
    def copies(self) -> int:
        """How many packed weights there are."""
        return len(self._handles)

    def _find(self, look: Hashable, x: torch.Tensor, bias: torch.Tensor | None) -> Prepacked | str:
        with _lock:
            if known := self._handles.get(look) or self._without.get(look):  # another thread was quicker
                return known
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                return "loading a kernel would break the CUDA graph being captured; call it once before"
            if len(self._handles) >= MOST_COPIES:
                return f"its weight is packed for {MOST_COPIES} other inputs"
            try:
                handle = self._load(x, bias)
            except KsearchError as error:
                reason = str(error)
            else:
                if isinstance(handle, Prepacked) and handle.kernel is not None:
                    self._handles[look] = handle
                    return handle
                reason = handle.reason or "PyTorch is the fastest that was found"
            if len(self._without) >= _MOST_LOOKS:
                self._without.clear()
            self._without[look] = reason
            return reason

    def _load(self, x: torch.Tensor, bias: torch.Tensor | None) -> Handle:
        """Raises KsearchError."""
        return load_best(
            "linear",
            (*x.shape, len(self.weight)),
            x.dtype,
            x.device,
            policies=("strict",),
            options={"bias": NONE if bias is None else "row"},
            weight=self.weight,
            required=True,
        )


def forget() -> None:
    """Let every layer look for its kernels again."""
    for each in list(_all):
        each.clear()


def _after_fork() -> None:
    """Another thread may have held the lock when the process was forked."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
