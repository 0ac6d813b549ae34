"""TemplateOp: an op that brings its own kernel template, space and rules.

For what cannot be traced, or where a hand-written kernel is wanted: subclass it, decorate the class
with `@ksearch.op`, and put the Jinja2 template beside the file.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ksearch.errors import UsageError
from ksearch.launch import Launch
from ksearch.operators.program import Input, Node, Program
from ksearch.operators.signature import Signature, check_signature
from ksearch.types import Config, ConfigValue, Option, Target, Workload, digest

if TYPE_CHECKING:
    from torch import Tensor

BACKENDS = ("cpu", "cuda")


class TemplateOp(ABC):
    """An op with an own template; docs/own-template.md shows one in full."""

    name: ClassVar[str] = ""
    inputs: ClassVar[Mapping[str, str]] = {"x": "full"}
    """Name -> role (`full`, `row`, `column`, `scalar`) of each tensor; the first is full."""
    outputs: ClassVar[int] = 1
    """How many tensors `reference` gives and the kernel writes."""
    options: ClassVar[Mapping[str, Option]] = {}
    """Keyword options with their defaults."""
    templates: ClassVar[Mapping[str, str]] = {}
    """Backend (`cpu`, `cuda`) -> name of the template, a file beside the one that defines the class."""

    @abstractmethod
    def reference(self, *tensors: Tensor, **options: Any) -> Tensor | tuple[Tensor, ...]:
        """The same in plain PyTorch, for any dtype; on blocks of rows too; a tuple if `outputs` is not 1."""

    @abstractmethod
    def space(self, workload: Workload, target: Target) -> Mapping[str, Sequence[ConfigValue]]:
        """The allowed values of each parameter that the template uses."""

    @abstractmethod
    def launch(self, config: Config, workload: Workload, target: Target) -> Launch:
        """How a kernel of this config is started."""

    def is_valid(self, config: Config, workload: Workload, target: Target) -> bool:
        """Whether the values of this config go together; the one statement of the constraints."""
        return True

    def guesses(self, workload: Workload, target: Target) -> Sequence[Config]:
        """Configs to try first, best first."""
        return ()

    def variables(self, config: Config, workload: Workload, target: Target) -> Mapping[str, Any]:
        """What the template sees besides the config, the options and the workload."""
        return {}

    def program(self, inputs: tuple[Input, ...]) -> Program:
        """A Program that computes nothing, and changes with the inputs and the text of `reference`."""
        nodes = [Node("input", (item.name,)) for item in inputs]
        nodes.append(Node("source", (digest(inspect.getsource(type(self).reference)),)))
        return Program(inputs, tuple(nodes), (len(nodes) - 1,) * self.outputs)


def check_class(cls: type[TemplateOp]) -> Signature:
    """The inputs and options of a user's class. Raises UsageError naming the attribute that is wrong."""
    if missing := sorted(cls.__abstractmethods__):
        raise UsageError(f"{cls.__name__}: method {missing[0]!r} is missing")
    if not isinstance(cls.name, str) or not cls.name.isidentifier():
        raise UsageError(f"{cls.__name__}.name is {cls.name!r}: it must be a name such as 'my_softmax'")
    for attribute in ("inputs", "options", "templates"):
        value = getattr(cls, attribute)
        if not isinstance(value, Mapping):
            raise UsageError(f"{cls.__name__}.{attribute} is {value!r}: it must be a dict")
    if type(cls.outputs) is not int or cls.outputs < 1:
        raise UsageError(f"{cls.__name__}.outputs is {cls.outputs!r}: it must be a whole number from 1 on")
    try:
        folder = Path(inspect.getfile(cls)).parent
    except (TypeError, OSError):
        raise UsageError(f"{cls.__name__} was typed in: put it into a file beside its template") from None
    if not cls.templates:
        raise UsageError(f"{cls.__name__}.templates is empty: name a template for {' or '.join(BACKENDS)}")
    for backend, template in cls.templates.items():
        if backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise UsageError(f"{cls.__name__}.templates names backend {backend!r}; there is {known}")
        if not (folder / template).is_file():
            raise UsageError(f"{cls.__name__}.templates[{backend!r}]: there is no file {folder / template}")
    signature = check_signature(cls.__name__, cls.inputs, cls.options)
    if operand := next((item for item in signature.inputs if item.role.is_operand), None):
        raise UsageError(
            f"{cls.__name__}.inputs: the role {str(operand.role)!r} of {operand.name!r} is for a linear that "
            "ksearch computes, not for an own template"
        )
    return signature
