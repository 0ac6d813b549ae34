"""Sums and products along a dim that is not the last: kernels of the CPU run, those of CUDA compiled."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import ksearch
from ksearch import families, operators
from ksearch.evaluate.messages import Job
from ksearch.evaluate.worker import Worker
from ksearch.families.base import Space, nearest
from ksearch.families.strided_scan_cuda import Limits
from ksearch.operators import Op
from ksearch.types import Config, Status, Target, Workload
from tests.families.cuda_cases import DTYPES, TARGETS, find, misfits
from tests.families.host_threads import run_on_host
from tests.families.test_cpu_families import TARGET, cover
from tests.families.test_cuda_run import compiled, failures, target
from tests.families.test_strided import verdicts

CASES: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("cumsum", (3, 50, 37), "-2"),
    ("cumprod", (2, 9, 40, 33), "-3"),
    ("reverse_cumsum", (300, 70), "-2"),
    ("exclusive_cumsum", (2, 64, 5, 33), "-3"),
    ("masked_cumsum", (3, 500, 37), "-2"),
    ("decay", (2, 130, 41), "-2"),
    ("cumsum", (4, 7, 1), "-2"),
)
PASSED = [(Status.PASSED, "")] * 2


def space_of(op: Op, workload: Workload, device: Target) -> Space:
    options = dict(workload.options)
    return families.find(op, device.backend, **options).space(op.program(**options), workload, device)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[1]))}")
def test_a_config_from_the_space_is_right(case: tuple[str, tuple[int, ...], str]) -> None:
    name, shape, dim = case
    op, place = find(name), CASES.index(case)
    workload = op.workload(shape, DTYPES[place % len(DTYPES)], dim=dim)
    program, family = op.program(dim=dim), families.find(op, "cpu", dim=dim)
    assert program.family == family.name == "strided_scan"
    configs = list(space_of(op, workload, TARGET))
    assert verdicts(workload, configs[7919 * (place + 1) % len(configs)]) == PASSED
    assert all(guess in configs for guess in family.guesses(program, workload, TARGET))


def test_every_value_of_every_parameter() -> None:
    op = operators.get("reverse_cumsum")
    workload = op.workload((2, 1100, 37), dim="-2")
    configs = list(cover(space_of(op, workload, TARGET)))
    assert any(config["split"] for config in configs)
    for config in configs:
        assert verdicts(workload, config) == PASSED, config


def test_the_dim_of_a_call_is_the_workloads() -> None:
    x = torch.randn(3, 4, 5)
    for dim in (-3, -2, -1, 0, 1, 2):
        torch.testing.assert_close(ksearch.ops.cumsum(x, dim), x.cumsum(dim), rtol=0, atol=0)
    torch.testing.assert_close(
        ksearch.ops.exclusive_cumsum(x, dim="-2"), x.cumsum(-2) - x, rtol=1e-5, atol=1e-5
    )
    one, last = (operators.get("cumsum").workload((3, 4, 5), dim=dim) for dim in ("-2", "-1"))
    assert (one.rows, one.cols, one.stride) == (15, 4, 5)
    assert last == operators.get("cumsum").workload((3, 4, 5)), "which has the key that it always had"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.flip(-2).cumsum(-1).flip(-2), "over dim -2, and another reduction over dim -1|dim -1"),
        (lambda x: torch.nn.functional.pad(x.cumsum(-2), (1, -1)), "over dim -1"),
        (lambda x: torch.nn.functional.pad(x.cumsum(-2), (1, 0)), r"write F.pad\(y, \(1, -1\)\)"),
    ],
)
def test_what_goes_along_other_dims_is_told(function: object, message: str) -> None:
    from ksearch.errors import TraceError
    from ksearch.operators.program import Input
    from ksearch.operators.trace import trace

    with pytest.raises(TraceError, match=message):
        trace(function, [Input("x")], {})  # type: ignore[arg-type]


def tight(op: Op, workload: Workload, device: Target, count: int, rng: random.Random) -> list[Config]:
    """The configs that come closest to the register limit, as many from anywhere, and one in parts."""
    configs: list[Config] = list(space_of(op, workload, device))
    rng.shuffle(configs)
    limits = Limits(op.program(**dict(workload.options)), workload, device)
    parts = [config for config in configs if int(config["parts"]) > 1]
    return [*sorted(configs, key=limits.slack)[:count], *configs[:count], *parts[:1]]


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("name", ["cumprod", "masked_cumsum", "decay"])
def test_cuda_configs_compile_and_fit(name: str, arch: str) -> None:
    op, device, rng = find(name), TARGETS[arch], random.Random(f"{name} {arch}")
    todo = []
    for place, shape in enumerate([(64, 512, 4095), (1, 100_000, 64), (3, 33, 8192)]):
        workload = op.workload(shape, DTYPES[(place + len(name)) % len(DTYPES)], dim="-2")
        todo += [(workload, config) for config in tight(op, workload, device, 1, rng)]
    assert misfits(device, todo) == []


def test_guesses_where_functions_are_summed_up_fit() -> None:
    """A thread that keeps 32 sigmoids beside the columns that they were made of spills."""
    op, device = find("decay"), TARGETS["sm_90"]
    workload, program = op.workload((2, 4096, 256), dim="-2"), op.program(dim="-2")
    guesses = families.find(op, "cuda", dim="-2").guesses(program, workload, device)
    allowed = [guess for guess in guesses if space_of(op, workload, device).allows(guess)]
    assert misfits(device, [(workload, guess) for guess in allowed[:3]]) == []


@pytest.mark.parametrize(
    ("name", "shape", "wish"),
    [
        ("cumsum", (2, 301, 8), {"across": 8, "down": 4, "vec": 2, "items": 4, "parts": 8, "prefetch": True}),
        ("masked_cumsum", (1, 37, 40), {"across": 16, "down": 2, "vec": 4, "items": 2, "parts": 1}),
        ("decay", (3, 50, 7), {"across": 8, "down": 4, "vec": 1, "items": 2, "parts": 2, "prefetch": False}),
    ],
)
def test_cuda_kernels_are_right_on_the_host(
    name: str, shape: tuple[int, ...], wish: Config, tmp_path: Path
) -> None:
    op, device = find(name), TARGETS["sm_90"]
    workload = op.workload(shape, dim="-2")
    (config,) = nearest(space_of(op, workload, device), wish)
    assert {key: config[key] for key in wish} == wish
    draw = torch.Generator().manual_seed(3)
    tensors = [torch.randn(each, generator=draw) for each in op.input_shapes(shape, {"dim": "-2"})]
    if name == "masked_cumsum":
        tensors[1] = tensors[1] > 0
    found = run_on_host(op, workload, config, device, tensors, tmp_path)
    wide = [each.double() if each.is_floating_point() else each for each in tensors]
    torch.testing.assert_close(
        found.double(), op.reference(*wide, dim="-2"), rtol=1e-5, atol=1e-5, check_stride=False
    )


def test_the_grid_takes_every_part_of_every_row() -> None:
    op, device = operators.get("cumsum"), TARGETS["sm_90"]
    program = op.program(dim="-2")
    for shape in ((3, 640, 100), (1, 64, 4095), (70_000, 2, 3)):
        workload, family = op.workload(shape, dim="-2"), families.find(op, "cuda", dim="-2")
        configs = list(family.space(program, workload, device))
        for config in configs[:: max(1, len(configs) // 20)]:
            launch = family.launch(config, program, workload, device)
            places = -(-workload.stride // (int(config["across"]) * int(config["vec"])))
            grids = {each.grid(workload.rows) for each in (*launch.before, launch)}
            assert grids == {shape[0] * places * int(config["parts"])}
            assert bool(launch.before) == (launch.scratch_bytes > 0) == (int(config["parts"]) > 1)
    for name, expected in (("cumsum", True), ("cumprod", False)):
        few = operators.get(name)
        workload = few.workload((1_000_000, 8), dim="-2")
        parts = {int(config["parts"]) for config in space_of(few, workload, device)}
        assert (max(parts) > 1) == expected


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 7, 5), (4, 64, 8192), (3, 500, 4095), (2, 4096, 256), (1, 100_003, 24)], ids=str
)
@pytest.mark.parametrize("name", [case[0] for case in CASES[:-1]])
def test_cuda_kernels_are_right(name: str, shape: tuple[int, int, int]) -> None:
    op, device = find(name), target()
    workload = op.workload(shape, DTYPES[(len(name) + shape[1]) % len(DTYPES)], dim="-2")
    space, family = space_of(op, workload, device), families.find(op, "cuda", dim="-2")
    guesses = [
        guess for guess in family.guesses(op.program(dim="-2"), workload, device) if space.allows(guess)
    ]
    configs = [*guesses[:3], *tight(op, workload, device, 3, random.Random(1))]
    with Worker(Job(op.location, workload, device)) as worker:
        worker.start()
        assert failures(worker, compiled(op, workload, device, configs)) == []
