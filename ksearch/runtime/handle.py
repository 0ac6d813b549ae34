"""A tuned op, ready to call: the winning kernel where it fits the tensors, PyTorch where it does not.

The answer is always right: what a kernel cannot take runs PyTorch, and the log says so once.
"""

from __future__ import annotations

import enum
import functools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

from ksearch.operators.program import as_tuple
from ksearch.runtime.call import KernelCall
from ksearch.runtime.notice import warn_once
from ksearch.runtime.outputs import Outputs, as_result, write
from ksearch.runtime.quick import Quick, make
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


@dataclass(frozen=True, slots=True)
class Asked:
    """What a handle was loaded by, in what any process understands: it is in the handle's pickles."""

    op: str
    """Where it is defined."""
    shape: tuple[int, ...]
    dtype: str
    device: str | None
    """None: the first GPU, or the CPU where there is none."""
    db: str | None
    """A database; None: the one in use, or the bundle."""
    bundle: str | None
    seal: str | None
    """The SHA-256 of a bundle that was signed with the key that was asked for: it may not be another one."""
    policies: tuple[str, ...]
    options: tuple[tuple[str, Option], ...]


class Handle(functools.partial[Outputs]):
    """What `ksearch.load` returns. Safe to call from several threads, on any stream, and under autograd.

    Called as `handle(*tensors, out=None)` it gives the op of these tensors, into `out` where that is given: a
    tuple of tensors, as is the result, where the op has several outputs. A tensor that this workload does not
    have may be left out or be None. Raises UsageError where it does not fit.

    It is a partial because Python calls one as it does a function: a method `__call__` took 0.15 us more.
    """

    def __new__(
        cls,
        op: Op,
        options: Mapping[str, Option],
        *,
        workload: Workload | None = None,
        target: Target | None = None,
        call: KernelCall | None = None,
        **_: Any,
    ) -> Self:
        return super().__new__(cls, _Calls(op, options, workload, target, call).function())

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
        self.kernel = call
        """What runs where it fits the tensors; None: PyTorch."""
        self.asked: Asked | None = None
        """Set by what loads it."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it is ever changed

    def __reduce__(self) -> tuple[Any, ...]:
        """By what it was loaded by: on the other side that is loaded, or PyTorch runs."""
        from ksearch.runtime.again import load_again  # it loads handles

        if self.asked is None:
            raise TypeError("a handle that ksearch.load did not give cannot be pickled")
        return load_again, (self.asked,)

    def __repr__(self) -> str:
        if self.winner is None or self.target is None:
            return f"<ksearch {self.workload or self.op.name}: {self.match}, runs PyTorch: {self.reason}>"
        runs = (
            "PyTorch, which won" if self.kernel is None else f"a kernel, {self.winner.speedup:.2f} x PyTorch"
        )
        return f"<ksearch {self.workload} on {self.target.device}: {self.match}, runs {runs}>"


class _Calls:
    """What a handle does when it is called, without the handle: what refers to itself is freed late, and it
    holds memory of the device."""

    def __init__(
        self,
        op: Op,
        options: Mapping[str, Option],
        workload: Workload | None,
        target: Target | None,
        kernel: KernelCall | None,
    ) -> None:
        self._name, self._workload, self._target = op.name, workload, target
        self._function = op.caller(options)
        self._count = len(op.inputs_for(options))
        self._kernel = kernel
        self._again: weakref.ref[Quick] | None = None
        """What `function` gave."""

    def function(self) -> Quick:
        """What a handle is."""
        if self._kernel is None:
            return self._pytorch
        made = make(self._kernel, self._slowly)
        self._again = weakref.ref(made)
        return made

    def _slowly(self, tensors: tuple[Any, ...], out: Outputs | None) -> Outputs:
        """A call that is to be looked at."""
        if len(tensors) != self._count and any(each is None for each in tensors):
            again = None if self._again is None else self._again()
            tensors = tuple([each for each in tensors if each is not None])
            if again is not None:
                result: Outputs = again(*tensors, out=out)
                return result
        if self._kernel is not None and not is_traced():
            found = self._kernel(tensors, out)
            if not isinstance(found, str):
                return found
            key = (self._workload, self._target and self._target.key, found)
            warn_once(key, f"a call of {self._workload} runs PyTorch, because {found}")
        return call_pytorch(self._name, self._function, tensors, {}, out)

    def _pytorch(self, *tensors: Any, out: Outputs | None = None) -> Outputs:
        return self._slowly(tensors, out)


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
