"""Finding the handle that fits a live tensor: one dictionary lookup for each call after the first.

The cache holds what was found when a shape was first met; `refresh` drops it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import compiler
from torch.compiler import is_dynamo_compiling

from ksearch import env
from ksearch.errors import KsearchError, NoWinner, UsageError
from ksearch.operators.program import as_tuple
from ksearch.runtime import autocast, known, launcher, library, quick
from ksearch.runtime.call import KernelCall
from ksearch.runtime.handle import Handle
from ksearch.runtime.loader import load_best
from ksearch.runtime.notice import warn_once
from ksearch.runtime.outputs import Outputs, as_result, write
from ksearch.runtime.precision import allows_tf32
from ksearch.runtime.presence import Presence
from ksearch.runtime.quick import Quick
from ksearch.runtime.reading import Reader, Reading
from ksearch.runtime.route import MOST_ROUTES, Route, look
from ksearch.runtime.traced import is_compiled, is_traced

if TYPE_CHECKING:
    from ksearch.operators import Op
    from ksearch.runtime.bundle_file import BundleFile

_all: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
"""Those of bundles, too."""


class Dispatcher:
    """One op as a function of tensors: `ksearch.ops.softmax`. Safe to call from several threads."""

    def __init__(self, op: Op, bundle: BundleFile | None = None) -> None:
        """No bundle: what `ksearch.load` looks into."""
        self.op = op
        self._bundle = bundle
        self._reader = Reader(op)
        self._routes: dict[Hashable, Route] = {}
        """By how a call looks."""
        self._handles: dict[Hashable, Handle] = {}
        """By what it means: several ways of writing one call share a kernel."""
        self._quick: dict[Hashable, Quick] = {}
        """Kernels by the first tensor alone, of calls that are nothing but the op's tensors in order. They
        look at every tensor themselves, so that one which is not for a call refuses it, and gives None."""
        self._latest: Quick = _refuse
        """The one that ran last, which is asked first: to find it takes 0.25 us, to be refused by it 0.1."""
        self._router = launcher.router()
        """The same for kernels that are launched without Python; None where no launcher was built."""
        self._has_linear = False
        """Whether a call with a linear was met: then it counts, too, whether PyTorch may use TF32."""
        self._presence = Presence(op, self._reader, self._load)
        self._lock = threading.RLock()
        # What a bundle holds is for its own calls: graphs and gradients are made of what is in use.
        self._library = library.register(op, self) if bundle is None else None
        self._graph = None if self._library is None else self._library.in_graph
        """What a compiler is to see of calls that are nothing but this many tensors."""
        self._most = len(op.inputs)
        _all.add(self)

    def __call__(self, *args: Any, **named: Any) -> Outputs:
        """The op of these tensors, into `out` where it is given; the best that is known for them runs.

        Arguments are those of the op, or of the PyTorch function that it equals; tensors may be given by
        name, too. Raises UsageError where `out` does not fit, and for what neither of the two takes.
        """
        # A compiler compares the default of a parameter before each call, for which it copies the class.
        out: Outputs | None = named.pop("out", None) if named else None
        if is_dynamo_compiling():
            return self._compiled(args, named, out)
        if args and not named and type(args[0]) is torch.Tensor:
            result = self.quickly(args, out)
            if result is not None:
                return result
        if compiler.is_compiling():
            return self._compiled(args, named, out)
        if is_traced():
            return self._in_graph(args, named, out)
        if not args and named:
            args, named = self._first(named)
        if torch._C._is_any_autocast_enabled() and autocast.is_on_for(args):
            return self._under_autocast(args, named, out)
        if not args or not isinstance(args[0], torch.Tensor):
            given = f"a {type(args[0]).__name__}" if args else "nothing"
            raise UsageError(f"{self.op.name} takes a tensor first, got {given}")
        key: Hashable = tuple([look(arg) for arg in args])
        if named:
            key = (key, *((name, look(named[name])) for name in sorted(named)))
        if self._has_linear:
            key = (key, allows_tf32())
        route = self._routes.get(key) or self._find(key, args, named)
        if route.handle is None:
            return self._pytorch(route.reading, args, named, out)
        tensors = args if route.is_plain else route.reading.tensors(args, named)
        if out is None and route.handle.kernel is not None and _need_gradients(tensors):
            found = self._differentiable(route.reading, args, named)
            if found is not None:
                return found
        return route.handle(*tensors, out=out)

    def _compiled(self, args: tuple[Any, ...], named: dict[str, Any], out: Outputs | None) -> Outputs:
        """As `__call__`, where a compiler looks.

        All that it sees on the way is compared before each call of what it makes, where a hundred things took
        2 us: so calls that are nothing but the op's tensors are not read.
        """
        is_plain = len(args) == self._most and not named and out is None
        if self._graph is None or not is_plain or compiler._is_exporting_flag:
            return self._in_graph(args, named, out)
        for arg in args:
            if not isinstance(arg, torch.Tensor):
                return self._in_graph(args, named, out)
        result: Outputs = self._graph(*args, winners=known.state())
        return result

    def quickly(self, args: tuple[Any, ...], out: Outputs | None) -> Outputs | None:
        """A kernel's result where such a call was met before under the same modes, else None.

        `args` are the op's tensors, and no compiler looks.
        """
        if self._router is not None:
            launched: Outputs | None = self._router(args, out)
            if launched is not None:
                return launched
        if torch._C._is_any_autocast_enabled():  # handles know such calls, and keep the dtype
            return None
        latest = self._latest
        result: Outputs | None = latest(*args, out=out)
        if result is not None:
            return result
        first = args[0]
        try:
            found = self._quick.get((first.shape, first.dtype, first.get_device()))
        except RuntimeError:  # nested: it has no single shape
            return None
        if found is None or found is latest:
            return None
        self._latest = found
        return found(*args, out=out)  # type: ignore[no-any-return]

    def find(self, *args: Any, **named: Any) -> Handle | str:
        """What answers such a call, without running it, or why only PyTorch can.

        Raises UsageError for what neither the op nor PyTorch takes.
        """
        reading = self._reader.read(args, named)
        if reading.reason:
            return reading.reason
        try:
            return self._load(args[0], reading)
        except KsearchError as error:
            return str(error)

    def has_kernel(self, tensors: Sequence[torch.Tensor | None], options: Mapping[str, Any]) -> bool:
        """Whether a kernel is known for tensors that look like these, which may be fake; of sizes that are
        not known yet, for any."""
        return self._presence.has_kernel(tensors, options)

    def __repr__(self) -> str:
        return f"<ksearch.ops.{self.op.name}: {len(self._handles)} shapes met>"

    def __reduce__(self) -> tuple[Any, ...]:
        """By its name, as a function: models that hold it are copied, and sent to other processes."""
        if self._bundle is not None:
            raise TypeError(
                f"{self.op.name} of a bundle cannot be copied: use the bundle there, and ksearch.ops"
            )
        from ksearch.runtime.table import dispatcher  # that module keeps what is made here

        return dispatcher, (self.op.name,)

    def clear(self) -> None:
        """Look everything up again."""
        with self._lock:
            self._forget()

    def renew_lock(self) -> None:
        self._lock = threading.RLock()

    def _forget(self) -> None:
        self._routes.clear()
        self._handles.clear()
        self._quick.clear()
        self._latest = _refuse
        self._router = launcher.router()
        if self._library is not None:
            self._library.forget_kernels()
        self._presence.clear()

    def _first(self, named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The first tensor may be given by the op's name for it, or by PyTorch's."""
        for name in (self.op.inputs[0].name, "input"):
            if name in named:
                return (named[name],), {other: named[other] for other in named if other != name}
        return (), named

    def _pytorch(
        self, reading: Reading, args: tuple[Any, ...], named: dict[str, Any], out: Outputs | None
    ) -> Outputs:
        arguments, keywords = reading.arguments(args, named)
        results = as_tuple(reading.function(*arguments, **keywords))
        return as_result(results) if out is None else write(self.op.name, results, out)

    def _in_graph(self, args: tuple[Any, ...], named: dict[str, Any], out: Outputs | None) -> Outputs:
        """What a compiler is to see: where kernels may be used, an op that becomes one, or PyTorch's own."""
        if not args and named:
            args, named = self._first(named)
        reading = self._reader.read(args, named)
        if self._library is not None and out is None and reading.slots is not None and is_compiled():
            tensors, options = reading.arguments(args, named)
            if all(tensor is None or isinstance(tensor, torch.Tensor) for tensor in tensors):
                result: Outputs = self._library.in_graph(*tensors, **options, winners=known.state())
                return result
        return self._pytorch(reading, args, named, out)

    def _differentiable(
        self, reading: Reading, args: tuple[Any, ...], named: dict[str, Any]
    ) -> Outputs | None:
        """A kernel's result where there is a kernel for its gradient, too."""
        tensors, options = reading.arguments(args, named)
        if self._library is None or not self._library.has_gradient(tensors, options):
            return None
        result: Outputs = self._library.overload(*tensors, **options)
        return result

    def _under_autocast(self, args: tuple[Any, ...], named: dict[str, Any], out: Outputs | None) -> Outputs:
        """As PyTorch's functions do: on tensors of the dtype that autocast has for them."""
        reading = self._reader.read(args, named)
        tensors, options = reading.arguments(args, named)
        are_tensors = all(tensor is None or isinstance(tensor, torch.Tensor) for tensor in tensors)
        if reading.slots is not None and self._library is not None and are_tensors:
            kind = args[0].device.type
            try:
                given = self._library.cast(kind, tensors, options)
            except LookupError:  # only PyTorch does what it does then
                return self._pytorch(reading, args, named, out)
            with torch.autocast(kind, enabled=False):
                return self(*given, out=out, **options)
        return self._pytorch(reading, args, named, out)

    def _find(self, key: Hashable, args: tuple[Any, ...], named: dict[str, Any]) -> Route:
        with self._lock:
            if (known := self._routes.get(key)) is not None:  # another thread was quicker
                return known
            reading = self._reader.read(args, named)
            if reading.has_linear and not self._has_linear:  # no route that was kept so far had one
                self._has_linear = True
                key = (key, allows_tf32())
            if reading.reason:
                return self._keep(key, self._without_kernel(reading, reading.reason))
            first: torch.Tensor = args[0]
            if first.is_nested:
                return self._keep(key, self._without_kernel(reading, "a nested tensor has no single shape"))
            if first.is_cuda and torch.cuda.is_current_stream_capturing():
                reason = "loading a kernel would break the CUDA graph being captured; call it once before"
                return self._without_kernel(reading, reason)
            try:
                handle = self._load(first, reading)
            except NoWinner:
                raise
            except KsearchError as error:  # no kernel can be had for such a tensor: PyTorch has the last word
                return self._keep(key, self._without_kernel(reading, str(error)))
            route = self._keep(key, Route(reading, handle, reading.slots == tuple(range(len(args)))))
            if handle.kernel is not None and not reading.has_linear:
                self._shorten(route, handle.kernel, args, named)
            return route

    def _shorten(
        self, route: Route, kernel: KernelCall, args: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        """Let calls that look like this one find its kernel sooner."""
        first = args[0]
        is_short = route.is_plain and (not named or self._reader.is_usual(route.reading, args))
        if is_short:
            self._quick[first.shape, first.dtype, first.get_device()] = quick.make(kernel, _refuse)
        if kernel.launcher is not None:
            if is_short and self._router is not None:
                self._router.add(first, kernel.launcher)
            if self._library is not None:
                tensors, options = route.reading.arguments(args, named)
                self._library.learn(self, tensors, options, kernel.launcher)

    def _load(self, first: torch.Tensor, reading: Reading) -> Handle:
        """Raises KsearchError."""
        options = {**reading.options, **reading.roles}
        loose = reading.has_linear and first.dtype is torch.float32 and allows_tf32()
        meaning = (reading.dims, first.dtype, first.device, loose, self.op.bind(options))
        with self._lock:
            if meaning not in self._handles:
                if len(self._handles) >= MOST_ROUTES:
                    self._forget()
                self._handles[meaning] = load_best(
                    self.op,
                    reading.dims,
                    first.dtype,
                    first.device,
                    self._bundle,
                    policies=("tf32", "strict") if loose else ("strict",),
                    options=options,
                )
            return self._handles[meaning]

    def _keep(self, key: Hashable, route: Route) -> Route:
        if len(self._routes) >= MOST_ROUTES:
            self._forget()
        self._routes[key] = route
        return route

    def _without_kernel(self, reading: Reading, reason: str) -> Route:
        """Raises NoWinner where there must be one."""
        if env.require():
            raise NoWinner(f"{self.op.name} would run PyTorch: {reason} (KSEARCH_REQUIRE)")
        warn_once((self.op.name, reason), f"{self.op.name} runs PyTorch: {reason}")
        return Route(reading, None)


def _refuse(*_: Any, out: Outputs | None = None) -> None:
    """In the place of a kernel that is not for a call."""


def _need_gradients(tensors: Sequence[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _after_fork() -> None:
    """Another thread may have held a lock when the process was forked."""
    for each in list(_all):
        each.renew_lock()


os.register_at_fork(after_in_child=_after_fork)
