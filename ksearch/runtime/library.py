"""Ops as PyTorch's dispatcher knows them: `torch.ops.ksearch.softmax`, which graphs can hold.

An op is registered twice. `ksearch::softmax` is the op itself: it looks for a kernel when it runs, so that
its sizes may be unknown while a graph is made. `ksearch_graph::softmax` is what `ksearch.ops.softmax` is to a
compiler: it becomes the former where a kernel is known, and else the op's own PyTorch function, which the
compiler can fuse with what stands around it.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.autograd import forward_ad
from torch.library import Library, register_fake, register_vmap
from torch.utils._python_dispatch import _disable_current_modes

from ksearch.errors import KsearchError
from ksearch.operators import registry
from ksearch.operators.program import as_tuple
from ksearch.runtime import gradients, mapped, schema
from ksearch.runtime.autocast import Casts
from ksearch.runtime.direct import Direct
from ksearch.runtime.outputs import Outputs, as_result

if TYPE_CHECKING:
    from ksearch.operators import Op
    from ksearch.types import Option

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_OWN = "ksearch"
_GRAPH = "ksearch_graph"

_is_alias_of: Callable[[torch.Tensor, torch.Tensor], bool] = getattr(torch._C, "_is_alias_of")  # noqa: B009

_registered: dict[str, Registered] = {}
_lock = threading.RLock()
_at_work = threading.local()


def is_registering() -> bool:
    """Whether this thread is in `register`: PyTorch asks there whether the op is known by that name."""
    return getattr(_at_work, "registers", False)


class Backing(Protocol):
    """What runs an op."""

    def __call__(self, *args: Any, out: Outputs | None = None, **named: Any) -> Outputs: ...

    def quickly(self, args: tuple[Any, ...], out: Outputs | None) -> Outputs | None: ...

    def has_kernel(self, tensors: Sequence[torch.Tensor | None], options: Mapping[str, Any]) -> bool: ...


def register(op: Op, backing: Backing) -> Registered | None:
    """Make `torch.ops.ksearch.<name>` of an op, or run another definition of that name from now on.

    None where the op cannot be traced, so that nobody knows what it gives.
    """
    try:
        outputs = op.template_op.outputs if op.template_op is not None else len(op.program().outputs)
    except KsearchError:
        return None
    takes, gives = schema.arguments(op), schema.results(outputs)
    with _lock:
        _at_work.registers = True
        try:
            found = _registered.get(op.name)
            if found is not None and found.schema != (takes, gives):
                found.forget()
                found = None
            if found is None:
                found = _registered[op.name] = Registered(op, takes, gives)
            found.serve(op, backing)
        finally:
            _at_work.registers = False
    return found


class Registered:
    """One op in PyTorch's dispatcher."""

    def __init__(self, op: Op, takes: str, gives: str) -> None:
        """It can be called after `serve`. The two texts are its schema."""
        self.schema = takes, gives
        name = self._name = op.name
        self._libraries = [Library(space, "FRAGMENT") for space in (_OWN, _GRAPH)]
        own, graph = self._libraries
        own.define(f"{name}{takes} -> {gives}", tags=_TAGS)
        # For any device, so that what the launcher starts may stand before them, on CPUs and GPUs alone.
        own.impl(name, self._run, "CompositeExplicitAutograd")
        own.impl(name, self._differentiably, "Autograd", with_keyset=True)
        for kind in ("CPU", "CUDA"):
            own.impl(name, self._cast_for(kind), f"Autocast{kind}")
        register_fake(f"{_OWN}::{name}", self.function, lib=own)
        register_vmap(f"{_OWN}::{name}", self._mapped, lib=own)
        graph.define(f"{name}{schema.arguments(op, 'str winners')} -> {gives}", tags=_TAGS[:1])
        graph.impl(name, self._in_graph, "CompositeImplicitAutograd")
        self.overload = getattr(getattr(torch.ops, _OWN), name).default
        self.in_graph = getattr(getattr(torch.ops, _GRAPH), name).default
        self._direct = Direct(self.overload, self._run, self._differentiably, self._quickly)

    def serve(self, op: Op, backing: Backing) -> None:
        """Calls are of this op from now on."""
        self._op = op
        self._backing = backing
        self.forget_kernels()
        self._defaults = op.keywords(op.options)
        self._rule = gradients.rule_of(op)
        self._casts = Casts(self.function)

    def learn(
        self,
        backing: Backing,
        tensors: Sequence[torch.Tensor | None],
        options: Mapping[str, Any],
        started: Any,
    ) -> None:
        """Calls of tensors that look like these, with those options, may be started by that launcher."""
        given = self._keywords(options)
        values = tuple([None if schema.is_unwritten(value) else value for value in given.values()])
        with _lock:  # else what was just taken over by another backing would run this one's kernel
            if backing is self._backing:
                self._direct.add(tuple(tensors), values, started)

    def forget_kernels(self) -> None:
        """Start nothing without Python until more is learned; with the launcher that there is now."""
        with _lock:
            self._direct.clear()

    def forget(self) -> None:
        """Take the op back."""
        self._direct.close()
        for space, library in zip((_OWN, _GRAPH), self._libraries, strict=True):
            library._destroy()
            vars(getattr(torch.ops, space)).pop(self._name, None)

    def function(self, *tensors: torch.Tensor | None, **options: Option) -> Outputs:
        """What PyTorch runs; like every result of an op, none is an input, nor another result."""
        results = as_tuple(self._op.function(*tensors, **self._keywords(options)))
        return as_result(_apart(results, tensors))

    def _keywords(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options of the function: PyTorch leaves out what is the default, and None stands for one that
        a schema cannot write."""
        if not options:
            return self._defaults
        return {**self._defaults, **{name: value for name, value in options.items() if value is not None}}

    def _run(self, *tensors: torch.Tensor | None, **options: Option) -> Outputs:
        if not options:
            found = self._backing.quickly(tensors, None)
            if found is not None:
                return found
        return self._slowly(tensors, options)

    def _quickly(self, tensors: tuple[Any, ...]) -> Outputs | None:
        return self._backing.quickly(tensors, None)

    def _slowly(self, tensors: Sequence[torch.Tensor | None], options: Mapping[str, Any]) -> Outputs:
        """A call that is to be looked at."""
        results = as_tuple(self._backing(*tensors, **self._keywords(options)))
        return as_result(_apart(results, tensors))

    def _in_graph(self, *tensors: torch.Tensor | None, winners: str, **options: Option) -> Outputs:
        """`winners` keeps graphs apart that PyTorch caches on disk: others may be known there."""
        with _disable_current_modes():
            pays = bool(winners) and self._pays(tensors, self._keywords(options))
        return self.overload(*tensors, **options) if pays else self.function(*tensors, **options)

    def _pays(self, tensors: Sequence[torch.Tensor | None], options: Mapping[str, Any]) -> bool:
        """Whether there is a kernel, and for the gradient, too, where one is needed."""
        if not self._backing.has_kernel(tensors, options):
            return False
        if not (torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)):
            return True
        return self.has_gradient(tensors, options)

    def has_gradient(self, tensors: Sequence[torch.Tensor | None], options: Mapping[str, Any]) -> bool:
        """Whether a kernel is known for the gradient of these tensors."""
        rule, first = self._rule, tensors[0]
        if rule is None or first is None:
            return False
        given = rule.tensors(first, tensors, first)
        return _other(rule.op)[1].has_kernel(given, rule.options(options))

    # ---- gradients --------------------------------------------------------------------------------------

    def _differentiably(self, keyset: Any, *tensors: torch.Tensor | None, **options: Option) -> Any:
        # What is as in an earlier call wants no gradient, and is in no transform.
        if not options and type(tensors[0]) is torch.Tensor and not torch._C._len_torch_dispatch_stack():
            found = self._backing.quickly(tensors, None)
            if found is not None:
                return found
        # A transform, or a forward derivative, goes through what PyTorch knows.
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return self.function(*tensors, **options)
        if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors):
            return _Differentiable.apply(self, keyset, options, *tensors)  # type: ignore[no-untyped-call]
        if torch._C._len_torch_dispatch_stack() == 0 and not any(map(_is_special, tensors)):
            return self._slowly(tensors, options)  # where the dispatcher ends, too, 6 us later
        with torch._C._AutoDispatchBelowAutograd():
            return self.below(keyset, tensors, options)

    def below(self, keyset: Any, tensors: Sequence[torch.Tensor | None], options: Mapping[str, Any]) -> Any:
        """The op without gradients."""
        return self.overload.redispatch(keyset & torch._C._after_autograd_keyset, *tensors, **options)

    def gradient(
        self,
        grads: Sequence[torch.Tensor],
        tensors: Sequence[torch.Tensor | None],
        results: Sequence[torch.Tensor],
        options: Mapping[str, Any],
        wanted: Sequence[bool],
    ) -> list[torch.Tensor | None]:
        """With respect to those tensors that are `wanted`. PyTorch alone where it is to be differentiated
        again."""
        again = torch.is_grad_enabled()
        found: list[torch.Tensor | None] = [None] * len(tensors)
        rest = list(wanted)
        rule = self._rule
        if rule is not None and rest[0] and not again:
            given = rule.tensors(grads[0], tensors, results[0])
            choices = rule.options(self._keywords(options))
            derivative, backing = _other(rule.op)
            given = tuple(None if each is None else each.contiguous() for each in given)
            with _disable_current_modes():
                pays = not rule.needs_input or backing.has_kernel(given, choices)
            if pays:
                # In a graph that is being made, what has no kernel is to be seen, and fused.
                derived = derivative.in_graph(*given, winners="known", **choices)
                found[0], rest[0] = derived, False
        if any(rest):

            def function(*inputs: Any) -> Any:
                return self.function(*inputs, **options)

            others = gradients.differentiate(function, tensors, grads, rest, again=again)
            found = [mine if mine is not None else other for mine, other in zip(found, others, strict=True)]
        return found

    # ---- autocast and vmap ------------------------------------------------------------------------------

    def cast(
        self, kind: str, tensors: Sequence[torch.Tensor | None], options: Mapping[str, Any]
    ) -> list[torch.Tensor | None]:
        """The tensors as autocast on that kind of device casts them. Raises LookupError; see Casts."""
        dtype = self._casts.dtype(kind, tensors, options)
        return [each if each is None or dtype is None else each.to(dtype) for each in tensors]

    def _cast_for(self, device: str) -> Callable[..., Any]:
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

        def call(*tensors: torch.Tensor | None, **options: Option) -> Any:
            try:
                given = self.cast(device.lower(), tensors, self._keywords(options))
            except LookupError:
                return self.function(*tensors, **options)
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return self.overload(*given, **options)

        return call

    def _mapped(self, info: Any, in_dims: Sequence[int | None], *tensors: Any, **options: Option) -> Any:
        function = functools.partial(self.overload, **options)
        return mapped.call(self._op, function, info.batch_size, in_dims, tensors, self._keywords(options))


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, registered: Registered, keyset: Any, options: Any, *tensors: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            results = registered.below(keyset, tensors, options)
        ctx.registered, ctx.options, ctx.count = registered, options, len(tensors)
        ctx.save_for_backward(*tensors, *as_tuple(results))
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        saved, count = ctx.saved_tensors, ctx.count
        wanted = ctx.needs_input_grad[3:]
        found = ctx.registered.gradient(grads, saved[:count], saved[count:], ctx.options, wanted)
        return (None, None, None, *found)


def _is_special(tensor: torch.Tensor | None) -> bool:
    """Whether PyTorch's dispatcher may do something of its own with it."""
    return tensor is not None and not (type(tensor) is torch.Tensor and (tensor.is_cuda or tensor.is_cpu))


def _other(name: str) -> tuple[Registered, Backing]:
    """An op that another one's gradient needs."""
    from ksearch.runtime.table import dispatcher  # its ops are registered here

    backing = dispatcher(name)
    return _registered[name], backing


def _apart(
    results: tuple[torch.Tensor, ...], tensors: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor, ...]:
    """The results, each in memory of its own."""
    taken = [each for each in tensors if each is not None]
    kept = []
    for result in results:
        shared = any(result is other or _is_alias_of(result, other) for other in taken)
        kept.append(result.clone() if shared else result)
        taken.append(kept[-1])
    return tuple(kept)


def _renew(name: str) -> None:
    """An op that was defined again is another one, for graphs, too."""
    if name in _registered:
        _other(name)


registry.observers.append(_renew)


def _after_fork() -> None:
    """Another thread may have held the lock when the process was forked."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
