"""The family of an op that brings its own template, space and rules (`ksearch.TemplateOp`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ksearch.errors import UsageError
from ksearch.families.base import Space
from ksearch.operators.program import Program
from ksearch.types import Config, ConfigValue, Launch, Target, Workload

if TYPE_CHECKING:
    from ksearch.operators import TemplateOp


class OwnTemplate:
    """Lets a user's class answer for a family; raises UsageError where it has no such template."""

    def __init__(self, op: TemplateOp, backend: str) -> None:
        if backend not in op.templates:
            raise UsageError(
                f"op {op.name!r} has no template for {backend}: add it to `templates` of its class"
            )
        self._op = op
        self.name = "own"
        self.template = op.templates[backend]

    def space(self, program: Program, workload: Workload, target: Target) -> Space:
        return Space(
            axes=self._op.space(workload, target),
            is_valid=lambda config: self._op.is_valid(config, workload, target),
        )

    def guesses(self, program: Program, workload: Workload, target: Target) -> list[dict[str, ConfigValue]]:
        return [dict(config) for config in self._op.guesses(workload, target)]

    def launch(self, config: Config, program: Program, workload: Workload, target: Target) -> Launch:
        return self._op.launch(config, workload, target)

    def variables(
        self, config: Config, program: Program, workload: Workload, target: Target
    ) -> dict[str, Any]:
        return dict(self._op.variables(config, workload, target))
