"""The ops by name: `@ksearch.op` enters one, `resolve` finds one again from text in any process."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from ksearch.errors import UnknownOp, UsageError, UserFileError
from ksearch.operators import user_file
from ksearch.operators.definition import Op
from ksearch.operators.signature import read_signature
from ksearch.operators.template_op import TemplateOp, check_class

F = TypeVar("F", bound=Callable[..., Any])

_BUILTIN = f"{__package__}.builtin"
_ops: dict[str, Op] = {}


@overload
def op(definition: F, /) -> F: ...
@overload
def op(*, name: str | None = None, **roles: str) -> Callable[[F], F]: ...
def op(definition: F | None = None, /, *, name: str | None = None, **roles: str) -> F | Callable[[F], F]:
    """Make a plain PyTorch function, or a TemplateOp class, an op; it stays what it is and can be called.

    Positional parameters are tensors: the first gives the shape; weight, bias, gamma and beta have one
    value per column; others have the full shape unless stated, as in `@op(mask="column")`. Keyword-only
    parameters are options. Raises UsageError.
    """

    def enter(definition: F) -> F:
        if isinstance(definition, type):
            register(_from_class(definition, name, roles))
        else:
            register(_from_function(definition, name, roles))
        return definition

    return enter if definition is None else enter(definition)


def _from_function(function: Callable[..., Any], name: str | None, roles: dict[str, str]) -> Op:
    if not inspect.isfunction(function):
        raise UsageError(f"@ksearch.op needs a function or a TemplateOp class, not {function!r}")
    inputs, options = read_signature(function, roles)
    name = _check_name(name or function.__name__)
    return Op(name, function, inputs, options, _location(function, name))


def _from_class(cls: type, name: str | None, roles: dict[str, str]) -> Op:
    if not issubclass(cls, TemplateOp):
        raise UsageError(f"class {cls.__name__} is no ksearch.TemplateOp: derive it from that")
    if roles:
        raise UsageError(f"{cls.__name__}: roles belong into its attribute `inputs`")
    inputs, options = check_class(cls)
    name = _check_name(name or cls.name)
    template_op = cls()
    return Op(name, template_op.reference, inputs, options, _location(cls, name), template_op)


def _check_name(name: str) -> str:
    if not (name.isidentifier() and name.isascii()):
        raise UsageError(f"{name!r} cannot be the name of an op: use letters, digits and _")
    return name


def _location(definition: Any, name: str) -> str:
    if definition.__module__ == _BUILTIN:
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


def names() -> list[str]:
    """Every op that is registered, sorted."""
    _load_builtins()
    return sorted(_ops)


def get(name: str) -> Op:
    """The op registered under `name`. Raises UnknownOp with the nearest names."""
    _load_builtins()
    if name not in _ops:
        near = difflib.get_close_matches(name, _ops, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}"
        raise UnknownOp(f"no op {name!r}; {hint} (an op of your own: FILE.py:NAME)")
    return _ops[name]


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
    from ksearch.operators import builtin  # noqa: F401  (that module registers through this one)
