"""CUDA kernels, run: every op on every kind of shape, checked as a search checks them.

A worker is started for each workload, which takes seconds: `pytest -n 6 -m gpu tests/families` shares the
GPU between six of them.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ksearch import backends, families, operators, tuner
from ksearch.evaluate.messages import Job
from ksearch.evaluate.pool import CompilePool
from ksearch.evaluate.worker import Worker
from ksearch.operators import Op
from ksearch.render import render
from ksearch.search import Study
from ksearch.types import Candidate, Config, Status, Target, Workload
from tests.families.cuda_cases import DTYPES, NAMES, Case, find

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
SHAPES = (
    (1, 1), (3, 7), (5, 1000), (1000, 257), (64, 4096), (300, 8192),
    (17, 50257), (40, 131072), (34, 393216), (4, 1000, 96),
)  # fmt: skip
CONFIGS = 8


def target() -> Target:
    return backends.get("cuda").target(0)


def choose(op: Op, workload: Workload, device: Target, seed: int) -> list[Config]:
    """The family's guesses as the search would try them, then others, each from another region."""
    program, family = op.program(**dict(workload.options)), families.find(op, "cuda")
    guesses = family.guesses(program, workload, device)
    study = Study(family.space(program, workload, device), guesses=guesses)
    asked = [trial.config for _ in guesses[: CONFIGS // 2] if (trial := study.ask()) is not None]
    case = Case.__new__(Case)  # with the real device in the place of the tests' own
    case.op, case.workload, case.target, case.program, case.family = op, workload, device, program, family
    case.space = family.space(program, workload, device)
    rng = random.Random(seed)
    others = case.sample(rng, tight=1, others=1)
    rng.shuffle(others)
    return [*asked, *(config for config in others if config not in asked)][:CONFIGS]


def compiled(op: Op, workload: Workload, device: Target, configs: Sequence[Config]) -> list[Candidate]:
    options = dict(workload.options)
    program, family = op.program(**options), families.find(op, "cuda", **options)
    with CompilePool("cuda", 4) as pool:
        for number, config in enumerate(configs):
            pool.submit(number, render(op, workload, config, device))
        builds = pool.completed(wait_for_all=True)
    candidates = []
    for build in sorted(builds, key=lambda build: int(str(build.tag))):
        config = configs[int(str(build.tag))]
        assert build.artifact is not None, f"{build.message}: {config}"
        assert build.artifact.spill_bytes == 0 or family.name == "own", config  # a user's rules may be loose
        candidates.append(
            Candidate(dict(config), family.launch(config, program, workload, device), build.artifact)
        )
    return candidates


def failures(worker: Worker, candidates: Sequence[Candidate]) -> list[tuple[Mapping[str, object], str, str]]:
    outcomes = [(candidate.config, worker.screen(candidate)) for candidate in candidates]
    return [(c, o.status.value, o.message) for c, o in outcomes if o.status is not Status.PASSED]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("name", NAMES)
def test_every_sampled_config_is_right(name: str, shape: tuple[int, ...]) -> None:
    """No config may be wrong, math="fast" included: none is known to be."""
    dtype = DTYPES[(NAMES.index(name) + SHAPES.index(shape)) % len(DTYPES)]
    op, device = find(name), target()
    workload = op.workload(shape, dtype)
    candidates = compiled(op, workload, device, choose(op, workload, device, seed=len(shape) + shape[-1]))
    assert candidates
    with Worker(Job(op.location, workload, device)) as worker:
        ready = worker.start()
        assert ready.baseline_us > 0 < ready.ceiling_us
        assert failures(worker, candidates) == []
        assert worker.respawns == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softmax", "layernorm", "biased_relu", "scaled_tanh", "tempered_softmax"])
def test_every_dtype_of_a_misaligned_row_is_right(name: str, dtype: str) -> None:
    """Rows of an odd length start at every phase of a vector; ops with all roles of inputs."""
    op, device = find(name), target()
    workload = op.workload((213, 1003), dtype)
    candidates = compiled(op, workload, device, choose(op, workload, device, seed=1))
    with Worker(Job(op.location, workload, device)) as worker:
        worker.start()
        assert failures(worker, candidates) == []


@pytest.mark.parametrize(("shape", "dtype"), [((70, 4096), "float32"), ((301, 1024), "bfloat16")])
@pytest.mark.parametrize("name", ["layernorm", "biased_softmax"])
def test_weights_that_come_before_the_reduction_are_right(
    name: str, shape: tuple[int, ...], dtype: str
) -> None:
    op, device = find(name), target()
    workload = op.workload(shape, dtype)
    case = Case(name, shape, dtype, "sm_90")
    regions = [
        configs
        for configs in case.regions(random.Random(4))
        if configs[0]["weights"] != "global" and configs[0]["prefetch"] == 0
    ]
    assert {configs[0]["weights"] for configs in regions} == {"registers", "shared"}
    chosen = [config for configs in regions for config in configs[-2:]]
    with Worker(Job(op.location, workload, device)) as worker:
        worker.start()
        assert failures(worker, compiled(op, workload, device, chosen)) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sum_beside_a_mean_and_its_squares_is_right(dtype: str) -> None:
    op, device = find("spread_norm"), target()
    workload = op.workload((70, 4096), dtype)
    space = families.find(op, "cuda").space(op.program(), workload, device)
    online = [config for config in space if config["reduction"] == "online"]
    with Worker(Job(op.location, workload, device)) as worker:
        worker.start()
        assert failures(worker, compiled(op, workload, device, random.Random(3).sample(online, 6))) == []


@pytest.mark.gpu_memory("large")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *[("swish", "bfloat16"), ("gelu", "bfloat16")],
        *[("softmax", "bfloat16"), ("softmax", "float32"), ("layernorm", "bfloat16")],
    ],
)
def test_offsets_beyond_32_bits_are_right(name: str, dtype: str) -> None:
    """2.6 10^9 elements: beyond 2^31 elements, and 2^32 bytes. The final checks every one of them."""
    op, device = find(name), target()
    workload = op.workload((40_000, 65_536), dtype)
    needed = 6 * workload.numel * workload.itemsize  # input, output, PyTorch's result, and the check's blocks
    if device.memory_bytes < needed:
        pytest.skip(f"needs {needed / 1e9:.0f} GB of device memory")
    candidates = compiled(op, workload, device, choose(op, workload, device, seed=2)[:5])
    with Worker(Job(op.location, workload, device)) as worker:
        worker.start()
        finals = worker.finals(candidates, budget_s=1.0)
    wrong = [(e.candidate.config, e.outcome.message) for e in finals.entries if e.outcome.status != "passed"]
    assert wrong == []
    assert all(entry.samples_us for entry in finals.entries)


