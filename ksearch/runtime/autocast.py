"""What autocast makes of an op: found out by watching PyTorch run the op's own function under it.

A kernel computes in the dtype that it is given. Where PyTorch casts all tensors to one dtype first and then
does what it does without autocast, the kernel for that dtype is the answer; where it does something else,
such as casting halfway, only PyTorch is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ksearch.operators.program import as_tuple

_CASTS = (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)
_MOST_KEPT = 1024

_Seen = list[tuple[Any, ...]]


def is_on_for(args: tuple[Any, ...]) -> bool:
    """Whether PyTorch casts the tensors of such a call."""
    first = args[0] if args else None
    if not isinstance(first, torch.Tensor) or first.device.type not in ("cpu", "cuda"):
        return False
    return torch.is_autocast_enabled(first.device.type)


class Casts:
    """For one op: the dtype that its tensors are cast to."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._known: dict[Hashable, torch.dtype | str | None] = {}

    def dtype(
        self, kind: str, tensors: Sequence[torch.Tensor | None], options: Mapping[str, Any]
    ) -> torch.dtype | None:
        """What all tensors are cast to under the autocast that is on for devices of that `kind`.

        Raises LookupError where that is not what PyTorch does: then run the function under it.
        """
        wanted = torch.get_autocast_dtype(kind)
        sizes = _small([None if tensor is None else tuple(tensor.shape) for tensor in tensors])
        dtypes = tuple(None if tensor is None else tensor.dtype for tensor in tensors)
        key = (kind, wanted, sizes, dtypes, repr(sorted(options.items())))
        found = self._known.get(key, "")
        if found == "":  # two threads may find it out at once: they find the same
            found = self._watch(kind, wanted, sizes, dtypes, options)
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            self._known[key] = found
        if isinstance(found, str):
            raise LookupError(found)
        return found

    def _watch(
        self,
        kind: str,
        wanted: torch.dtype,
        sizes: tuple[Any, ...],
        dtypes: tuple[torch.dtype | None, ...],
        options: Mapping[str, Any],
    ) -> torch.dtype | str | None:
        def run(dtype: torch.dtype | None, guard: AbstractContextManager[Any]) -> _Seen:
            from torch._subclasses import FakeTensorMode  # takes 0.3 s, and few programs need it

            with _disable_current_modes(), torch.no_grad(), FakeTensorMode(), guard:
                given = [
                    None if size is None else torch.empty(size, dtype=dtype or own, device=kind)
                    for size, own in zip(sizes, dtypes, strict=True)
                ]
                watch = _Watch()
                with watch:
                    results = as_tuple(self._function(*given, **options))
            return [*watch.seen, tuple(result.dtype for result in results)]

        try:
            under = run(None, nullcontext())
            for dtype in (None, torch.float32, wanted):
                if run(dtype, torch.autocast(kind, enabled=False)) == under:
                    return dtype
        except Exception as error:  # noqa: BLE001  (the op's own function: it may raise anything)
            return f"{type(error).__name__}: {error}"
        return "it casts halfway"


class _Watch(TorchDispatchMode):
    """Every function that computes, with the dtypes that it is given, casts left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: _Seen = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _CASTS and func.namespace != "prim":  # those only ask, for a device say
            dtypes = [each.dtype for each in args if isinstance(each, torch.Tensor)]
            self.seen.append((func, *dtypes))
        return func(*args, **(kwargs or {}))


def _small(shapes: Sequence[tuple[Any, ...] | None]) -> tuple[tuple[int, ...] | None, ...]:
    """Small shapes of which those dims are equal that were: no dtype depends on more."""
    numbers = {"1": 1, "0": 0}
    return tuple(
        None if shape is None else tuple(numbers.setdefault(str(dim), len(numbers)) for dim in shape)
        for shape in shapes
    )
