"""PyTorch's product and one kernel on a GPU: one value a row in every way; large weights in the worker."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ksearch import backends, operators
from ksearch.evaluate.messages import Job
from ksearch.evaluate.worker import Worker
from ksearch.types import Artifact, Candidate, Config, ConfigValue, Status, Workload, digest
from tests.families.test_linear_library import CUDA, source

pytestmark = pytest.mark.gpu

_MOST = 24
"""Configs of a workload, each of another region of the space."""


def candidates(workload: Workload, folder: Path) -> list[Candidate]:
    """One kernel of as many regions as there may be, and the presets."""
    op, target = operators.get(workload.op), backends.get("cuda").target(0)
    program, rng = op.program(**dict(workload.options)), random.Random(workload.key)
    found: dict[tuple[ConfigValue, ...], list[Config]] = defaultdict(list)
    for config in CUDA.space(program, workload, target):
        axes = [name for name in ("storage", "prefetch", "order", "weights", "reduction") if name in config]
        team = [int(config.get(name, 1)) > 1 for name in ("cluster", "split")]
        found[(*(config[name] for name in axes), *team)].append(config)
    regions = [rng.choice(configs) for configs in found.values()]
    chosen = [*CUDA.presets(program, workload, target), *rng.sample(regions, min(_MOST, len(regions)))]

    def build(config: Config) -> Candidate:
        binary = backends.get("cuda").compile(source(CUDA, op, workload, config, target)).binary
        identity = digest(binary)
        path = folder / f"{identity}.cubin"
        path.write_bytes(binary)
        launch = CUDA.launch(config, program, workload, target)
        return Candidate(dict(config), launch, Artifact(identity, str(folder), str(path), identity))

    with ThreadPoolExecutor(4) as pool:  # NVRTC lets go of the GIL
        return list(pool.map(build, chosen))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((64, 96, 4096), "float32"),
        ((301, 64, 1003), "float16"),
        ((300, 64, 256), "bfloat16"),
        ((19, 32, 131072), "float32"),
        ((3, 32, 393216), "bfloat16"),
        ((1, 1, 1), "float32"),
        ((2, 3, 33, 65), "float32"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["linear_sigmoid_sum", "linear_logsumexp", "linear_sigmoid_scale_residual"])
def test_every_region_is_right(name: str, shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    op = operators.get(name)
    workload = op.workload(shape, dtype)
    with Worker(Job(op.location, workload, backends.get("cuda").target(0))) as worker:
        worker.start()
        for candidate in candidates(workload, tmp_path):
            outcome = worker.screen(candidate)
            assert outcome.status is Status.PASSED, (candidate.config, outcome)
        assert worker.respawns == 0


@pytest.mark.gpu_memory("large")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    [("linear_sigmoid_sum", (128, 32768, 32768)), ("linear_sigmoid_scale_residual", (1024, 8192, 8192))],
)
def test_a_large_weight_starts_within_seconds(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    op = operators.get(name)
    workload = op.workload(shape)
    first, *_ = candidates(workload, tmp_path)
    with Worker(Job(op.location, workload, backends.get("cuda").target(0))) as worker:
        began = time.perf_counter()
        ready = worker.start()
        print(f"{workload}: {time.perf_counter() - began:.1f} s, {ready.memory_bytes / 1e9:.1f} GB, {ready}")
        assert time.perf_counter() - began < 60
        assert ready.memory_bytes < 48 << 30
        began = time.perf_counter()
        outcome = worker.screen(first)
        print(f"{time.perf_counter() - began:.2f} s: {outcome}")
        assert outcome.status is Status.PASSED, outcome
        assert outcome.check_s < 2
        (entry,) = worker.finals([first], budget_s=0.5).entries
        assert entry.outcome.status is Status.PASSED, entry.outcome
