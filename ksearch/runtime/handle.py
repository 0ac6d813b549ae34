"""A tuned op, ready to call: the winning kernel where it fits the tensors, PyTorch where it does not.

The answer is always right: what a kernel cannot take runs PyTorch, and the log says so once.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ksearch.errors import UsageError
from ksearch.runtime.call import KernelCall
from ksearch.runtime.notice import warn_once
from ksearch.types import Option, Target, Winner, Workload

if TYPE_CHECKING:
    from ksearch.operators import Op


class Match(enum.StrEnum):
    """How good the answer of a lookup is."""

    EXACT = "exact"
    """This workload was tuned on this target; what won runs, be it a kernel or PyTorch."""
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
        self._options = dict(options)
        self._call = call

    def __call__(self, *tensors: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The op of these tensors, into `out` where it is given. Raises UsageError where it does not fit."""
        call = self._call
        if call is not None and not torch.compiler.is_compiling():
            result = call(tensors, out)
            if isinstance(result, torch.Tensor):
                return result
            key = (self.workload, self.target and self.target.key, result)
            warn_once(key, f"a call of {self.workload} runs PyTorch, because {result}")
        return run_pytorch(self.op, self._options, tensors, out)

    def __repr__(self) -> str:
        if self.winner is None or self.target is None:
            return f"<ksearch {self.workload or self.op.name}: {self.match}, runs PyTorch: {self.reason}>"
        runs = (
            "PyTorch, which won" if self._call is None else f"a kernel, {self.winner.speedup:.2f} x PyTorch"
        )
        return f"<ksearch {self.workload} on {self.target.device}: {self.match}, runs {runs}>"


def run_pytorch(
    op: Op, options: Mapping[str, Option], tensors: tuple[torch.Tensor, ...], out: torch.Tensor | None
) -> torch.Tensor:
    """The op's own function; like a kernel it keeps the dtype, whatever autocast would make of it."""
    kind = tensors[0].device.type if tensors and isinstance(tensors[0], torch.Tensor) else "cpu"
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return run_pytorch(op, options, tensors, out)
    result: torch.Tensor = op.reference(*tensors, **options)
    if out is None:
        return result
    if (out.shape, out.dtype, out.device) != (result.shape, result.dtype, result.device):
        raise UsageError(
            f"{op.name}: out is {_describe(out)}, but the result is {_describe(result)}; "
            "make it with torch.empty_like"
        )
    return out.copy_(result)


def _describe(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
