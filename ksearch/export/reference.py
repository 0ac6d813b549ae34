"""An op's own PyTorch function as text that needs nothing but torch: what it calls is written out with it."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import math
import textwrap
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ksearch.errors import UsageError

if TYPE_CHECKING:
    from ksearch.operators import Op

_LOOKED_THROUGH = ("torch", "torch.nn.functional", "torch.special", "torch.linalg", "math")
"""Where a function that does not say where it comes from is looked for."""


def reference_text(op: Op) -> str:
    """Imports, what the function needs, and the function, under its own name (see `reference_name`).

    Raises UsageError naming what cannot be written out.
    """
    writer = _Writer(op.name)
    if op.template_op is not None:
        writer.method(type(op.template_op).reference)
    else:
        writer.function(op.function, reference_name(op))
    if any("Tensor" in text for text in writer.definitions):
        writer.imports.add("from torch import Tensor")
    if any("Sequence[" in text for text in writer.definitions):
        writer.imports.add("from collections.abc import Sequence")
    head = "\n".join([*sorted(writer.imports), *writer.constants])
    return "\n\n\n".join([head, "\n\n".join(writer.definitions)])


def reference_name(op: Op) -> str:
    """What the function is called in that text."""
    return "reference" if op.template_op is not None else op.function.__name__


class _Writer:
    def __init__(self, op: str) -> None:
        self._op = op
        self._seen: dict[str, object] = {}
        self.imports: set[str] = set()
        self.constants: list[str] = []
        self.definitions: list[str] = []

    def function(self, function: Callable[..., Any], name: str) -> None:
        function = inspect.unwrap(function)  # decorators are left out
        if function.__name__ == "<lambda>":
            raise self._refuse(f"{name} is a lambda (write def {name})")
        text = self._source(function)
        node = next(each for each in ast.parse(text).body if isinstance(each, ast.FunctionDef))
        self._needs(function, node)
        self.definitions.append("\n".join(text.splitlines()[node.lineno - 1 :]) + "\n")
        if name != function.__name__:
            self.definitions.append(f"{name} = {function.__name__}\n")

    def method(self, method: Callable[..., Any]) -> None:
        """Without `self`, which it must not need."""
        node = ast.parse(self._source(method)).body[0]
        assert isinstance(node, ast.FunctionDef)
        self._needs(method, node)
        itself = node.args.args.pop(0).arg
        if any(isinstance(each, ast.Name) and each.id == itself for each in ast.walk(node)):
            raise self._refuse(f"its reference uses {itself!r}")
        node.decorator_list = []
        self.definitions.append(ast.unparse(node) + "\n")

    def _source(self, function: Callable[..., Any]) -> str:
        if getattr(function, "__closure__", None):
            raise self._refuse(f"{function.__name__} uses variables of the function around it")
        try:
            return textwrap.dedent(inspect.getsource(function))
        except (OSError, TypeError) as error:
            raise self._refuse(f"the text of {function.__name__} is not to be found") from error

    def _needs(self, function: Callable[..., Any], node: ast.FunctionDef) -> None:
        """Write out every global name that the function's code, or a default of its parameters, looks up."""
        defaults = [each for each in (*node.args.defaults, *node.args.kw_defaults) if each is not None]
        parts = [part for each in defaults for part in ast.walk(each)]
        of_defaults = {part.id for part in parts if isinstance(part, ast.Name)}
        for name in sorted(_names(function.__code__) | of_defaults):
            if name in function.__globals__:
                self._global(name, function.__globals__[name])
            elif name in of_defaults and not hasattr(builtins, name):
                raise self._refuse(f"a default of {function.__name__} needs {name!r}, which is no global")

    def _global(self, name: str, value: object) -> None:
        if name in self._seen:
            if self._seen[name] is not value:
                raise self._refuse(f"two things are called {name!r}")
            return
        self._seen[name] = value
        if type(value).__module__ == "ksearch.operators.builtin.functional":
            value = importlib.import_module("torch.nn.functional")
        if isinstance(value, types.ModuleType):
            module = value.__name__
            self.imports.add(f"import {module}" if module == name else f"import {module} as {name}")
        elif (text := _literal(value)) is not None:
            self.constants.append(f"{name} = {text}")
        elif (home := _home(name, value)) is not None:
            module, own = home
            self.imports.add(f"from {module} import {own}" + (f" as {name}" if own != name else ""))
        elif isinstance(value, types.FunctionType):
            self.function(value, name)
        else:
            raise self._refuse(f"it uses {name!r}, a {type(value).__name__}")

    def _refuse(self, why: str) -> UsageError:
        return UsageError(
            f"{self._op} cannot be written into one file: {why}; use torch, numbers and plain functions in it"
        )


def _names(code: types.CodeType) -> set[str]:
    """Global names and attributes, of functions inside it, too."""
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _literal(value: object) -> str | None:
    """A number, text or tuple of them, as Python writes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, tuple):
        items = [_literal(item) for item in value]
        return None if None in items else f"({''.join(f'{item}, ' for item in items)})"
    return repr(value) if isinstance(value, bool | int | float | str | None) else None


def _home(name: str, value: object) -> tuple[str, str] | None:
    """The module of torch or of Python's own that has it, and its name there."""
    module = str(getattr(value, "__module__", ""))
    stated = (module,) if module.partition(".")[0] in ("torch", "math") else ()
    places: tuple[str, ...] = (*stated, *_LOOKED_THROUGH)
    for own in (name, str(getattr(value, "__name__", name))):
        for each in places:
            if getattr(importlib.import_module(each), own, None) is value:
                return each, own
    return None
