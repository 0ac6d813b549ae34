"""Read a study, many workloads in one TOML file, and check all of it before anything starts.

    [study]
    name = "mine"                  # default: the file's name
    budget_s = 600                 # of the whole study; trials = N is for each workload
    dtype = "bfloat16"             # default for every workload; so is device = "cuda:1"

    [[workload]]
    op = "my_ops.py:swish"         # relative to this file; or a name, such as "softmax"
    shapes = [[4096, 8192], "1x128256"]
    dtypes = ["float32", "bfloat16"]
    options = { beta = [0.5, 1.0] }

Lists multiply out: the entry above stands for eight workloads. Of an op that starts with a linear layer the
shape is BATCHxINxOUT, in float32 it may have a `policy`, or `policies`; `prepacked = true` is for a weight
that is packed once.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ksearch import operators
from ksearch.errors import KsearchError, UsageError
from ksearch.operators import Op
from ksearch.operators.shape import check_shape, parse_shape, split_dims
from ksearch.study import Entry, StudyFile
from ksearch.types import ITEMSIZE, Option

T = TypeVar("T")

_STUDY_KEYS = ("name", "budget_s", "trials", "dtype", "device")
_WORKLOAD_KEYS = (
    "op", "shape", "shapes", "dtype", "dtypes", "policy", "policies", "prepacked", "options", "needs",
    "weight", "calls",
)  # fmt: skip
_PLURALS = {"shape": "shapes", "dtype": "dtypes", "policy": "policies"}


def read(path: Path) -> StudyFile:
    """The study in the file at `path`. Runs the files of the ops that it names; does not need torch itself.

    Raises one UsageError that lists every mistake: the file, the number of the entry, the key.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the study {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # tomllib's own, a number or a nesting that Python refuses
        raise UsageError(f"{path} is not TOML: {error}") from error
    return _Reader(path).study(content)


class _Mistake(Exception):
    """What is wrong with one value."""


class _Reader:
    """Reads one file, and goes on after a mistake, so that all of them are told at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mistakes: list[str] = []
        self._seen: dict[object, int] = {}

    def study(self, content: dict[str, Any]) -> StudyFile:
        """Raises UsageError with every mistake."""
        self._check_keys("the file", content, ("study", "workload"))
        head, tables = content.get("study", {}), content.get("workload")
        if not isinstance(head, dict):
            self._note("the file", "study", "must be one table, headed [study]")
            head = {}
        if not isinstance(tables, list) or not tables or not all(isinstance(item, dict) for item in tables):
            self._note("the file", "workload", "must be one table or more, each headed [[workload]]")
            tables = []
        self._check_keys("[study]", head, _STUDY_KEYS)
        value = functools.partial(self._value, "[study]", head)
        name, dtype = value("name", _text, self._path.stem), value("dtype", _dtype, "float32")
        budget_s, trials = value("budget_s", _positive, None), value("trials", _count, None)
        device = value("device", _device, None)
        entries = [entry for n, table in enumerate(tables, 1) for entry in self._entries(n, table, dtype)]
        if self._mistakes:
            numbered = [f"({n}) {text}" for n, text in enumerate(self._mistakes, 1)]
            raise UsageError(f"{self._path}: {'; '.join(numbered if numbered[1:] else self._mistakes)}")
        return StudyFile(name, self._path, tuple(entries), budget_s, trials, device)

    def _entries(self, number: int, table: dict[str, Any], default_dtype: str) -> list[Entry]:
        """All that one `[[workload]]` stands for; none of them where it has a mistake."""
        where, before = f"[[workload]] {number}", len(self._mistakes)
        self._check_keys(where, table, _WORKLOAD_KEYS)
        value = functools.partial(self._value, where, table)
        needs, weight = value("needs", _text, ""), value("weight", _positive, 1.0)
        calls, prepacked = value("calls", _count, 0), value("prepacked", _bool, False)
        name = value("op", _text, "")
        if "op" not in table:
            self._note(where, "op", "is missing: it names what is to be tuned")
        op = value("op", self._op, None) if name and not needs else None
        shapes = self._one_or_many(where, table, "shape", functools.partial(_shape, op=op))
        dtypes = self._one_or_many(where, table, "dtype", _dtype, default_dtype)
        policies = self._one_or_many(where, table, "policy", _text, "strict")
        options = self._options(where, table, op)
        if op is not None:
            for policy, dtype in itertools.product(policies, dtypes):
                self._parsed(where, "policy", policy, functools.partial(op.check_policy, dtype=dtype))
            self._parsed(where, "prepacked", prepacked, op.check_prepacked)
        if len(self._mistakes) > before:
            return []
        entries = []
        for shape, dtype, policy, chosen in itertools.product(shapes, dtypes, policies, options):
            location = op.location if op else name
            entry = Entry(number, location, shape, dtype, chosen, needs, weight, policy, prepacked, calls)
            same = (entry.op, shape, dtype, policy, prepacked, op.bind(dict(chosen)) if op else chosen, needs)
            if same in self._seen:
                self._note(where, "op", f"{entry} is in [[workload]] {self._seen[same]} already")
            self._seen.setdefault(same, number)
            entries.append(entry)
        return entries

    def _one_or_many(
        self,
        where: str,
        table: Mapping[str, Any],
        key: str,
        parse: Callable[[Any], T],
        default: T | None = None,
    ) -> list[T]:
        """The values of `key`, or of its plural, which holds a list."""
        many = _PLURALS[key]
        if key in table and many in table:
            self._note(where, many, f"stands beside {key!r}: give one of them")
        elif many in table and not (isinstance(table[many], list) and table[many]):
            self._note(where, many, f"is {table[many]!r}: it must be a list of one {key} or more")
        elif many in table:
            return [value for item in table[many] for value in self._parsed(where, many, item, parse)]
        elif key in table:
            return self._parsed(where, key, table[key], parse)
        elif default is None:
            self._note(where, key, f"is missing: give {key!r} or {many!r}")
        else:
            return [default]
        return []

    def _options(
        self, where: str, table: Mapping[str, Any], op: Op | None
    ) -> list[tuple[tuple[str, Option], ...]]:
        """Every combination of the options' values."""
        stated = table.get("options", {})
        if not isinstance(stated, dict):
            self._note(where, "options", f"is {stated!r}: it must be a table such as {{ eps = 1e-6 }}")
            return []

        def parse(name: str, value: Any) -> Option:
            if not isinstance(value, bool | int | float | str):
                raise _Mistake(
                    f"{name} is {value!r}: it must be a number, a bool or a text, or a list of them"
                )
            return dict(op.bind({name: value}))[name] if op else value

        choices = []
        for name, value in sorted(stated.items()):
            values = value if isinstance(value, list) and value else [value]
            parsed = [self._parsed(where, "options", item, functools.partial(parse, name)) for item in values]
            choices.append([(name, option) for option in itertools.chain(*parsed)])
        return list(itertools.product(*choices))

    def _op(self, text: str) -> Op:
        """Raises UnknownOp, UserFileError and whatever else the name of an op can be wrong with."""
        file, colon, name = text.rpartition(":") if not text.endswith(".py") else (text, ":", "")
        if colon:  # relative to the study, wherever ksearch is run
            text = f"{self._path.parent / Path(file).expanduser()}:{name}"
        return operators.resolve(text)

    def _value(
        self, where: str, table: Mapping[str, Any], key: str, parse: Callable[[Any], T], default: T
    ) -> T:
        parsed = self._parsed(where, key, table[key], parse) if key in table else []
        return parsed[0] if parsed else default

    def _parsed(self, where: str, key: str, value: Any, parse: Callable[[Any], T]) -> list[T]:
        """The one value, or none where it is a mistake, which is noted."""
        try:
            return [parse(value)]
        except (_Mistake, KsearchError) as error:
            self._note(where, key, str(error))
            return []

    def _check_keys(self, where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
        for key in sorted(table.keys() - set(known)):
            self._note(where, key, f"is no key here; known keys: {', '.join(known)}")

    def _note(self, where: str, key: str, text: str) -> None:
        self._mistakes.append(f"{where}, {key}: {text}")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _Mistake(f"{value!r} must be a text that is not empty")
    return value


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _Mistake(f"{value!r} must be a number above 0")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise _Mistake(f"{value!r} must be a whole number, at least 1")
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Mistake(f"{value!r} must be true or false")
    return value


def _shape(value: Any, op: Op | None) -> tuple[int, ...]:
    if not isinstance(value, list | str):
        raise _Mistake(f"{value!r} must be a list such as [4096, 8192], or a text such as '4096x8192'")
    dims = check_shape(value) if isinstance(value, list) else parse_shape(value)
    if op is not None and op.states_linear:
        split_dims(op.name, dims)
    return dims


def _dtype(value: Any) -> str:
    if value not in tuple(ITEMSIZE):
        raise _Mistake(f"there is no dtype {value!r}; supported: {', '.join(ITEMSIZE)}")
    return str(value)


def _device(value: Any) -> str:
    """How it is written, not whether it is there: `--device` may name another."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", _text(value)):
        raise _Mistake(f"{value!r} is no device: use auto, cpu, cuda or cuda:N")
    return str(value)
