"""A sample of every region of every CUDA space, compiled: what it needs must fit, without a GPU to ask.

Always with the configs that come closest to the register limit: a spilling kernel runs at a third of the
speed, and must be refused by the rules, not found at run time.
"""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from ksearch import backends, families
from ksearch.errors import CompileError
from ksearch.families.cuda import register_cap
from ksearch.render import render
from ksearch.types import Config
from tests.builtins_table import VARIANTS
from tests.families.cuda_cases import DTYPES, LENGTHS, NAMES, POINTWISE, ROWWISE, TARGETS, Case, find

_MOST = 32
"""Kernels of one op and architecture, some 2 s; another `random.Random` seed tries others."""

WORKLOADS = list(itertools.product(LENGTHS, DTYPES))
random.Random(0).shuffle(WORKLOADS)


def workloads(name: str, arch: str) -> list[tuple[int, str]]:
    """Row lengths and dtypes of one op: over the rowwise ops, all 30 come up on sm_90."""
    if name in POINTWISE:  # all lengths are alike to them, but for tails
        first = 7 * POINTWISE.index(name)
        return [WORKLOADS[(first + i) % 30] for i in range(2)]
    each = {"sm_90": 5, "sm_80": 4}[arch]
    first = ROWWISE.index(name) * each
    return [WORKLOADS[(first + i) % 30] for i in range(each)]


def problem(case: Case, config: Config) -> str | None:
    """What is wrong with one config of a case, in a line."""
    try:
        compiled = backends.get("cuda").compile(case.source(config))
    except CompileError as error:
        return f"{case}: {error}: {config}"
    launch = case.family.launch(config, case.program, case.workload, case.target)
    cap = register_cap(launch.block, int(config["min_blocks"]))
    smem_bytes = compiled.smem_bytes + launch.smem_bytes
    found = {
        f"spills {compiled.spill_bytes} bytes": compiled.spill_bytes > 0,
        f"{compiled.registers} registers, and {cap} are there": compiled.registers > cap,
        "no registers reported": compiled.registers == 0,
        f"{smem_bytes} bytes of shared memory": smem_bytes > case.target.smem_bytes,
    }
    wrong = [text for text, is_so in found.items() if is_so]
    return f"{case}: {', '.join(wrong)} (slack {case.slack(config)}): {config}" if wrong else None


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_region_compiles_and_fits(name: str, arch: str) -> None:
    rng = random.Random(f"{name} {arch}")
    todo: list[tuple[Case, Config]] = []
    for cols, dtype in workloads(name, arch):
        case = Case(name, (64, cols), dtype, arch)
        todo += [(case, config) for config in case.sample(rng, tight=1, others=0)]
    todo = rng.sample(todo, min(_MOST, len(todo)))
    with ThreadPoolExecutor(2) as pool:  # NVRTC lets go of the GIL
        problems = [found for found in pool.map(lambda item: problem(*item), todo) if found]
    assert problems == [], f"{len(problems)} of {len(todo)}"


def test_every_form_of_the_built_in_ops_compiles() -> None:
    """One kernel of each, from anywhere in its space, for one of the architectures."""
    todo = []
    forms = [*VARIANTS, *((name, {}) for name in ("scaled_tanh", "tempered_softmax"))]
    for place, (name, options) in enumerate(forms):
        op, target = find(name), list(TARGETS.values())[place % len(TARGETS)]
        shape: tuple[int, ...] = (64, LENGTHS[place % 5 + 1])
        if op.program(**options).layout.startswith(("groups", "channels")):
            shape = (4, 16, *shape)
        workload = op.workload(shape, DTYPES[place % len(DTYPES)], **options)
        space = list(families.find(op, "cuda", **options).space(op.program(**options), workload, target))
        todo.append(render(op, workload, space[7919 * place % len(space)], target))
    with ThreadPoolExecutor(2) as pool:  # NVRTC lets go of the GIL
        assert all(compiled.registers > 0 for compiled in pool.map(backends.get("cuda").compile, todo))


def test_the_sample_covers_every_row_length_and_dtype() -> None:
    assert {pair for name in ROWWISE for pair in workloads(name, "sm_90")} == set(WORKLOADS)
