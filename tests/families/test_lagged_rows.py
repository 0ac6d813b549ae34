"""Rows that the device shares, each stored when the next one has been summed up (`order=lagged`)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest

from ksearch import families
from ksearch.families import rowwise_sizes
from ksearch.families.rowwise_cuda import weights_of
from ksearch.operators import Op
from ksearch.types import Config, ConfigValue, Target, Workload
from tests.families.cuda_cases import TARGETS, find, misfits
from tests.families.test_cuda_run import target
from tests.families.test_split_rows import outcome

FORMS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    *(("layernorm", {"weight": w, "bias": b}) for w in ("row", "none") for b in ("row", "none")),
    *(("rmsnorm", {}), ("softmax", {}), ("l2norm", {}), ("biased_softmax", {}), ("sum_and_norm", {})),
)
LONG = (16, 4_194_304)


def lagged(
    name: str, shape: tuple[int, ...], dtype: str, options: Mapping[str, Any], device: Target
) -> tuple[Op, Workload, list[dict[str, ConfigValue]]]:
    """The configs that store rows a turn late; cache policies are drawn, not crossed."""
    op = find(name)
    workload = op.workload(shape, dtype, **options)
    bound = dict(workload.options)
    space = families.find(op, "cuda", **bound).space(op.program(**bound), workload, device)
    rng = random.Random(f"{name} {shape} {dtype} {options}")
    found = [config for config in space if config["order"] == "lagged"]
    rng.shuffle(found)
    return op, workload, found


def spread(configs: list[dict[str, ConfigValue]], count: int) -> list[Config]:
    """Of each place that weights may have, and of each size of block, as many as of the others."""
    seen: dict[tuple[ConfigValue, ...], int] = {}
    ranked = []
    for config in configs:
        key = (config["weights"], config["threads"])
        seen[key] = seen.get(key, 0) + 1
        ranked.append((seen[key], len(ranked), config))
    return [config for _, _, config in sorted(ranked)[:count]]


def test_such_configs_do_not_spill() -> None:
    todo = []
    for place, (name, options) in enumerate(FORMS):
        shape, dtype = ((LONG, "float32"), ((3, 1_000_000), "bfloat16"))[place % 2]
        _, workload, configs = lagged(name, shape, dtype, options, TARGETS["sm_90"])
        todo += [(workload, config) for config in spread(configs, 3)]
    assert misfits(TARGETS["sm_90"], todo) == []


def test_a_row_is_late_where_one_exchange_tells_all_of_it() -> None:
    ways = {
        name: {config["reduction"] for config in lagged(name, LONG, "float32", {}, TARGETS["sm_90"])[2]}
        for name in ("softmax", "layernorm", "l2norm")
    }
    assert ways == {"softmax": {"online"}, "layernorm": {"online"}, "l2norm": {"two_step"}}


def test_each_item_of_a_row_has_a_place_for_its_weights() -> None:
    found = set()
    for name, dtype in itertools.product(("layernorm", "rmsnorm"), ("float32", "bfloat16")):
        op, workload, configs = lagged(name, LONG, dtype, {}, TARGETS["sm_90"])
        for config in configs:
            if config["weights"] != "most":
                continue
            places = weights_of(config, op.program(**dict(workload.options)), workload, TARGETS["sm_90"])
            count = rowwise_sizes.items(config, workload.cols)
            assert places.registers + places.shared + places.far == count
            assert places.far == places.ring == 0 or places.far % places.ring == 0
            found.add((places.registers > 0, places.far > 0))
    assert found == set(itertools.product((False, True), (False, True)))


# ---- on a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1_000_000), (2, 3_000_000), (3, 4_194_304), (5, 1_300_040)], ids=str)
@pytest.mark.parametrize(("name", "options"), FORMS, ids=str)
def test_late_rows_are_right(
    name: str, options: Mapping[str, Any], shape: tuple[int, ...], dtype: str
) -> None:
    """One row and several, lengths that end within an item; each runs twice and must give the same bits."""
    device = target()
    op, workload, configs = lagged(name, shape, dtype, options, device)
    if not configs:
        pytest.skip("no block has the registers for its part of such a row")
    assert outcome(op, workload, device, spread(configs, 4)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_late_rows_of_several_teams_are_right(dtype: str) -> None:
    """More rows than teams, and not a multiple of them."""
    device = target()
    for name, shape, options in (
        ("groupnorm", (5, 18, 512, 512), {"groups": 3}),
        ("softmax", (37, 262_144), {}),
        ("layernorm", (37, 262_144), {}),
    ):
        op, workload, configs = lagged(name, shape, dtype, options, device)
        assert outcome(op, workload, device, spread(configs, 4)) == []
