"""A linear whose weight is a constant: it is packed once, and again where it was changed.

`ksearch.load(..., prepacked=weight)` gives such a handle. It takes the op's other tensors; weight and packed
weight stay in memory as long as it does. It is for inference: a gradient goes PyTorch's way.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch

from ksearch.errors import UsageError
from ksearch.operators.program import Role
from ksearch.runtime.handle import Handle
from ksearch.runtime.outputs import Outputs
from ksearch.runtime.traced import is_traced
from ksearch.types import Option

if TYPE_CHECKING:
    from ksearch.operators import Op


class Prepacked(Handle):
    """A handle with a weight of its own. Safe to call as any handle; who changes the weight waits for calls
    that are under way, as with PyTorch."""

    def __init__(self, op: Op, options: Mapping[str, Option], *, weight: torch.Tensor, **facts: Any) -> None:
        """`facts` are those of a Handle. Raises UsageError where the weight is not the workload's, or one
        whose changes cannot be seen."""
        super().__init__(op, options, **facts)
        self._place = [item.role for item in op.inputs_for(options)].index(Role.RIGHT)
        self.weight = weight
        self._check()
        self._lock = threading.Lock()
        self._packed: tuple[int, int] | None = None
        """Place and version of the weight that was packed."""
        self._follow()

    def __call__(self, *tensors: torch.Tensor, out: Outputs | None = None) -> Outputs:
        """The op of these tensors, in their order but without the weight; else as a handle's call."""
        given = [tensor for tensor in tensors if tensor is not None]
        given.insert(self._place, self.weight)
        if self.kernel is not None and not is_traced():
            self._follow()
        return super().__call__(*given, out=out)

    def __copy__(self) -> Self:
        """With the same weight, packed for itself."""
        load, arguments = self.__reduce__()
        copied: Self = load(*arguments)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """With a copy of the weight: that of the model's copy, where it is in a model."""
        load, arguments = self.__reduce__()
        copied: Self = load(*copy.deepcopy(arguments, memo))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        load, arguments = super().__reduce__()
        return load, (*arguments, self.weight)

    def repack(self) -> None:
        """Pack the weight again: after a change that PyTorch keeps no count of, by way of `weight.data`."""
        with self._lock:
            self._packed = None
        self._follow()

    def _follow(self) -> None:
        """See that what is packed is the weight as it is now. While a graph is captured nothing is packed:
        where that is needed, the call runs PyTorch."""
        now = (self.weight.data_ptr(), self.weight._version)
        if self.kernel is None or now == self._packed:
            return
        with self._lock:
            if now != self._packed:
                self._packed = now if self.kernel.pack(self.weight.detach()) else None

    def _check(self) -> None:
        assert self.workload is not None
        wanted = self.workload.cols, self.workload.inner
        weight = self.weight
        kind = weight.device.type if self.target is None else self.target.backend
        dtype = str(weight.dtype).removeprefix("torch.")
        if (tuple(weight.shape), dtype, weight.device.type) != (wanted, self.workload.dtype, kind):
            raise UsageError(
                f"prepacked is a weight of {'x'.join(map(str, weight.shape))} {dtype} on {weight.device}: "
                f"{self.workload} takes one of {wanted[0]}x{wanted[1]} {self.workload.dtype} on {kind}"
            )
        if weight.is_inference():
            raise UsageError(
                "prepacked is a tensor made in inference mode, of whose changes PyTorch keeps no count: "
                "clone it outside of torch.inference_mode()"
            )
