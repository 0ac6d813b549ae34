"""Two warpgroups that take turns, on a GPU: the bits of those that share a tile, whatever the tiles are."""

from __future__ import annotations

import random

import pytest
import torch

from ksearch.families.linear_tiles import Tiles, ceil_div
from ksearch.types import Config
from tests.families.linear_cases import SPLIT, Case, Runner, guarded
from tests.families.test_linear_cuda_run import (  # noqa: F401  (a fixture for all tests)
    _strict,
    build,
    candidates,
    check,
    costs_one_candidate,
    device,
    odd_features,
    odd_rows,
)

pytestmark = pytest.mark.gpu

KINDS = (
    ("bfloat16", "bfloat16", "strict"),
    ("float16", "float16", "strict"),
    ("tf32", "float32", "tf32"),
    *((scheme, "float32", "strict") for scheme in SPLIT),
)
"""Scheme, dtype and policy; what is split has its weight packed."""
TILES = {"one tile": (40, 520, 60), "an odd number": (600, 264, 260), "many for a block": (4100, 136, 1032)}


def twins(case: Case, rng: random.Random, **wish: object) -> tuple[Config, Config]:
    """A config in which warpgroups take turns, and one that takes the same products together."""
    mine = [c for c in case.configs if c["schedule"] == "pingpong"]
    turns = rng.choice([c for c in mine if all(c[name] == value for name, value in wish.items())])
    together = {**turns, "schedule": "cooperative", "stages": 2, "cluster": 1}
    assert case.space.allows(together)
    return turns, together


@pytest.mark.parametrize("dims", TILES.values(), ids=TILES)
@pytest.mark.parametrize(("scheme", "dtype", "policy"), KINDS)
def test_the_bits_are_those_of_warpgroups_that_share_a_tile(
    scheme: str, dtype: str, policy: str, dims: tuple[int, int, int]
) -> None:
    """Blocks of one tile and of many, more and fewer steps than buffers, with clusters and without."""
    rng, is_packed = random.Random(scheme), scheme in SPLIT
    case = Case("linear_gelu", dims, dtype, policy, device(), prepacked=is_packed)
    clusters = {config["cluster"] for config in case.configs if config["schedule"] == "pingpong"}
    for cluster in sorted(clusters, key=str):
        turns, together = twins(case, rng, scheme=scheme, cluster=cluster)
        runners = [
            Runner(case, config, built)
            for config, built in zip((turns, together), build(case, (turns, together)), strict=True)
        ]
        for seed, kind in enumerate(("uniform", "wide" if is_packed else "normal")):
            inputs = guarded(case, kind, seed)
            (one,), (other,) = (runner(inputs) for runner in runners)
            same = (one == other) | (one.isnan() & other.isnan())
            assert same.all(), f"{int((~same).sum())} of {same.numel()} elements, {kind}: {turns}"
        for runner in runners:
            runner.unload()


@pytest.mark.parametrize("name", ["linear_sigmoid_sum", "linear_extremes", "linear_gated"])
@pytest.mark.parametrize(("dtype", "policy"), [("bfloat16", "strict"), ("float32", "tf32")])
def test_what_follows_is_right_too(name: str, dtype: str, policy: str) -> None:
    """Rows reduced by either warpgroup, in memory of its own, and epilogues with tensors of their own."""
    for dims in ((130, 520, 516), (2100, 264, 1032)):
        case, rng = Case(name, dims, dtype, policy, device()), random.Random(f"{name} {dtype}")
        mine = [c for c in case.configs if c["schedule"] == "pingpong"]
        exact = [c for c in mine if c["math"] == "exact"]
        assert exact
        assert check(case, rng.sample(exact, min(8, len(exact))), ["uniform", "normal"]) == []


@pytest.mark.parametrize("scheme", SPLIT)
def test_tiles_that_splitting_spoils_are_computed_again_for_either_warpgroup(scheme: str) -> None:
    case = Case("linear", (200, 512, 516), target=device(), prepacked=True)
    turns, together = twins(case, random.Random(scheme), scheme=scheme)
    runners = Runner(case, turns), Runner(case, together)
    inputs = guarded(case, "uniform", 5)
    odd_features(inputs[1].values)
    odd_rows(inputs[0].values)
    (one,), (other,) = (runner(inputs) for runner in runners)
    assert torch.equal(one.isfinite(), other.isfinite())
    finite = one.isfinite()
    torch.testing.assert_close(one[finite], other[finite], rtol=1e-4, atol=1e-4)
    assert (one == other)[finite].float().mean() > 0.5, "the rest comes from the fast path"
    for runner in runners:
        runner.unload()


def test_a_block_has_turns_enough() -> None:
    """What the tests above are worth: some block of the largest case has tiles for both, several times."""
    case = Case("linear_gelu", TILES["many for a block"], "bfloat16", "strict", device())
    tiles = [Tiles.of(c, case.program, case.workload) for c in case.configs if c["schedule"] == "pingpong"]
    rows, _, cols = TILES["many for a block"]
    assert (
        max(ceil_div(cols, each.tile_m) * ceil_div(rows, each.tile_n) for each in tiles) > 6 * device().units
    )


def test_a_turn_that_is_never_handed_over_costs_one_candidate() -> None:
    case = Case("linear_relu", (8192, 512, 1032), "bfloat16", "strict", device())
    config = case.pick(random.Random(3), schedule="pingpong", tile_n=128, blocks_m=2)
    costs_one_candidate(case, config, "hand_over(unit + step < units);", "hand_over(false);")
