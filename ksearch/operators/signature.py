"""Read an op's inputs and options off its function's signature.

Positional parameters are tensors, keyword-only ones are options; their names become names in C++. Where
a tensor may have one of several roles, or be absent, which one it has is an option named like the tensor.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ksearch.errors import UsageError
from ksearch.operators.program import Input, Role
from ksearch.types import Option

ROW_NAMES = ("weight", "bias", "gamma", "beta")
"""Parameters that are one value per column by PyTorch's convention."""

NONE = "none"
"""The role of an optional tensor that is absent: the function gets None for it."""

Roles: TypeAlias = str | Sequence[str]
"""The role of a tensor, or the roles that it may have, the default first."""

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
_OF_A_WORKLOAD = ("shape", "dtype", "policy", "prepacked", "device", "db")
"""What `load` is told beside the options."""
_RESERVED = re.compile(r"[rv]\d+|out\d+|_.*|KS_.*")
"""Other fields of the struct Row, the outputs, and what C++ and the templates keep for themselves."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What an op's definition says of its tensors and options."""

    inputs: tuple[Input, ...]
    """Every tensor in order, each in the first of its roles."""
    choices: dict[str, tuple[str, ...]]
    """The tensors that may have several roles, `none` among them where they may be absent; default first."""
    options: dict[str, Option]
    """Every option with its default: those of the function, and the choices of roles."""


def read_signature(function: Callable[..., Any], roles: Mapping[str, Roles]) -> Signature:
    """Raises UsageError naming the parameter."""
    inputs: list[str] = []
    optional: set[str] = set()
    options: dict[str, object] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        where = f"{function.__name__}: parameter {name!r}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UsageError(f"{where} collects arguments: name every tensor and option of an op")
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                raise UsageError(f"{where} is an option and needs a default")
            options[name] = parameter.default
        elif parameter.default not in (parameter.empty, None):
            raise UsageError(
                f"{where} is a tensor, as it stands before the '*', and can have no default but None: "
                f"put '*' before it if it is an option"
            )
        else:
            inputs.append(name)
            if parameter.default is None:
                optional.add(name)
    by_name: dict[str, Roles] = {}
    for name in inputs:
        usual = Role.ROW if name in ROW_NAMES and name != inputs[0] else Role.FULL
        by_name[name] = roles.get(name, (usual, NONE) if name in optional else usual)
        if name in roles and (NONE in _listed(by_name[name])) != (name in optional):
            raise UsageError(
                f"{function.__name__}: the tensor {name!r} may be absent where its default is None and "
                f"{NONE!r} is among its roles: say both, as in @op({name}=('row', 'none')), or neither"
            )
    for name in roles.keys() - set(inputs):
        raise UsageError(f"{function.__name__}: it has no tensor {name!r} to give a role to, only {inputs}")
    return check_signature(function.__name__, by_name, options)


def check_signature(op: str, roles: Mapping[str, Roles], options: Mapping[str, object]) -> Signature:
    """The inputs and options of op `op`; a choice of roles is one. Raises UsageError naming what is wrong."""
    inputs = check_inputs(op, roles)
    choices = {name: listed for name, given in roles.items() if len(listed := _listed(given)) > 1}
    defaults = {name: listed[0] for name, listed in choices.items()}
    for name in (*defaults, *options):
        if name in _OF_A_WORKLOAD:
            raise UsageError(f"{op}: an option cannot be called {name!r}, as a workload has that already")
    return Signature(inputs, choices, {**defaults, **check_options(op, options)})


def _listed(roles: Roles) -> tuple[str, ...]:
    return (str(roles),) if isinstance(roles, str) else tuple(map(str, roles))


def check_inputs(op: str, roles: Mapping[str, Roles]) -> tuple[Input, ...]:
    """The inputs of op `op`, each in the first role that is not `none`.

    Raises UsageError where there are none, or one has a bad name or role.
    """
    if not roles:
        raise UsageError(f"{op}: an op needs at least one tensor")
    inputs = []
    for name, given in roles.items():
        valid = name.isidentifier() and name.isascii()
        if not valid or name in _TAKEN or _RESERVED.fullmatch(name):
            raise UsageError(f"{op}: the tensor name {name!r} cannot be used in C++: rename it")
        listed = _listed(given)
        for role in listed:
            if role not in (*Role, NONE):
                known = ", ".join(map(repr, map(str, Role)))
                raise UsageError(f"{op}: the role of {name!r} is {role!r}, but must be one of {known}")
        present = [Role(role) for role in listed if role != NONE]
        if not present or len(set(listed)) < len(listed):
            raise UsageError(
                f"{op}: the roles of {name!r} are {listed!r}: give one or more, none of them twice"
            )
        inputs.append(Input(name, present[0]))
    first = next(iter(roles))
    if _listed(roles[first]) not in ((Role.FULL,), (Role.LEFT,)):
        raise UsageError(
            f"{op}: the role of the first tensor, {first!r}, must be 'full', or 'left' for a linear"
        )
    _check_operands(op, roles)
    return tuple(inputs)


def _check_operands(op: str, roles: Mapping[str, Roles]) -> None:
    """Raises UsageError unless there is no linear, or one 'left', the first tensor, with its 'right'."""
    listed = {name: _listed(given) for name, given in roles.items()}
    operands = [role for each in listed.values() for role in each if role in (Role.LEFT, Role.RIGHT)]
    if operands and sorted(operands) != [Role.LEFT, Role.RIGHT]:
        raise UsageError(f"{op}: a linear has one tensor in the role 'left' and one 'right', not {operands}")
    for name, each in listed.items():
        if len(each) > 1 and (Role.LEFT in each or Role.RIGHT in each):
            raise UsageError(f"{op}: {name!r} is an operand of a linear: it can have no other role, nor none")


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


def check_role(op: str, name: str, value: object, allowed: Sequence[str]) -> str:
    """`value` as the role of the tensor `name`, one of `allowed`. Raises UsageError."""
    if value not in allowed:
        raise UsageError(f"{op}: option {name} is {value!r}, but must be one of {', '.join(allowed)}")
    return str(value)


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
