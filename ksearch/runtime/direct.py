"""What the compiled launcher starts of one op where PyTorch's dispatcher calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ksearch.runtime import launcher


class Direct:
    """Stands before the functions that are registered for any device, where a launcher was built."""

    def __init__(
        self, overload: torch._ops.OpOverload, run: Callable[..., Any], differentiably: Callable[..., Any]
    ) -> None:
        """Calls that are not launched go to these functions; the second one takes the dispatch keys first."""
        self._overload = overload
        self._called: Any = overload._op
        """What leads to the dispatcher from Python."""
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

    def close(self) -> None:
        """Stand there no more."""
        self._overload._op = self._called
        if self._operator is not None:
            self._operator.close()
        self._launcher = self._operator = None

    def _with_number(self, keys: int, *tensors: torch.Tensor | None, **options: Any) -> Any:
        return self._differentiably(torch._C.DispatchKeySet.from_raw_repr(keys), *tensors, **options)
