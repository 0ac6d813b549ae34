"""What a call means to an op: which arguments are its tensors, in which roles, and which its options.

A call may have the op's own form, `rmsnorm(x, weight, eps=1e-6)`, or PyTorch's, `rms_norm(x, (8,), weight,
1e-6)`, which the op's adapter reads. What is neither, such as a softmax over another dimension, is for
PyTorch's own function to answer.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ksearch.errors import KsearchError, UsageError
from ksearch.operators.program import Node
from ksearch.operators.roles import derive_role
from ksearch.operators.shape import Shape
from ksearch.operators.signature import NONE
from ksearch.runtime.traced import is_traced

if TYPE_CHECKING:
    from ksearch.operators import Op

Place: TypeAlias = int | str
"""Where an argument stands in a call: its position, or its name."""
Args: TypeAlias = tuple[Any, ...]
Named: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """One call without the tensors in it, so that it holds for every call whose arguments look the same."""

    function: Callable[..., Any]
    """What PyTorch runs where there is no kernel."""
    slots: tuple[Place | None, ...] | None
    """Of each tensor of the op, None for an absent one. None: `function` takes the arguments as they are."""
    options: dict[str, Any]
    """What `function` is given by name besides."""
    roles: dict[str, str] = field(default_factory=dict)
    dims: tuple[int, ...] = ()
    """The shape of the call's workload, as `Op.workload` takes it."""
    has_linear: bool = False
    reason: str = ""
    """Why there can be no kernel for such a call; empty where there can."""

    def tensors(self, args: Args, named: Named) -> tuple[torch.Tensor, ...]:
        """Those that a kernel takes: all that are there."""
        return tuple([_at(slot, args, named) for slot in self.slots or () if slot is not None])

    def arguments(self, args: Args, named: Named) -> tuple[Args, Named]:
        """What `function` is to be called with."""
        if self.slots is None:
            return args, {**self.options, **named}
        return tuple([None if slot is None else _at(slot, args, named) for slot in self.slots]), self.options


