"""Sums and products along rows: kernels of the CPU run, those of CUDA compiled, and run where it is a GPU."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from ksearch import backends, families
from ksearch.evaluate.messages import Job
from ksearch.evaluate.worker import Worker
from ksearch.families.scan_cuda import Limits
from ksearch.operators import Op
from ksearch.types import Config, Target, Workload
from tests.families.cuda_cases import DTYPES, TARGETS, find, misfits
from tests.families.test_cpu_families import check, cover, inputs, run, space_of
from tests.families.test_cuda_run import compiled, failures, target

NAMES = ("cumsum", "cumprod", "reverse_cumsum", "exclusive_cumsum", "masked_cumsum")
SHAPES = ((1, 1), (3, 7), (5, 1000), (2, 50257))
LENGTHS = (5, 256, 1003, 4096, 50257, 1_000_000)


def tensors_for(op: Op, workload: Workload) -> list[Tensor]:
    """Products stay near 1: beyond the range of float the order of the factors decides what is left."""
    given = inputs(op, workload.shape, workload.dtype)
    if op.name == "masked_cumsum":
        given[1] = given[1] > 0
    return [(1 + 0.01 * each).to(each.dtype) for each in given] if op.name == "cumprod" else given


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [*NAMES, "decay"])
def test_values_of_a_config_from_the_space(name: str, shape: tuple[int, ...]) -> None:
    op, place = find(name), 7 * SHAPES.index(shape) + len(name)
    workload = op.workload(shape, DTYPES[place % len(DTYPES)])
    configs = list(space_of(op, workload))
    tensors = tensors_for(op, workload)
    check(run(op, workload, configs[7919 * place % len(configs)], tensors, shift=place % 5), op, tensors)


@pytest.mark.parametrize("name", ["cumsum", "reverse_cumsum"])
def test_every_value_of_every_parameter(name: str) -> None:
    op = find(name)
    workload = op.workload((3, 70_001))
    tensors = tensors_for(op, workload)
    configs = list(cover(space_of(op, workload)))
    assert any(config["split"] for config in configs)
    for config in configs:
        check(run(op, workload, config, tensors, shift=1), op, tensors)


def test_an_infinity_does_not_reach_what_comes_before_it() -> None:
    for name in ("cumsum", "reverse_cumsum", "cumprod"):
        op = find(name)
        workload = op.workload((4, 1003))
        rows = torch.randn(workload.shape, generator=torch.Generator().manual_seed(1))
        rows[0, 500], rows[1, 0], rows[2, -1], rows[3, 700] = torch.inf, -torch.inf, torch.nan, torch.nan
        config = families.find(op, "cpu").guesses(op.program(), workload, backends.get("cpu").target())[0]
        check(run(op, workload, config, [rows]), op, [rows])


def test_long_sums_are_as_exact_as_pytorchs() -> None:
    op = find("cumsum")
    workload = op.workload((1, 1_000_001))
    tensors = [torch.rand(workload.shape) + 1]
    for config in [c for c in space_of(op, workload) if c["split"]][:1]:
        check(run(op, workload, config, tensors), op, tensors)


def tight(op: Op, workload: Workload, device: Target, count: int, rng: random.Random) -> list[Config]:
    """The configs that come closest to the register limit, and as many from anywhere."""
    configs = list(families.find(op, "cuda").space(op.program(), workload, device))
    rng.shuffle(configs)
    limits = Limits(op.program(), workload, device)
    return [*sorted(configs, key=limits.slack)[:count], *configs[:count]]


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_cuda_configs_compile_and_fit(name: str, arch: str) -> None:
    op, device, rng = find(name), TARGETS[arch], random.Random(f"{name} {arch}")
    todo = []
    for place, cols in enumerate(LENGTHS[NAMES.index(name) % 2 :: 2]):
        workload = op.workload((32, cols), DTYPES[(place + NAMES.index(name)) % len(DTYPES)])
        todo += [(workload, config) for config in tight(op, workload, device, 1, rng)]
    assert misfits(device, todo) == []


@pytest.mark.parametrize("arch", TARGETS)
def test_every_length_has_configs_and_guesses_near_them(arch: str) -> None:
    op, device = find("cumsum"), TARGETS[arch]
    for cols in (*range(1, 20), *LENGTHS):
        for rows in (1, 64):
            workload = op.workload((rows, cols))
            family = families.find(op, "cuda")
            space = family.space(op.program(), workload, device)
            assert next(iter(space), None) is not None, workload
            for guess in family.guesses(op.program(), workload, device):
                assert set(guess) == set(space.values)
                assert all(guess[name] in values for name, values in space.values.items() if name != "split")


def test_few_long_rows_are_split_and_products_never_are() -> None:
    device = TARGETS["sm_90"]
    for name, expected in (("cumsum", True), ("cumprod", False)):
        op = find(name)
        space = families.find(op, "cuda").space(op.program(), op.workload((1, 10_000_000)), device)
        assert (max(int(n) for n in space.axes["split"]) > 1) == expected


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 7), (1000, 257), (64, 4096), (17, 50257), (3, 1_000_003), (1, 10_000_000)], ids=str
)
@pytest.mark.parametrize("name", [*NAMES, "decay"])
def test_cuda_kernels_are_right(name: str, shape: tuple[int, ...]) -> None:
    op, device = find(name), target()
    # Of a random walk of 10 million steps float16 holds little, and PyTorch's own error then says nothing.
    dtype = "float32" if shape[-1] > 10**6 else DTYPES[(len(name) + shape[-1]) % len(DTYPES)]
    workload = op.workload(shape, dtype)
    family = families.find(op, "cuda")
    space = family.space(op.program(), workload, device)
    guesses = [guess for guess in family.guesses(op.program(), workload, device) if space.allows(guess)]
    configs = [*guesses[:3], *tight(op, workload, device, 3, random.Random(1))]
    with Worker(Job(op.location, workload, device)) as worker:
        worker.start()
        assert failures(worker, compiled(op, workload, device, configs)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_blocks_share_is_right(dtype: str) -> None:
    op, device = find("cumsum"), target()
    workload = op.workload((5, 700_001), dtype)
    configs = list(families.find(op, "cuda").space(op.program(), workload, device))
    random.Random(2).shuffle(configs)
    shared = [config for config in configs if int(config["split"]) > 1][:12]
    assert len(shared) == 12
    with Worker(Job(op.location, workload, device)) as worker:
        worker.start()
        assert failures(worker, compiled(op, workload, device, shared)) == []


def test_what_is_traced_around_a_scan() -> None:
    before, after = find("decay").program().around_scan
    assert [item.name for item in after.inputs] == ["x", "gate", "rate", "scanned"]
    assert before.schedule().output_inputs == ("x", "gate")
    assert after.schedule().output_inputs == ("x", "scanned")
    assert find("decay").program().family == "scan"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.flip(-1), "the result is reversed: flip it back"),
        (lambda x: x.flip(-1) + x, "a reversed tensor meets one that is not"),
        (lambda x: x.cumsum(0), "dims must be counted from the last: write dim=-1"),
        (lambda x: x.cumsum(-1).cumsum(-1), "two sums or products along the columns"),
        (lambda x: x.softmax(-1).cumsum(-1), "both reduces the columns and sums up along them"),
        (lambda x: x.cumsum(-1) / x.sum(-1, keepdim=True), "both reduces the columns and sums up along them"),
        (lambda x: torch.nn.functional.pad(x[..., :-1], (1, 0)), "only a cumsum can be shifted"),
        (lambda x: torch.nn.functional.pad(x, (1, 0)), "only a sum along the columns can be shifted"),
        (lambda x: x[..., :-1], "must be a tensor, not a part of a tensor"),
    ],
)
def test_what_cannot_be_traced_is_told(function: object, message: str) -> None:
    from ksearch.errors import TraceError
    from ksearch.operators.program import Input
    from ksearch.operators.trace import trace

    with pytest.raises(TraceError, match=message):
        trace(function, [Input("x")], {})  # type: ignore[arg-type]
