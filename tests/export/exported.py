"""Kernels for the tests of exports: rendered for a device, as the winner of a search would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ksearch import families, operators
from ksearch.export.kernel import ExportedKernel
from ksearch.launch import Launch
from ksearch.render import render
from ksearch.types import Config, Option, Target, Winner

H200 = Target("cuda", "sm_90", "NVIDIA H200", 0, 132, 140 << 30, 232448, 60 << 20)


def kernel_of(
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    target: Target,
    is_wanted: Callable[[Config, Launch], object] = lambda config, launch: True,
    options: Mapping[str, Option] | None = None,
) -> ExportedKernel:
    """The first guess that is wanted, else the first config of the space; with exact math."""
    op = operators.resolve(name)
    workload = op.workload(shape, dtype, **(options or {}))
    bound = dict(workload.options)
    family, program = families.find(op, target.backend, **bound), op.program(**bound)
    space = family.space(program, workload, target)
    exact = {"math": "exact"} if "math" in space.values else {}
    guesses = [{**guess, **exact} for guess in family.guesses(program, workload, target)]
    for config in (*filter(space.allows, guesses), *space):
        launch = family.launch(config, program, workload, target)
        if is_wanted(config, launch):
            break
    else:
        raise AssertionError(f"no such config for {workload}")
    winner = Winner(
        workload=workload,
        target=target,
        config=dict(config),
        launch=launch,
        artifact="0" * 64,
        time_us=10.0,
        baseline_us=20.0,
        ceiling_us=9.0,
        certificate={"speedup_ci": [1.9, 2.1]},
    )
    return ExportedKernel.of(op, winner, render(op, workload, config, target).text)
