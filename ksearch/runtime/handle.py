"""A tuned op, ready to call: the winning kernel where it fits the tensors, PyTorch where it does not.

The answer is always right: what a kernel cannot take runs PyTorch, and the log says so once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ksearch.operators.program import as_tuple
from ksearch.runtime.call import KernelCall
from ksearch.runtime.notice import warn_once
from ksearch.runtime.outputs import Outputs, as_result, write
from ksearch.runtime.traced import is_traced
from ksearch.types import Option, Target, Winner, Workload

if TYPE_CHECKING:
    from ksearch.operators import Op


class Match(enum.StrEnum):
    """How good the answer of a lookup is."""

    EXACT = "exact"
    """This workload was tuned on this target; what won runs, be it a kernel or PyTorch."""
    NEAR = "near"
    """The kernel was tuned for another number of rows, and measured around this one."""
    SAME_ARCH = "same arch"
    """The kernel was tuned for this workload on another GPU of the same architecture."""
    FALLBACK = "fallback"
    """Nothing usable was found; PyTorch runs."""


class Handle:
    """What `ksearch.load` returns. Safe to call from several threads, on any stream, and under autograd."""

    def __init__(
        self,
        op: Op,
        options: Mapping[str, Option],
        *,
        match: Match,
        reason: str = "",
        workload: Workload | None = None,
        target: Target | None = None,
        winner: Winner | None = None,
        call: KernelCall | None = None,
    ) -> None:
        self.op = op
        self.match = match
        self.reason = reason
        """Why it is a FALLBACK; empty otherwise."""
        self.workload = workload
        """None where the op has no kernels for such tensors at all."""
        self.target = target
        self.winner = winner
        self._function = op.caller(options)
        self._count = len(op.inputs_for(options))
        self.kernel = call
        """What runs where it fits the tensors; None: PyTorch."""

    def __call__(self, *tensors: torch.Tensor, out: Outputs | None = None) -> Outputs:
        """The op of these tensors, into `out` where it is given: a tuple of tensors, as is the result, where
        the op has several outputs. Raises UsageError where it does not fit.

        A tensor that this workload does not have may be left out or be None.
        """
        if len(tensors) != self._count:
            tensors = tuple([tensor for tensor in tensors if tensor is not None])
        call = self.kernel
        if call is not None and not torch.compiler.is_compiling():
            result = call.quick(tensors, out)
            if not isinstance(result, str):
                return result
        if call is not None and not is_traced():
            result = call(tensors, out)
            if not isinstance(result, str):
                return result
            key = (self.workload, self.target and self.target.key, result)
            warn_once(key, f"a call of {self.workload} runs PyTorch, because {result}")
        return call_pytorch(self.op.name, self._function, tensors, {}, out)

    def __repr__(self) -> str:
        if self.winner is None or self.target is None:
            return f"<ksearch {self.workload or self.op.name}: {self.match}, runs PyTorch: {self.reason}>"
        runs = (
            "PyTorch, which won" if self.kernel is None else f"a kernel, {self.winner.speedup:.2f} x PyTorch"
        )
        return f"<ksearch {self.workload} on {self.target.device}: {self.match}, runs {runs}>"


def call_pytorch(
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    named: Mapping[str, Any],
    out: Outputs | None,
) -> Outputs:
    """A function of PyTorch; like a kernel it keeps the dtype, whatever autocast would make of it."""
    kind = args[0].device.type if args and isinstance(args[0], torch.Tensor) else "cpu"
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return call_pytorch(name, function, args, named, out)
    results = as_tuple(function(*args, **named))
    return as_result(results) if out is None else write(name, results, out)
