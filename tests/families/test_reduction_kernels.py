"""Kernels of the reduction families, compiled and run: exact places, sums as good as PyTorch's, the same bits
with any number of threads. That every op is right is tests/families/test_builtin_kernels.py."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ksearch import artifacts, backends, families, operators
from ksearch.evaluate.messages import Job
from ksearch.evaluate.pool import CompilePool
from ksearch.evaluate.worker import Worker
from ksearch.families.base import nearest
from ksearch.render import render
from ksearch.types import Candidate, Config, ConfigValue, Option, Status, Target, Workload
from tests.families.test_cuda_run import compiled, failures

BACKENDS = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


def target(backend: str) -> Target:
    found = backends.get(backend).target(0)
    return replace(found, units=2) if backend == "cpu" else found


def guesses(workload: Workload, backend: str) -> list[dict[str, ConfigValue]]:
    """As a search takes them: what is not valid is rounded to what is."""
    op, options = operators.get(workload.op), dict(workload.options)
    family, program = families.find(op, backend, **options), op.program(**options)
    space = family.space(program, workload, target(backend))
    return nearest(space, *family.guesses(program, workload, target(backend)))


def run(workload: Workload, config: Config, backend: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The kernel's outputs."""
    op, options = operators.get(workload.op), dict(workload.options)
    family, found = families.find(op, backend, **options), backends.get(backend)
    launch = family.launch(config, op.program(**options), workload, target(backend))
    artifact = artifacts.build(found, render(op, workload, config, target(backend)))
    kernel = found.load(Path(artifact.binary), launch, 0)
    given = [each.contiguous().to(backend) for each in tensors]
    pairs = zip(op.output_shapes(workload), op.output_dtypes(workload), strict=True)
    outputs = [torch.empty(shape, dtype=getattr(torch, dtype), device=backend) for shape, dtype in pairs]
    stream = torch.cuda.current_stream().cuda_stream if backend == "cuda" else 0
    kernel(tuple(each.data_ptr() for each in (*given, *outputs)), workload.rows, stream)
    results = tuple(each.cpu() for each in outputs)
    kernel.unload()
    return results


def first(name: str, shape: tuple[int, ...], dtype: str = "float32", **options: Option) -> Workload:
    return operators.get(name).workload(shape, dtype, **options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_of_equal_extremes_the_first_is_named(name: str, backend: str, dtype: str) -> None:
    """Wherever they lie: in other threads, other parts of the row, in its head and tail."""
    cols = 70_003
    places = (0, 1, 31, 32_767, 32_768, 40_000, 65_535, cols - 2, cols - 1)
    pairs = [*itertools.combinations(places, 2)]
    x = torch.rand(len(pairs) + 3, cols, generator=torch.Generator().manual_seed(0))
    for row, (one, other) in enumerate(pairs):
        x[row, [one, other]] = 2.0 if row % 2 else torch.nan
    x[-3], x[-2, :], x[-1, 0] = -torch.inf, 1.0, torch.inf
    x = (-x if name == "argmin" else x).to(getattr(torch, dtype))
    wanted = getattr(x, name)(-1)
    assert wanted[: len(pairs)].tolist() == [one for one, _ in pairs]
    assert wanted[-3:].tolist() == [0, 0, 0]
    workload = first(name, tuple(x.shape), dtype, dim="-1")
    for config in guesses(workload, backend)[:2]:
        assert torch.equal(run(workload, config, backend, x)[0], wanted), config
    flat = x[4].clone()
    whole = first(name, (cols,), dtype)
    for config in guesses(whole, backend)[:2]:
        assert run(whole, config, backend, flat)[0].item() == wanted[4].item(), config


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["uniform", "normal", "growing"])
def test_sums_are_as_accurate_as_pytorchs(kind: str, backend: str) -> None:
    """On average over 64 of them: what one sum is off by is luck."""
    x = torch.rand(64, 100_003, generator=torch.Generator().manual_seed(1))
    if kind == "normal":
        x.normal_(generator=torch.Generator().manual_seed(2))
    elif kind == "growing":
        x = x.sort(-1).values
    exact = x.double().sum(-1)

    def off(result: torch.Tensor) -> float:
        return (result.double().cpu() - exact).square().mean().sqrt().item()

    theirs = max(off(x.to(backend).sum(-1)), off(exact.float()))
    workload = first("sum", (64, 100_003), dim="-1")
    for config in guesses(workload, backend)[:3]:
        assert off(run(workload, config, backend, x)[0]) <= 1.3 * theirs, config


def test_neither_threads_nor_their_number_change_a_bit() -> None:
    x = torch.randn(3, 200_003, generator=torch.Generator().manual_seed(3))
    workload = first("logsumexp", (3, 200_003))
    base = {"reduction": "online", "simd": 0, "unroll": 4, "rows_per_task": 0, "prefetch": False}
    op = operators.get("logsumexp")
    space = families.find(op, "cpu").space(op.program(), workload, replace(target("cpu"), units=4))
    base["simd"] = space.axes["simd"][0]
    configs = [
        {**base, "threads": threads, "split": split} for threads in (1, 2, 4) for split in (False, True)
    ]
    configs = [config for config in configs if config["threads"] != 1 or not config["split"]]
    assert all(config["simd"] for config in configs)
    results = [run(workload, config, "cpu", x)[0] for config in configs]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_target_that_is_no_class_is_not_read(backend: str) -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(4))
    target_ = torch.tensor([0, 49, 7, -100, 50, -1])
    workload = first("cross_entropy", (6, 50), reduction="none")
    (loss,) = run(workload, guesses(workload, backend)[0], backend, logits, target_)
    wanted = F.cross_entropy(logits[:4], target_[:4], reduction="none")
    torch.testing.assert_close(loss[:4], wanted)
    assert loss[4:].isnan().all(), "PyTorch raises an error, or ends the process"
    nothing = first("cross_entropy", (6, 50))
    (mean,) = run(nothing, guesses(nothing, backend)[0], backend, logits, torch.full((6,), -100))
    assert mean.isnan(), "the mean of nothing"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["var", "prod", "argmax", "mse_loss"])
