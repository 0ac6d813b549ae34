"""`with ksearch.capture("workloads.toml"):` writes down which workloads a program runs, to be tuned later.

What is seen: every call of `ksearch.ops`, and on the thread that entered every call of a PyTorch function
that a built-in op equals, in whatever way it is written (`x.softmax(-1)`, `x + y`, `torch.nn.LayerNorm`).
Calls of a handle are not: what it runs is known.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.overrides import TorchFunctionMode

from ksearch import operators
from ksearch.errors import KsearchError, UsageError
from ksearch.runtime.captured import Captured, read_counts, write_counts
from ksearch.runtime.dispatch import Dispatcher
from ksearch.runtime.outputs import Outputs
from ksearch.runtime.precision import allows_tf32
from ksearch.runtime.reading import Reader
from ksearch.runtime.traced import is_traced
from ksearch.types import ITEMSIZE

if TYPE_CHECKING:
    from ksearch.operators import Op

_NAMESPACES = ("torch", "torch.nn.functional", "torch.special", "torch.Tensor")
_OPERATORS = {"add": ("__add__", "__radd__"), "mul": ("__mul__", "__rmul__")}

_captures: list[capture] = []
_lock = threading.Lock()
_plain_call = Dispatcher.__call__


class capture(TorchFunctionMode):  # noqa: N801  (used as a function is: with ksearch.capture(...))
    """Counts calls while it is entered, and adds them to a study file when it is left, most expensive first.

    `path` may exist: then counts are added to its own. Nothing is written where nothing was seen. What is
    called inside a torch.compile is not seen: capture before compiling.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises UsageError where `path` exists and is no study, or its folder does not."""
        super().__init__()
        self.path = Path(path).expanduser().absolute()
        if not self.path.parent.is_dir():
            raise UsageError(f"cannot write {self.path}: there is no folder {self.path.parent}")
        read_counts(self.path)  # a file that cannot be added to is told now, not after the program
        self.counts: Counter[Captured] = Counter()
        self.passed_over: Counter[str] = Counter()
        """Calls of ops that no kernel could answer, by op and reason."""
        self._inside = threading.local()

    def __enter__(self) -> Self:
        with _lock:
            _captures.append(self)
            # Put there only now, so that a call costs nothing while nobody counts.
            setattr(Dispatcher, "__call__", _counted_call)  # noqa: B010  (mypy knows methods as constant)
        TorchFunctionMode.__enter__(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        TorchFunctionMode.__exit__(self, kind, error, trace)
        with _lock:
            _captures.remove(self)
            if not _captures:
                setattr(Dispatcher, "__call__", _plain_call)  # noqa: B010
        if self.counts:
            write_counts(self.path, self.counts, self.passed_over)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        op = _equal_ops().get(func)
        if op is not None and not getattr(self._inside, "an_op", False) and not is_traced():
            self.count(op, args, named)
        return func(*args, **named)

    def count(self, op: Op, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """One call of the op, or of the PyTorch function that it equals, with these arguments."""
        first = args[0] if args else named.get("input", named.get(op.inputs[0].name))
        if not isinstance(first, torch.Tensor) or first.device.type not in ("cpu", "cuda"):
            return
        rest = args or (first,)
        others = named if args else {name: each for name, each in named.items() if each is not first}
        try:
            found = _captured(op, rest, others)
        except KsearchError as error:
            found = str(error)
        with _lock:
            if isinstance(found, str):
                self.passed_over[f"{op.name}: {found}"] += 1
            else:
                self.counts[found] += 1


def _counted_call(self: Dispatcher, *args: Any, out: Outputs | None = None, **named: Any) -> Outputs:
    """In the place of `Dispatcher.__call__` while something is captured."""
    with _lock:
        active = list(_captures)
    for each in active:
        if not getattr(each._inside, "an_op", False) and not is_traced():
            each.count(self.op, args, named)
    for each in active:
        each._inside.an_op = True  # what PyTorch runs for it is no call of its own
    try:
        return _plain_call(self, *args, out=out, **named)
    finally:
        for each in active:
            each._inside.an_op = False


def _captured(op: Op, args: tuple[Any, ...], named: Mapping[str, Any]) -> Captured | str:
    """What the call asks for, or why no kernel could answer it. Raises KsearchError."""
    first: torch.Tensor = args[0]
    reading = _reader(op).read(args, named)
    if reading.reason:
        return reading.reason
    dtype = str(first.dtype).removeprefix("torch.")
    if dtype not in ITEMSIZE:
        return f"there are no kernels for {dtype}"
    policy = "tf32" if reading.has_linear and dtype == "float32" and allows_tf32() else "strict"
    options = {**reading.options, **reading.roles}
    op.workload(reading.dims, dtype, policy=policy, **options)  # an empty tensor, for one, cannot be tuned
    stated = tuple((name, value) for name, value in op.bind(options) if value != op.options[name])
    contiguous = all(tensor.is_contiguous() for tensor in reading.tensors(args, named))
    return Captured(
        op=op.location,
        shape=reading.dims,
        dtype=dtype,
        policy=policy,
        options=stated,
        needs="" if contiguous else "a tensor that is not contiguous",
        backend=first.device.type,
    )


@functools.lru_cache(maxsize=256)
def _reader(op: Op) -> Reader:
    return Reader(op)


@functools.cache
def _equal_ops() -> dict[Any, Op]:
    """PyTorch's functions and methods -> the built-in op that is the same, where the name says that it is."""
    found: dict[Any, Op] = {}
    for op in map(operators.get, operators.names()):
        if not op.torch_function:
            continue
        name = op.torch_function.rpartition(".")[2]
        for space in _NAMESPACES:
            home = functools.reduce(getattr, space.split(".")[1:], torch)
            for each in (name, *(_OPERATORS.get(name, ()) if space == "torch.Tensor" else ())):
                if (function := getattr(home, each, None)) is not None:
                    found[function] = op
    return found
