"""The wrong kernels that are made of one right kernel, ready to be compiled and checked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ksearch.evaluate.faults import OTHER_STREAM
from ksearch.families.base import nearest
from ksearch.launch import Launch
from ksearch.operators.program import Program
from ksearch.plan import Plan
from ksearch.selftest import appended, edits
from ksearch.selftest.edits import Edit
from ksearch.selftest.faults import BEYOND, FAULTS, MISALIGNED, Fault
from ksearch.types import Config, ConfigValue, Source

_STREAM = ("left to another stream", "the kernel is started on a stream that nobody waits for")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One wrong kernel; without a source, why there is none."""

    fault: str
    source: Source | None = None
    config: Config | None = None
    launch: Launch | None = None
    absent: str = ""
    host_fault: str = ""
    """Of `evaluate.faults`."""
    by_value: bool = False
    """Where it gives the same bits as the right kernel, the op has no result for the fault to spoil."""
    by_size: bool = False
    """Where it is no further off than PyTorch in this dtype, it is no fault."""
    needs_whole: bool = False
    """Screening has too few rows for it."""


def descriptions() -> dict[str, str]:
    """Every fault, and in a sentence what is wrong with a kernel that has it."""
    outside = ((fault.name, fault.about) for fault in FAULTS)
    return dict([*outside, _STREAM, *((edit.name, edit.about) for edit in edits.EDITS)])


def mutants(plan: Plan, config: Config, source: Source) -> Iterator[Mutant]:
    """Every fault, planted in the kernel of `config`, or in another of the space where that one has not what
    the fault is about. Raises SelftestError where the place of a fault is not found, RenderError."""
    launch = plan.family.launch(config, plan.program, plan.workload, plan.target)
    base = _appended(plan, source, launch)
    for fault in FAULTS:
        if fault.name == MISALIGNED and launch.alignment > plan.workload.itemsize:
            yield _misaligned(plan, fault, config)
        else:
            yield _with_fault(plan, fault, config, launch, base)
    name, _ = _STREAM
    if plan.target.backend == "cuda":
        yield Mutant(name, base, config, launch, host_fault=OTHER_STREAM)
    else:
        yield Mutant(name, absent="a CPU has no streams")
    for edit in edits.EDITS:
        yield _edited(plan, edit, config, source)


def right_kernel(plan: Plan, config: Config, source: Source) -> Mutant:
    """The kernel itself, out of the binary that holds it beside its faults."""
    launch = plan.family.launch(config, plan.program, plan.workload, plan.target)
    return Mutant("", _appended(plan, source, launch), config, launch)


def _appended(plan: Plan, source: Source, launch: Launch) -> Source:
    text = appended.append(source.text, plan.program, plan.workload, launch, plan.target.backend)
    return replace(source, text=text)


def _with_fault(plan: Plan, fault: Fault, config: Config, launch: Launch, source: Source) -> Mutant:
    if absent := appended.has_no_place(fault, plan.program, plan.workload, launch):
        return Mutant(fault.name, absent=absent)
    wrong = appended.launched(fault, launch, plan.program, plan.workload, plan.target.backend)
    is_far = fault.name == BEYOND
    return Mutant(fault.name, source, config, wrong, by_value=fault.by_value, needs_whole=is_far)


def _misaligned(plan: Plan, fault: Fault, config: Config) -> Mutant:
    """In a kernel that takes tensors off alignment; where there is none, the reason."""
    for other in _others(plan, config, {"vec": 1}):
        launch = plan.family.launch(other, plan.program, plan.workload, plan.target)
        if launch.alignment <= plan.workload.itemsize:
            return _with_fault(plan, fault, other, launch, _appended(plan, plan.render(other), launch))
    launch = plan.family.launch(config, plan.program, plan.workload, plan.target)
    return Mutant(fault.name, absent=appended.has_no_place(fault, plan.program, plan.workload, launch))


def _edited(plan: Plan, edit: Edit, config: Config, source: Source) -> Mutant:
    if not edit.concerns(_own_program(plan, config)):
        return Mutant(edit.name, absent=edit.absent)
    found = [(config, source)]
    rendered = ((other, plan.render(other)) for other in _others(plan, config, edit.wish))
    for chosen, text in itertools.chain(found, rendered):
        if edit.finds(text.text):
            launch = plan.family.launch(chosen, plan.program, plan.workload, plan.target)
            wrong = replace(text, text=edit.apply(text.text))
            return Mutant(edit.name, wrong, chosen, launch, by_size=edit.by_size)
    return Mutant(edit.name, absent=edit.unknown)


def _own_program(plan: Plan, config: Config) -> Program:
    """What the kernel computes: without a linear whose product is PyTorch's."""
    launch = plan.family.launch(config, plan.program, plan.workload, plan.target)
    return plan.program.of_kernel(launch)


def _others(plan: Plan, config: Config, wish: Config) -> Iterator[dict[str, ConfigValue]]:
    """The first guesses, and then the config with what is wished for, moved to the nearest valid one."""
    for guess in plan.guesses[1:]:
        yield dict(guess)
    axes = plan.space.values
    known = {name: value for name, value in wish.items() if value in axes.get(name, ())}
    if known:
        yield from nearest(plan.space, {**known, **{k: v for k, v in config.items() if k not in known}})


def sources(made: Iterable[Mutant]) -> dict[str, Source]:
    """What is to be compiled, each text once, by its text."""
    return {mutant.source.text: mutant.source for mutant in made if mutant.source is not None}
