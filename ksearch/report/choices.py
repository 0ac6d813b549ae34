"""What a search may choose from: the families of an op, and what their parameters may be for a workload."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ksearch import backends, families
from ksearch.errors import KsearchError, NoSuchDevice
from ksearch.operators import Op
from ksearch.report.grid import Column, Grid
from ksearch.types import ConfigValue, Target

BACKENDS = ("cuda", "cpu")

_SHAPE = (4096, 8192)
_LINEAR_SHAPE = (1024, 8192, 8192)
_H200 = Target("cuda", "sm_90", "NVIDIA H200", 0, 132, 150_000_000_000, 232448, 60 << 20)
"""Stands in where this machine has no GPU: what may be chosen depends on its multiprocessors, too."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What a search of one workload may choose from on one backend."""

    backend: str
    device: str
    family: str = ""
    template: str = ""
    workload: str = ""
    parameters: tuple[tuple[str, tuple[ConfigValue, ...]], ...] = ()
    configs: int = 0
    """Valid combinations."""
    refused: str = ""
    """Why there is nothing to choose; empty where there is."""

    def row(self) -> dict[str, Any]:
        """As `ksearch ops OP --json` prints it."""
        return {
            "backend": self.backend,
            "family": self.family or None,
            "template": self.template or None,
            "device": self.device,
            "workload": self.workload or None,
            "parameters": {name: list(values) for name, values in self.parameters},
            "configs": self.configs,
            "refused": self.refused or None,
        }

    def parameter_rows(self, op: str) -> Iterator[dict[str, Any]]:
        """A row for each parameter."""
        for name, values in self.parameters:
            facts = {"op": op, "backend": self.backend, "family": self.family, "template": self.template}
            yield {**facts, "parameter": name, "values": list(values)}


def spaces(op: Op, wanted: Sequence[str], shape: tuple[int, ...] | None, dtype: str) -> list[Choices]:
    """For each of these backends what there is to choose for the op with its default options.

    Raises what `Op.workload` raises for a shape that was asked for.
    """
    program = op.program()
    if shape is not None:
        op.workload(shape, dtype)
    found = []
    for backend in wanted:
        target = _target(backend)
        try:
            workload = op.workload(shape or (_LINEAR_SHAPE if program.linear else _SHAPE), dtype)
            family = families.find(op, backend)
            space = family.space(program, workload, target)
            found.append(
                Choices(
                    backend,
                    target.device,
                    family.name,
                    family.template,
                    str(workload),
                    tuple((name, tuple(values)) for name, values in space.values.items()),
                    sum(1 for _ in space),
                )
            )
        except KsearchError as error:
            found.append(Choices(backend, target.device, refused=str(error)))
    return found


def _target(backend: str) -> Target:
    try:
        return backends.get(backend).target(0)
    except NoSuchDevice:
        return _H200


def of_families(op: Op, wanted: Sequence[str]) -> dict[str, dict[str, str] | None]:
    """The family of the op on each backend and its template; None where there is none."""
    found: dict[str, dict[str, str] | None] = {}
    for backend in wanted:
        try:
            family = families.find(op, backend)
            found[backend] = {"family": family.name, "template": family.template}
        except KsearchError:
            found[backend] = None
    return found


def families_table(ops: Iterable[Op], wanted: Sequence[str]) -> RenderableType:
    """The families of these ops with the names of what is searched, for some workload of an op of each."""
    grid = Grid(
        Column("family"), Column("backend"), Column("template", rank=1), Column("parameters", folds=24)
    )
    seen: set[tuple[str, str]] = set()
    for op in ops:
        for backend, facts in of_families(op, wanted).items():
            if facts is None or (facts["family"], backend) in seen:
                continue
            program = op.program()
            try:
                workload = op.workload(_LINEAR_SHAPE if program.linear else _SHAPE)
                space = families.find(op, backend).space(program, workload, _target(backend))
            except KsearchError:  # one that needs options: the next op of the family tells as much
                continue
            seen.add((facts["family"], backend))
            grid.add(facts["family"], backend, facts["template"], ", ".join(space.values))
    return Group("", grid)


def described(op: Op, found: Sequence[Choices]) -> RenderableType:
    """One op for a person: how it is called, and for each backend its family and what that chooses from."""
    facts = _facts()
    for item in op.inputs:
        facts.add_row(f"tensor {item.name}", " | ".join(op.roles(item)))
    for name, value in op.options.items():
        if name not in op.choices:
            facts.add_row(f"option {name}", Text(str(value)))
    if op.torch_function:
        facts.add_row("equals", op.torch_function)
    facts.add_row("defined", Text("built in" if op.location == op.name else op.location))
    parts: list[RenderableType] = [Text(op.name, style="bold"), facts]
    for each in found:
        parts.append("")
        if each.refused:
            parts.append(Text.assemble((each.backend, "bold"), f": {each.refused}"))
            continue
        parts.append(
            Text.assemble(
                (f"{each.backend}: family {each.family}", "bold"),
                f" ({each.template}), {each.configs:,} configs for {each.workload} on {each.device}",
            )
        )
        parameters = _facts()
        for name, values in each.parameters:
            parameters.add_row(name, Text(" ".join(str(value) for value in values)))
        parts.append(parameters)
    return Group(*parts)


def _facts() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table
