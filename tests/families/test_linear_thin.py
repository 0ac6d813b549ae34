"""Linears of few rows by dot products: where they are offered, what they compile to, and their values."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from ksearch.types import Config
from tests.families.cuda_cases import TARGETS
from tests.families.linear_cases import Case
from tests.families.test_linear_cuda import problem
from tests.families.test_linear_cuda_run import check, device

AXES = ("features", "warps", "unroll")


def thin(case: Case) -> list[Config]:
    return [config for config in case.configs if config["strategy"] == "thin"]


def each_value(case: Case, rng: random.Random) -> list[Config]:
    """For every value of the strategy's own axes a config."""
    found = thin(case)
    picked = []
    for axis in AXES:
        values = dict.fromkeys(config[axis] for config in found)
        picked += [rng.choice([config for config in found if config[axis] == value]) for value in values]
    return picked


@pytest.mark.parametrize("policy", ["strict", "tf32"])
@pytest.mark.parametrize("arch", TARGETS)
def test_it_is_tried_first_for_few_rows_in_float32(arch: str, policy: str) -> None:
    made = Case("linear_silu", (8, 4096, 1000), "float32", policy, TARGETS[arch])
    guesses = made.family.guesses(made.program, made.workload, made.target)
    assert guesses[0]["strategy"] == "thin"
    assert all(made.space.allows(guess) for guess in guesses)
    assert {config["strategy"] for config in guesses} >= {"thin", "library"}
    for config in thin(made):
        launch = made.family.launch(config, made.program, made.workload, made.target)
        assert launch.grid(8) * int(config["features"]) * int(config["warps"]) >= 1000


@pytest.mark.parametrize(
    ("dims", "dtype", "prepacked"),
    [((9, 64, 64), "float32", False), ((1, 64, 64), "bfloat16", False), ((1, 64, 64), "float32", True)],
)
def test_where_it_is_not_offered_its_axes_are_not_there(
    dims: tuple[int, ...], dtype: str, prepacked: bool
) -> None:
    made = Case("linear", dims, dtype, prepacked=prepacked)
    assert not thin(made)
    assert not set(AXES) & set(made.configs[0])


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("linear_silu", (1, 4096, 14336)),
        ("linear_sigmoid_sum", (8, 4095, 1001)),
        ("linear_gated", (3, 34, 17)),
    ],
    ids=str,
)
def test_kernels_compile_without_spills(name: str, dims: tuple[int, ...], arch: str) -> None:
    made = Case(name, dims, target=TARGETS[arch])
    configs = each_value(made, random.Random(f"{name} {arch}"))
    with ThreadPoolExecutor(2) as pool:
        assert [
            found for found in pool.map(lambda config: problem(made, config, most_stack=0), configs) if found
        ] == []


@pytest.mark.gpu
@pytest.mark.parametrize(
    "dims", [(1, 4096, 300), (3, 33, 17), (8, 4095, 1001), (5, 102, 70), (1, 1, 1)], ids=str
)
@pytest.mark.parametrize("name", ["linear", "linear_sigmoid_sum", "linear_gated", "linear_extremes"])
def test_results_are_as_exact_as_pytorchs(name: str, dims: tuple[int, ...]) -> None:
    case = Case(name, dims, target=device())
    configs = [{**config, "math": "exact"} for config in each_value(case, random.Random(f"{name} {dims}"))]
    assert configs
    assert check(case, configs, ["uniform", "normal", "wide"], strictly=True) == []
