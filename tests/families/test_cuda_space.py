"""What the CUDA families offer to the search: never nothing, nothing twice, nothing beyond the device."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ksearch.types import Config
from tests.families.cuda_cases import DTYPES, LENGTHS, TARGETS, Case

SMALL = (*range(1, 21), 33, 100)


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("name", ["softmax", "residual_softmax", "sigmoid", "biased_relu"])
def test_there_is_a_config_for_every_length(name: str, arch: str) -> None:
    shapes = [(rows, cols) for cols in (*SMALL, *LENGTHS) for rows in (1, 64)]
    empty = [
        (shape, dtype)
        for shape in shapes
        for dtype in DTYPES
        if next(iter(Case(name, shape, dtype, arch).space), None) is None
    ]
    assert empty == []


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("name", ["softmax", "rmsnorm", "swish"])
def test_guesses_are_in_the_space_or_close_to_it(name: str, arch: str) -> None:
    """What differs is rounded by the search to the nearest valid config; it must not be another idea."""
    far: list[object] = []
    for cols in (1, 7, 20, 256, 1003, 4096, 50257, 393216):
        for dtype in ("float32", "bfloat16"):
            case = Case(name, (64, cols), dtype, arch)
            axes = list(case.space.axes)
            heads = {tuple(config[n] for n in axes) for config in case.space}
            guesses = case.family.guesses(case.program, case.workload, case.target)
            assert guesses
            for guess in guesses:
                assert set(guess) == set(case.space.values), "a value for every parameter"
                wanted = [guess[n] for n in axes]
                nearest = min(sum(a != b for a, b in zip(head, wanted, strict=True)) for head in heads)
                # no clusters on sm_80, no prefetch where rows are not aligned, fewer threads for short rows
                if nearest > 3:
                    far.append((str(case), guess, nearest))
    assert far == []


@pytest.mark.parametrize(
    ("name", "cols", "arch"),
    [
        ("softmax", 256, "sm_90"),
        ("softmax", 8192, "sm_90"),
        ("rmsnorm", 1003, "sm_80"),
        ("add_gated", 100, "sm_90"),
    ],
)
def test_two_configs_are_two_kernels(name: str, cols: int, arch: str) -> None:
    case = Case(name, (64, cols), "bfloat16", arch)
    configs = random.Random(1).sample(list(case.space), 250)
    kernels: dict[object, Config] = {}
    for config in configs:
        kernel = (
            case.source(config).text,
            case.family.launch(config, case.program, case.workload, case.target),
        )
        assert kernel not in kernels, f"{config} is the same kernel as {kernels[kernel]}"
        kernels[kernel] = config


def test_a_device_of_few_multiprocessors_has_configs_too() -> None:
    """A quarter of one multiprocessor is none, and no number of blocks to split a row over."""
    case = Case("softmax", (8, 131072), "float32", "sm_90")
    for units in (1, 3):
        small = replace(case.target, units=units)
        splits = {int(config["split"]) for config in case.family.space(case.program, case.workload, small)}
        assert min(splits) == 1
        assert max(splits) <= 4 * units


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("cols", [5, 256, 8192, 50257, 393216])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["residual_softmax", "layernorm"])
def test_no_config_asks_for_more_than_the_device_has(name: str, cols: int, dtype: str, arch: str) -> None:
    case = Case(name, (64, cols), dtype, arch)
    row_bytes = cols * case.workload.itemsize
    for configs in case.regions(random.Random(2)):
        for config in configs:
            launch = case.family.launch(config, case.program, case.workload, case.target)
            assert launch.block % 32 == 0
            assert launch.block <= 1024
            assert launch.block * int(config["min_blocks"]) <= 2048
            assert launch.smem_bytes <= case.target.smem_bytes
            assert 1 <= launch.cluster <= (16 if arch == "sm_90" else 1)
            assert launch.alignment == int(config["vec"]) * case.workload.itemsize <= 16
            if launch.smem_bytes:  # filled by bulk copies of whole rows: 16 bytes at a time
                assert arch == "sm_90"
                assert row_bytes % 16 == 0
            assert launch.persistent == (int(config["prefetch"]) > 0 or launch.split > 1)
            assert (launch.workspace_bytes > 0) == (config["order"] == "ticket" or launch.split > 1)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 7), (1000, 257), (70_000, 65_536)])
def test_the_grid_reaches_every_element(rows: int, cols: int) -> None:
    for name in ("sigmoid", "softmax"):
        case = Case(name, (rows, cols), "float32", "sm_90")
        for config in case.sample(random.Random(3), 1, 1):
            launch = case.family.launch(config, case.program, case.workload, case.target)
            groups = launch.grid(rows) // (launch.cluster * launch.split)
            work = rows * launch.work_per_row
            assert (groups - 1) * launch.work_per_block < work <= groups * launch.work_per_block
            assert work == (rows * cols if name == "sigmoid" else rows)
