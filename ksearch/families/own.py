"""The family of an op that brings its own template, space and rules (`ksearch.TemplateOp`).

Everything that the user's class gives is looked at here: what it raises or gives wrongly is told as a
mistake in the user's file, not as one of ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksearch.errors import KsearchError, UsageError, UserFileError
from ksearch.families.base import Space
from ksearch.launch import Launch
from ksearch.operators.program import Program
from ksearch.operators.user_file import describe
from ksearch.types import Config, ConfigValue, Target, Workload

if TYPE_CHECKING:
    from ksearch.operators import TemplateOp


class OwnTemplate:
    """Lets a user's class answer for a family; raises UsageError where it has no such template.

    Each verb raises UserFileError for what the class raises or gives wrongly.
    """

    def __init__(self, op: TemplateOp, backend: str) -> None:
        if backend not in op.templates:
            raise UsageError(
                f"op {op.name!r} has no template for {backend}: add it to `templates` of its class"
            )
        self._op = op
        self.name = "own"
        self.template = op.templates[backend]

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        with self._told("space"):
            axes = self._op.space(workload, target)
            self._check(
                "space",
                axes,
                isinstance(axes, Mapping) and all(map(_is_choice, axes.values())),
                "a dict of lists of int, str or bool",
            )

        def is_valid(config: Config) -> bool:
            with self._told("is_valid"):
                return bool(self._op.is_valid(config, workload, target))

        # A value that is listed twice is one value: configs are told apart by their values.
        return Space(axes={name: tuple(dict.fromkeys(axes[name])) for name in axes}, is_valid=is_valid)

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        with self._told("guesses"):
            guesses = [dict(config) for config in self._op.guesses(workload, target)]
            is_right = all(_is_choice([*guess.values()]) for guess in guesses)
            self._check("guesses", guesses, is_right, "a list of dicts of int, str or bool")
            return guesses

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        with self._told("launch"):
            launch = self._op.launch(config, workload, target)
            self._check("launch", launch, isinstance(launch, Launch), "a ksearch.Launch")
            return launch

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        with self._told("variables"):
            return dict(self._op.variables(config, workload, target))

    def _check(self, method: str, value: object, is_right: bool, wanted: str) -> None:
        if not is_right:
            place = f"{self._file}: {self._class}.{method}"
            raise UserFileError(f"{place} gives {value!r}: it must give {wanted}")

    @contextmanager
    def _told(self, method: str) -> Iterator[None]:
        try:
            yield
        except KsearchError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise UserFileError(f"{describe(error, self._file)} (in {self._class}.{method})") from error

    @property
    def _class(self) -> str:
        return type(self._op).__name__

    @property
    def _file(self) -> Path:
        return Path(inspect.getfile(type(self._op)))


def _is_choice(values: object) -> bool:
    return isinstance(values, Sequence | range) and all(type(value) in (int, str, bool) for value in values)
