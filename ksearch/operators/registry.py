"""The ops by name: `@ksearch.op` enters one, `resolve` finds one again from text in any process."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from ksearch.errors import UnknownOp, UsageError, UserFileError
from ksearch.operators import user_file
from ksearch.operators.definition import Adapter, Op
from ksearch.operators.signature import Roles, read_signature
from ksearch.operators.template_op import TemplateOp, check_class

F = TypeVar("F", bound=Callable[..., Any])

_BUILTIN = f"{__package__}.builtin."
_ops: dict[str, Op] = {}
_aliases: dict[str, str] = {}
"""Other names that people know built-in ops by: alias -> name."""
observers: list[Callable[[str], None]] = []
"""Each is told the name of an op that was entered."""


@overload
def op(definition: F, /) -> F: ...
@overload
def op(
    *, name: str | None = None, torch_function: str = "", adapter: Adapter | None = None, **roles: Roles
) -> Callable[[F], F]: ...
def op(
    definition: F | None = None,
    /,
    *,
    name: str | None = None,
    torch_function: str = "",
    adapter: Adapter | None = None,
    **roles: Roles,
) -> F | Callable[[F], F]:
    """Make a plain PyTorch function, or a TemplateOp class, an op; it stays what it is and can be called.

    Positional parameters are tensors: the first gives the shape; weight, bias, gamma and beta have one
    value per column; others have the full shape unless stated, as in `@op(mask="column")`. What a linear
    takes, and its bias, is known by that: `left`, `right`, `row` need not be stated. With several roles, as
    in `@op(other=("full", "row"))`, a workload chooses by an option of that name. A tensor with the default
    None may be absent: the role `none`. Keyword-only parameters are options.

    `torch_function` and `adapter` are those of `Op`. Raises UsageError.
    """

    def enter(definition: F) -> F:
        if isinstance(definition, type):
            register(_from_class(definition, name, roles))
        else:
            register(_from_function(definition, name, roles, torch_function, adapter))
        return definition

    return enter if definition is None else enter(definition)


def _from_function(
    function: Callable[..., Any],
    name: str | None,
    roles: dict[str, Roles],
    torch_function: str,
    adapter: Adapter | None,
) -> Op:
    if not inspect.isfunction(function):
        raise UsageError(f"@ksearch.op needs a function or a TemplateOp class, not {function!r}")
    read = read_signature(function, roles)
    name = _check_name(name or function.__name__)
    return Op(
        name,
        function,
        read.inputs,
        read.options,
        _location(function, name),
        choices=read.choices,
        torch_function=torch_function,
        adapter=adapter,
    )


def _from_class(cls: type, name: str | None, roles: dict[str, Roles]) -> Op:
    if not issubclass(cls, TemplateOp):
        raise UsageError(f"class {cls.__name__} is no ksearch.TemplateOp: derive it from that")
    if roles:
        raise UsageError(f"{cls.__name__}: roles belong into its attribute `inputs`")
    read = check_class(cls)
    name = _check_name(name or cls.name)
    template_op = cls()
    location = _location(cls, name)
    return Op(name, template_op.reference, read.inputs, read.options, location, template_op, read.choices)


def _check_name(name: str) -> str:
    if not (name.isidentifier() and name.isascii()):
        raise UsageError(f"{name!r} cannot be the name of an op: use letters, digits and _")
    return name


def _location(definition: Any, name: str) -> str:
    if definition.__module__.startswith(_BUILTIN):
        return name
    file = Path(inspect.getfile(definition))
    return f"{file.resolve() if file.exists() else file}:{name}"


def register(new: Op) -> None:
    """Enter an op, over one of the same location. Raises UsageError where another has the name."""
    if new.location != new.name:
        _load_builtins()
    old = _ops.get(new.name)
    if old is not None and old.location != new.location:
        where = "built in" if old.location == old.name else f"defined in {old.location.rpartition(':')[0]}"
        remedy = f"choose another, as in @op(name='my_{new.name}')"
        raise UsageError(f"the name {new.name!r} is taken by an op {where}: {remedy}")
    _ops[new.name] = new
    for tell in observers:
        tell(new.name)


def names() -> list[str]:
    """Every op that is registered, sorted."""
    _load_builtins()
    return sorted(_ops)


def alias(other: str, name: str) -> None:
    """Let `other` find the built-in op `name`, too, where no op is registered under it."""
    _aliases[other] = name


def canonical(name: str) -> str:
    """The name that an op is kept under: of an alias the op's own, of anything else itself."""
    _load_builtins()
    return name if name in _ops else _aliases.get(name, name)


def get(name: str) -> Op:
    """The op registered under `name`, or of that alias. Raises UnknownOp with the nearest names."""
    name = canonical(name)
    if name not in _ops:
        near = difflib.get_close_matches(name, [*_ops, *_aliases], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}"
        raise UnknownOp(f"no op {name!r}; {hint} (an op of your own: FILE.py:NAME)")
    return _ops[name]


def is_registered(op: Op) -> bool:
    """Whether it is the one that `get` gives by its name."""
    return _ops.get(op.name) is op


def resolve(text: str | Op | Callable[..., Any]) -> Op:
    """The op that `text` names: `softmax`, or `my_ops.py:swish`, whose file is run for it.

    An Op, or a function or class under `@ksearch.op`, names itself. Raises UnknownOp, UserFileError where
    the file does not run or does not define the op, UsageError for a function that is no op.
    """
    if isinstance(text, Op):
        return text
    if not isinstance(text, str):
        return _of(text)
    file, colon, name = text.rpartition(":")
    if not colon:
        file, name = (text, "") if text.endswith(".py") else ("", text)
    if not file:
        return get(name)
    path = Path(file).expanduser().resolve()
    if name in _defined_in(path) and not user_file.is_stale(path):
        return _ops[name]  # also of a script that is running: one that tunes its own op is not run again
    if user_file.is_stale(path) or not user_file.has_run(path):
        for old in _defined_in(path):
            del _ops[old]
        user_file.run(path)
    if name not in _defined_in(path):
        raise UserFileError(_absent(path, name))
    return _ops[name]


def _of(definition: Callable[..., Any]) -> Op:
    for known in _ops.values():
        if definition in (known.function, type(known.template_op)):
            return known
    raise UsageError(f"{definition!r} is no op: write @ksearch.op above it")


def _defined_in(path: Path) -> list[str]:
    return sorted(name for name, known in _ops.items() if known.location == f"{path}:{name}")


def _absent(path: Path, name: str) -> str:
    found = ", ".join(_defined_in(path)) or "none"
    if not name:
        return f"which op of {path}? write {path.name}:NAME; its ops: {found}"
    if callable(user_file.lookup(path, name)):
        return f"{path}: {name} is no op: write @ksearch.op above it; the file's ops: {found}"
    return f"{path} defines no op {name!r}; its ops: {found}"


def _load_builtins() -> None:
    from ksearch.operators import builtin  # noqa: F401  (those modules register through this one)