class Reader:
    """Reads the calls of one op."""

    def __init__(self, op: Op) -> None:
        self._op = op
        self._tensors = tuple(item.name for item in op.inputs)
        self._torch = torch_function(op)
        self._adapted: Mapping[str, Any] = {}
        """PyTorch's parameters with their defaults, where the op has an adapter."""
        if op.adapter is not None:
            parameters = inspect.signature(op.adapter).parameters
            self._adapted = {name: parameter.default for name, parameter in parameters.items()}
        # PyTorch takes options by position, too; an op of the user's own is called as it was defined.
        keywords = tuple(op.keywords(op.options)) if self._torch is not None else ()
        self._own = self._tensors + keywords

    def read(self, args: Args, named: Named) -> Reading:
        """`args` begins with a tensor. Raises UsageError where neither the op nor PyTorch has such a call."""
        try:
            return self._own_form(args, named)
        except UsageError as error:
            if self._torch is None:
                raise
            # torch.compile of PyTorch 2.11 cannot look into str(error)
            return self._torch_form(args, named, self._torch, error.args[0])

    def is_usual(self, reading: Reading, args: Args) -> bool:
        """Whether it is what the tensors alone would mean: PyTorch's dispatcher calls with all options."""
        try:
            plain = self.read(args, {})
        except KsearchError:
            return False
        meanings = [
            (each.slots, each.dims, each.reason, self._op.bind({**each.options, **each.roles}))
            for each in (reading, plain)
        ]
        return meanings[0] == meanings[1]

    def _own_form(self, args: Args, named: Named) -> Reading:
        op = self._op
        takes = f"{op.name} takes {len(self._tensors)} tensors ({', '.join(self._tensors)})"
        if len(args) > len(self._own):
            raise UsageError(f"{takes}, not {len(args)}")
        places = self._places(self._own, args, named)
        values = {name: _at(place, args, named) for name, place in places.items()}
        options = {name: value for name, value in values.items() if name not in self._tensors}
        self._check_options(options)
        missing = [name for name in self._tensors if values.get(name) is None]
        if any(NONE not in op.choices.get(name, ()) for name in missing):
            raise UsageError(f"{takes}, not {len(self._tensors) - len(missing)}")
        others = [values[name] for name in self._tensors if name not in missing]
        if op.adapter is not None and not all(isinstance(other, torch.Tensor) for other in others):
            raise UsageError(f"{takes}, not {', '.join(map(_describe, others))}")
        return self._reading([places.get(name) for name in self._tensors], options, args, named)

    def _torch_form(self, args: Args, named: Named, function: Callable[..., Any], why: str) -> Reading:
        adapter, names = self._op.adapter, tuple(self._adapted)
        if adapter is None:
            return Reading(function, None, {}, reason=why)
        try:
            places = self._places(names, args, named)
            if strange := sorted(places.keys() - set(names)):
                raise UsageError(f"{self._op.torch_function} has no argument {strange[0]!r}")
            options = adapter(**{name: _at(place, args, named) for name, place in places.items()})
            if isinstance(options, str):
                # The adapter's own defaults are part of the call: PyTorch has worse ones, or none.
                absent = {name: value for name, value in self._adapted.items() if name not in places}
                return Reading(function, None, absent, reason=options)
            self._check_options(options)
        except UsageError as error:
            return Reading(function, None, {}, reason=str(error))
        slots = [places.get(name) for name in (names[0], *self._tensors[1:])]
        return self._reading(slots, dict(options), args, named)

    def _check_options(self, options: Named) -> None:
        for name, value in options.items():
            if isinstance(value, torch.Tensor):  # its text is long, and torch.compile cannot know it
                raise UsageError(f"{self._op.name}: option {name} is a tensor")
        self._op.bind(options)

    def _places(self, names: Sequence[str], args: Args, named: Named) -> dict[str, Place]:
        """Where each parameter that is given stands. Raises UsageError."""
        if len(args) > len(names):
            raise UsageError(f"{self._op.name} takes {', '.join(names)}, not {len(args)} arguments")
        places: dict[str, Place] = dict(zip(names, range(len(args)), strict=False))
        for name in named:
            if name in places:
                raise UsageError(f"{self._op.name}: {name} is given twice")
            places[name] = name
        return places

    def _reading(
        self, slots: Sequence[Place | None], options: dict[str, Any], args: Args, named: Named
    ) -> Reading:
        """A tensor that is None is absent. Where PyTorch is only looked at, nobody asks for the workload."""
        values = [None if slot is None else _at(slot, args, named) for slot in slots]
        present = tuple(slot if each is not None else None for slot, each in zip(slots, values, strict=True))
        reading = Reading(self._op.function, present, options)
        return reading if is_traced() else self.understood(reading, values)

    def understood(self, reading: Reading, values: Sequence[Any]) -> Reading:
        """With what the op's tensors, in order and None for an absent one, say of the workload."""
        shapes: dict[str, Shape | None] = {}
        for name, each in zip(self._tensors, values, strict=True):
            if not isinstance(each, torch.Tensor | None):
                return replace(reading, reason=f"{name} is {_describe(each)}, not a tensor")
            shapes[name] = None if each is None else _shape(each)
        return self._with_shapes(reading, shapes)

    def _with_shapes(self, reading: Reading, shapes: Mapping[str, Shape | None]) -> Reading:
        """With the workload's shape, and the roles that the tensors of `shapes` have beside it."""
        choices = self._op.choices
        dims = shape = shapes[self._tensors[0]] or ()
        linear = self._linear(reading.options, shapes)
        if linear is not None:
            left, right = (shapes[str(name)] or () for name in linear.args)
            if len(left) < 2 or len(right) != 2 or left[-1] != right[-1]:
                reason = f"{linear.args[1]} of shape {right} is no weight for {left}"
                return replace(reading, has_linear=True, reason=reason)
            dims, shape = (*left, right[0]), (*left[:-1], right[0])
        roles: dict[str, str] = {}
        reason = ""
        for name, allowed in choices.items():
            role = derive_role(shapes[name], shape, allowed)
            if role is None:
                reason = reason or f"{name} of shape {shapes[name]} is none of: {', '.join(allowed)}"
            else:
                roles[name] = role
        return replace(reading, roles=roles, dims=dims, has_linear=linear is not None, reason=reason)

    def _linear(self, options: Named, shapes: Mapping[str, Shape | None]) -> Node | None:
        """The linear that the op starts with where these tensors are there; None where there is none."""
        if len(self._tensors) < 2:
            return None
        first_roles = {
            name: next((role for role in allowed if (role == NONE) == (shapes[name] is None)), allowed[0])
            for name, allowed in self._op.choices.items()
        }
        try:
            return self._op.program(**options, **first_roles).linear
        except KsearchError:  # it cannot be traced: there is no kernel, as the one who asks for it is told
            return None


def torch_function(op: Op) -> Callable[..., Any] | None:
    """The PyTorch function that the op equals, None where there is none."""
    module, _, name = op.torch_function.rpartition(".")
    found: Callable[..., Any] | None = getattr(importlib.import_module(module), name) if module else None
    return found


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """That of no tensor where rows differ in length."""
    return () if tensor.is_nested else tuple(tensor.shape)


def _describe(thing: object) -> str:
    """By its type alone: a message for each number would be many."""
    return f"a {type(thing).__name__}"


def _at(place: Place, args: Args, named: Named) -> Any:
    return args[place] if isinstance(place, int) else named[place]
