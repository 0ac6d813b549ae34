"""Every built-in op in every form as a compiled kernel, checked as a search checks it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ksearch import backends, families, operators
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.check import Subset
from ksearch.evaluate.messages import Job
from ksearch.evaluate.pool import CompilePool
from ksearch.evaluate.problem import Problem
from ksearch.evaluate.whole import check_whole
from ksearch.render import render
from ksearch.types import Artifact, Candidate, Option, Status, Target, Workload
from tests.builtins_table import VARIANTS, label

DTYPES = ("float32", "float16", "bfloat16")
SHAPES = ((37, 1003), (3, 5, 7), (130, 64), (2, 9001))
BACKENDS = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
OTHERS = {"cpu": 0, "cuda": 3}
"""Configs beside the first guess. On the CPU long sums in narrow vectors can miss what is allowed by a
little, which a search finds out; tests/families/test_cpu_families.py goes through its spaces."""
Variant = tuple[str, dict[str, Option]]


@functools.cache
def target(backend: str) -> Target:
    found = backends.get(backend).target(0)
    return replace(found, units=2) if backend == "cpu" else found


def workload_of(variant: Variant) -> Workload:
    """Dtypes and shapes in turn, so that each meets many ops."""
    name, options = variant
    place = VARIANTS.index(variant)
    shape, dtype = SHAPES[place % len(SHAPES)], DTYPES[(place + place // len(SHAPES)) % len(DTYPES)]
    op = operators.get(name)
    if op.program(**options).layout.startswith(("groups", "channels")):
        shape = (3, 5, 4, 7)
    if op.program(**options).index:  # its classes are the second of two dims
        shape = (math.prod(shape[:-1]), shape[-1])
    return op.workload(shape, dtype, **options)


@pytest.fixture(scope="module", params=BACKENDS)
def candidates(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[Candidate]]]:
    """The first guess for each form, and some others; compiled two at a time they take half as long."""
    backend = request.param
    device = target(backend)
    found: dict[str, list[Candidate]] = {label(variant): [] for variant in VARIANTS}
    with pytest.MonkeyPatch.context() as patch, CompilePool(backend, 2) as pool:
        patch.setenv("KSEARCH_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        configs = {}
        for place, variant in enumerate(VARIANTS):
            op, workload = operators.get(variant[0]), workload_of(variant)
            family, program = families.find(op, backend, **variant[1]), op.program(**variant[1])
            space = list(family.space(program, workload, device))
            others = [space[7919 * (place + 101 * n) % len(space)] for n in range(OTHERS[backend])]
            guesses = [guess for guess in family.guesses(program, workload, device) if guess in space]
            for number, config in enumerate([*guesses[:1], *others]):
                tag = (label(variant), number)
                configs[tag] = config, family.launch(config, program, workload, device)
                pool.submit(tag, render(op, workload, config, device))
        builds = pool.completed(wait_for_all=True)
        assert [build.message for build in builds if build.artifact is None] == []
        for build in builds:
            assert isinstance(build.artifact, Artifact)
            assert isinstance(build.tag, tuple)
            found[build.tag[0]].append(Candidate(*configs[build.tag], build.artifact))
        yield found


@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_kernels_of_each_are_right(variant: Variant, candidates: dict[str, list[Candidate]]) -> None:
    op, workload = operators.get(variant[0]), workload_of(variant)
    assert candidates[label(variant)]
    for candidate in candidates[label(variant)]:
        backend = "cuda" if candidate.artifact.binary.endswith("cubin") else "cpu"
        problem = Problem(Job(op.location, workload, target(backend)))
        kernel = backends.get(backend).load(Path(candidate.artifact.binary), candidate.launch, 0)

        def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
            pointers = tuple(each.pointer for each in (*tensors, *outputs))
            kernel(pointers, tensors[0].values.shape[0], 0)  # noqa: B023  (called in this round only)

        misaligned = candidate.launch.alignment <= workload.itemsize
        findings = Subset(problem, seed=1).check(run, misaligned=misaligned), check_whole(problem, run)
        for finding in findings:
            assert finding.status is Status.PASSED, (finding.message, candidate.config)
        kernel.unload()


def test_the_check_sees_the_role_of_each_input() -> None:
    """A kernel that takes a row or a column for a scalar is found out."""
    for role, shape in {"row": (1, 64), "column": (37, 1), "scalar": (1, 1)}.items():
        workload = operators.get("add").workload((37, 64), other=role)
        problem = Problem(Job("add", workload, target("cpu")))
        assert problem.inputs[1].values.shape == shape

        def ignores(tensors: Sequence[Guarded], outputs: Sequence[Guarded]) -> None:
            x, other = (each.values for each in tensors)
            outputs[0].values.copy_(x + other.flatten()[0])

        finding = Subset(problem, seed=1).check(ignores, misaligned=True)
        assert (finding.status is Status.PASSED) == (role == "scalar"), role