def test_one_element_and_one_column(name: str, backend: str) -> None:
    count = len(operators.get(name).inputs)
    options: dict[str, Option] = {} if name == "mse_loss" else {"dim": "-1"}
    if name == "var":
        options["correction"] = 0.0  # of one element PyTorch warns
    for shape in ((1,), (5, 1)):
        workload = first(name, shape, **options)
        tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
        (result,) = run(workload, guesses(workload, backend)[0], backend, *tensors)
        wanted = operators.get(name).reference(*tensors, **dict(workload.options))
        torch.testing.assert_close(result, wanted, equal_nan=True)


# ---- on a GPU: samples of the space, as a search checks them ----------------------------------------------


CASES: tuple[tuple[str, Mapping[str, Any], tuple[int, ...], str], ...] = (
    ("sum", {"dim": "-1"}, (1000, 257), "float32"),
    ("sum", {"dim": "-1"}, (8, 131_072), "bfloat16"),
    ("sum", {}, (5_000_003,), "float32"),
    ("mean", {"dim": "-2,-1"}, (40, 64, 63), "float16"),
    ("amax", {"dim": "-1"}, (300, 8192), "bfloat16"),
    ("argmax", {"dim": "-1"}, (70, 50_257), "bfloat16"),
    ("argmin", {}, (3, 700_001), "float32"),
    ("logsumexp", {}, (64, 4096), "bfloat16"),
    ("logsumexp", {}, (3, 300_001), "float32"),
    ("var", {}, (300, 8192), "float32"),
    ("var", {"dim": "-1"}, (1000, 96), "float16"),
    ("norm", {"dim": "-1"}, (17, 50_257), "float16"),
    ("mse_loss", {}, (640, 4096), "bfloat16"),
    ("kl_div", {"reduction": "batchmean"}, (128, 1003), "float32"),
    ("triplet_margin_loss", {}, (1001, 257), "float32"),
    ("cross_entropy", {}, (640, 4096), "bfloat16"),
    ("cross_entropy", {}, (7, 128_256), "float32"),
    ("cross_entropy", {"reduction": "none", "label_smoothing": 0.2}, (333, 1003), "float32"),
)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[2]))}-{case[3]}")
def test_every_sampled_config_is_right(case: tuple[str, Mapping[str, Any], tuple[int, ...], str]) -> None:
    name, options, shape, dtype = case
    device, workload = target("cuda"), first(name, shape, dtype, **options)
    op = operators.get(name)
    family, program = (
        families.find(op, "cuda", **dict(workload.options)),
        op.program(**dict(workload.options)),
    )
    space = list(family.space(program, workload, device))
    configs = [*guesses(workload, "cuda")[:3], *random.Random(5).sample(space, min(7, len(space)))]
    with CompilePool("cuda", 4) as pool:
        for number, config in enumerate(configs):
            pool.submit(number, render(op, workload, config, device))
        builds = pool.completed(wait_for_all=True)
    with Worker(Job(op.location, workload, device)) as worker:
        worker.start()
        for build in builds:
            config = dict(configs[int(str(build.tag))])
            assert build.artifact is not None, f"{build.message}: {config}"
            assert build.artifact.spill_bytes == 0, config
            launch = family.launch(config, program, workload, device)
            outcome = worker.screen(Candidate(config, launch, build.artifact))
            assert outcome.status is Status.PASSED, (outcome.message, config)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["sum", "argmax", "amax"])
def test_parts_of_a_row_meet_in_a_cluster(name: str, dtype: str) -> None:
    device = target("cuda")
    op, workload = operators.get(name), first(name, (9, 100_001), dtype, dim="-1")
    family, program = families.find(op, "cuda", dim="-1"), op.program(dim="-1")
    space = family.space(program, workload, device)
    configs = random.Random(6).sample([each for each in space if each["grid"] == "cluster"], 8)
    with Worker(Job(op.location, workload, device)) as worker:
        worker.start()
        assert failures(worker, compiled(op, workload, device, configs)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["amax", "amin"])
def test_an_extreme_of_halves_is_exact(name: str, dtype: str) -> None:
    """Infinities, numbers below the normal ones, and NaN wherever one is."""
    x = torch.randn(40, 4096, generator=torch.Generator().manual_seed(7))
    x[0], x[1, 5], x[2, 4095], x[3, 17] = torch.inf, -torch.inf, torch.inf, torch.nan
    x[4], x[5], x[6, ::2] = 1e-7, -torch.inf, -0.0
    x = x.to(getattr(torch, dtype))
    workload = first(name, (40, 4096), dtype, dim="-1")
    for config in guesses(workload, "cuda")[:3]:
        result = run(workload, config, "cuda", x)[0]
        torch.testing.assert_close(result, getattr(x, name)(-1), rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.gpu_memory("large")
@pytest.mark.slow
def test_places_beyond_32_bits_are_right() -> None:
    """2.6 10^9 elements of bfloat16, and the largest is the last but one."""
    count = 2_600_000_003
    if target("cuda").memory_bytes < 3 * 2 * count:
        pytest.skip(f"needs {6 * count / 1e9:.0f} GB of device memory")
    x = torch.zeros(count, dtype=torch.bfloat16, device="cuda")
    x[-2:] = 1.0
    workload = first("argmax", (count,), "bfloat16")
    assert run(workload, guesses(workload, "cuda")[0], "cuda", x)[0].item() == count - 2
