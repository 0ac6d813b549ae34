"""Read an op's inputs and options off its function's signature.

Positional parameters are tensors, keyword-only ones are options; their names become names in C++.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from ksearch.errors import UsageError
from ksearch.operators.program import Input, Role
from ksearch.types import Option

ROW_NAMES = ("weight", "bias", "gamma", "beta")
"""Parameters that are one value per column by PyTorch's convention."""

# fmt: off
_TAKEN = frozenset((
    "alignas", "alignof", "and", "and_eq", "asm", "auto", "bitand", "bitor", "bool", "break", "case",
    "catch", "char", "class", "compl", "concept", "const", "constexpr", "continue", "decltype", "default",
    "delete", "do", "double", "else", "enum", "explicit", "export", "extern", "false", "float", "for",
    "friend", "goto", "if", "inline", "int", "long", "mutable", "namespace", "new", "noexcept", "not",
    "not_eq", "nullptr", "operator", "or", "or_eq", "private", "protected", "public", "register",
    "requires", "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch",
    "template", "this", "throw", "true", "try", "typedef", "typeid", "typename", "union", "unsigned",
    "using", "virtual", "void", "volatile", "while", "xor", "xor_eq",
    "T", "COLS", "Element", "Row", "ks", "NULL", "NAN", "INFINITY", "linux", "unix",
))
# fmt: on
"""C++ keywords and macros, and what the generated text itself defines."""
_RESERVED = re.compile(r"[rv]\d+|_.*|KS_.*")
"""Other fields of the struct Row, and what C++ and the templates keep for themselves."""


def read_signature(
    function: Callable[..., Any], roles: Mapping[str, str]
) -> tuple[tuple[Input, ...], dict[str, Option]]:
    """The inputs, and the options with their defaults. Raises UsageError naming the parameter."""
    inputs: list[str] = []
    options: dict[str, object] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        where = f"{function.__name__}: parameter {name!r}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UsageError(f"{where} collects arguments: name every tensor and option of an op")
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                raise UsageError(f"{where} is an option and needs a default")
            options[name] = parameter.default
        elif parameter.default is not parameter.empty:
            raise UsageError(
                f"{where} is a tensor, as it stands before the '*', and cannot have a default: "
                f"put '*' before it if it is an option"
            )
        else:
            inputs.append(name)
    by_name = {name: roles.get(name, Role.ROW if name in ROW_NAMES else Role.FULL) for name in inputs}
    if inputs:
        by_name[inputs[0]] = roles.get(inputs[0], Role.FULL)
    for name in roles.keys() - set(inputs):
        raise UsageError(f"{function.__name__}: it has no tensor {name!r} to give a role to, only {inputs}")
    return check_inputs(function.__name__, by_name), check_options(function.__name__, options)


def check_inputs(op: str, roles: Mapping[str, str]) -> tuple[Input, ...]:
    """The inputs of op `op`. Raises UsageError where there are none, or one has a bad name or role."""
    if not roles:
        raise UsageError(f"{op}: an op needs at least one tensor")
    inputs = []
    for name, role in roles.items():
        valid = name.isidentifier() and name.isascii()
        if not valid or name in _TAKEN or _RESERVED.fullmatch(name):
            raise UsageError(f"{op}: the tensor name {name!r} cannot be used in C++: rename it")
        if role not in tuple(Role):
            raise UsageError(f"{op}: the role of {name!r} is {role!r}, but must be 'full', 'row' or 'column'")
        inputs.append(Input(name, Role(role)))
    if inputs[0].role is not Role.FULL:
        raise UsageError(f"{op}: the role of the first tensor, {inputs[0].name!r}, must be 'full'")
    return tuple(inputs)


def check_options(op: str, options: Mapping[str, object]) -> dict[str, Option]:
    """The options of op `op` with their defaults. Raises UsageError where one is no number, bool or text."""
    checked: dict[str, Option] = {}
    for name, default in options.items():
        if not isinstance(default, float | int | str):
            raise UsageError(
                f"{op}: the default of option {name!r} is {default!r}: it must be a number, a bool or a str"
            )
        checked[name] = default
    return checked


def check_option(op: str, name: str, value: object, default: Option) -> Option:
    """`value` as the type that `default` has. Raises UsageError."""
    if isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is type(default):
        return value
    kind = type(default).__name__
    raise UsageError(
        f"{op}: option {name} is {value!r}, but must be of type {kind}, as its default {default!r}"
    )


def parse_option(op: str, name: str, text: str, default: Option) -> Option:
    """An option as written on a command line. Raises UsageError."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        kind = type(default).__name__
        raise UsageError(f"{op}: option {name}={text} does not parse: it must be of type {kind}") from None
