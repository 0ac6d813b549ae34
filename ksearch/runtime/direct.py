"""What of one op is started before PyTorch's dispatcher would: by the compiled launcher, else from Python."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ksearch.runtime import launcher
from ksearch.runtime.outputs import Outputs


class Direct:
    """Stands before the functions that are registered for any device; with a launcher, in the dispatcher."""

    def __init__(
        self,
        overload: torch._ops.OpOverload,
        run: Callable[..., Any],
        differentiably: Callable[..., Any],
        quickly: Callable[[tuple[Any, ...]], Outputs | None],
    ) -> None:
        """Calls that are not launched go to the first two functions, the second one with the dispatch keys
        first; without a launcher, calls from Python are `quickly` looked at, which may give None."""
        self._overload = overload
        self._called: Any = overload._op
        """What leads to the dispatcher from Python."""
        self._caller = _Caller(self._called, quickly)
        self._run, self._differentiably = run, differentiably
        self._launcher: object = None
        self._operator: Any = None
        self.clear()

    def add(self, tensors: tuple[torch.Tensor | None, ...], options: tuple[Any, ...], started: Any) -> None:
        """Calls of tensors that look like these, with those options, may be started by that launcher; an
        option that is a default which a schema cannot write is None."""
        if self._operator is not None:
            self._operator.add(tensors, options, started)

    def clear(self) -> None:
        """Start nothing until more is added; by the launcher that there is now."""
        if launcher.module() is not self._launcher:
            self.close()
            self._launcher = launcher.module()
            self._operator = launcher.operator(self._overload.name(), self._run, self._with_number)
            self._overload._dispatch_cache.clear()  # it says which keys have functions of their own
            if self._operator is not None:
                self._overload._op = self._operator.caller(self._called)
        if self._operator is not None:
            self._operator.clear()
        else:
            self._overload._op = self._caller

    def close(self) -> None:
        """Stand there no more."""
        self._overload._op = self._called
        if self._operator is not None:
            self._operator.close()
        self._launcher = self._operator = None

    def _with_number(self, keys: int, *tensors: torch.Tensor | None, **options: Any) -> Any:
        return self._differentiably(torch._C.DispatchKeySet.from_raw_repr(keys), *tensors, **options)


class _Caller(functools.partial[Any]):
    """As the function that leads to the dispatcher, which it calls where nothing was started: the way there
    and back took 1.2 us of 3.2 (two cores of an AMD EPYC). A partial, as handles are."""

    def __new__(
        cls, called: Callable[..., Any], quickly: Callable[[tuple[Any, ...]], Outputs | None]
    ) -> _Caller:
        function_modes: Callable[[], int] = getattr(torch._C, "_len_torch_function_stack")  # noqa: B009
        profiles: Callable[[], bool] = getattr(torch.autograd, "_profiler_enabled")  # noqa: B009

        def call(*tensors: Any, **options: Any) -> Any:
            # Modes of functions and profilers are served on the way to the dispatcher, its own modes in it;
            # all others are known by the keys of what they take.
            if (
                not options
                and tensors
                and type(tensors[0]) is torch.Tensor
                and not torch._C._len_torch_dispatch_stack()
                and not function_modes()
                and not profiles()
            ):
                found = quickly(tensors)
                if found is not None:
                    return found
            return called(*tensors, **options)

        made = super().__new__(cls, call)
        functools.update_wrapper(made, called)  # PyTorch asks for its names, and keeps the op by its hash
        return made

    def __hash__(self) -> int:
        return hash(self.__dict__["__wrapped__"])