@pytest.mark.parametrize(
    "shape", [(3, 7), (33, 5000), (1000, 64)], ids=lambda shape: "x".join(map(str, shape))
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_example_of_an_own_template_is_right(shape: tuple[int, ...], dtype: str) -> None:
    op, device = operators.resolve(f"{ROOT / 'docs/examples/running_sum.py'}:running_sum"), target()
    workload = op.workload(shape, dtype)
    space = families.find(op, "cuda").space(op.program(), workload, device)
    candidates = compiled(op, workload, device, list(space)[::3])
    with Worker(Job(op.location, workload, device)) as worker:
        worker.start()
        assert failures(worker, candidates) == []


LOADS = """
import logging, torch, ksearch
logging.basicConfig()
k = ksearch.load("softmax", shape=(512, 8192), dtype=torch.float32, device="cuda")
x = 10 * torch.randn(512, 8192, device="cuda")
error = (k(x).double() - torch.softmax(x.double(), -1)).abs().max().item()
theirs = (torch.softmax(x, -1).double() - torch.softmax(x.double(), -1)).abs().max().item()
assert error <= 4 * theirs + 1e-7, (error, theirs)
print(k.match, "optuna" in __import__("sys").modules)
"""


def test_what_was_tuned_is_loaded_and_right() -> None:
    report = tuner.tune("softmax", (512, 8192), device="cuda", trials=20)
    assert report.trials == 20
    assert report.failures == {}
    winner = report.winner
    assert winner.target.backend == "cuda"
    assert 0 < winner.percent_of_ceiling < 110
    assert winner.time_us <= 1.05 * winner.baseline_us, "PyTorch is always a finalist"
    done = subprocess.run(
        [sys.executable, "-c", LOADS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    match, has_optuna = done.stdout.split()
    assert match.lower().endswith("exact")
    assert has_optuna == "False"
