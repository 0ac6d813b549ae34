"""Rows that the whole device shares: persistent grids of blocks anywhere, the next row in shared memory, as
much of the row vectors as fits beside it. And rows of one channel, whose weight is one value."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest

from ksearch import families
from ksearch.evaluate.messages import Job
from ksearch.evaluate.worker import Worker
from ksearch.families import rowwise_sizes
from ksearch.families.rowwise_cuda import weights_of
from ksearch.operators import Op
from ksearch.types import Config, ConfigValue, Target, Workload
from tests.families.cuda_cases import TARGETS, Case, find, misfits
from tests.families.test_cuda_run import compiled, failures, target

LONG = ((16, 4_194_304), (70, 131_072), (3, 10_000_000))
NAMES = ("layernorm", "rmsnorm", "biased_softmax", "softmax", "l2norm", "sum_and_norm")


def is_new(config: Config) -> bool:
    return int(config["split"]) > 1 and (
        config["weights"] in ("most", "favored") or int(config["prefetch"]) > 0
    )


def chosen(case: Case, seed: int, each: int) -> list[dict[str, ConfigValue]]:
    """Of each region of such configs the tightest, and others."""
    rng = random.Random(seed)
    regions = [configs for configs in case.regions(rng) if is_new(configs[0])]
    return [
        config
        for configs in regions
        for config in (configs[0], *rng.sample(configs[1:], min(each - 1, len(configs) - 1)))
    ]


def test_such_configs_fit_and_do_not_spill() -> None:
    todo: list[tuple[Workload, Config]] = []
    for place, (name, shape) in enumerate(itertools.product(NAMES, LONG)):
        case = Case(name, shape, "bfloat16" if place % 2 else "float32", "sm_90")
        configs = chosen(case, place, 1)
        todo += [(case.workload, config) for config in configs]
        for config in configs:
            launch = case.family.launch(config, case.program, case.workload, case.target)
            together = (launch.smem_bytes + 1024) * int(config["min_blocks"])
            assert together <= case.target.smem_bytes + 1024, config
    assert len(todo) > 30
    assert misfits(TARGETS["sm_90"], random.Random(0).sample(todo, 30)) == []


def test_shared_memory_that_rows_leave_holds_weights() -> None:
    case = Case("layernorm", (16, 4_194_304), "float32", "sm_90")
    items = {
        int(config["prefetch"]): weights_of(config, case.program, case.workload, case.target).shared
        for config in case.space
        if config["weights"] == "most"
        and config["order"] != "lagged"
        and (config["threads"], config["split"]) == (512, 132)
    }
    row_items = rowwise_sizes.items({"vec": 4, "threads": 512, "cluster": 1, "split": 132}, 4_194_304)
    assert (row_items, items) == (16, {0: 14, 1: 6})


def test_rows_in_any_number_are_split_where_no_cluster_holds_one() -> None:
    def splits(cols: int) -> set[int]:
        return {int(config["split"]) for config in Case("softmax", (896, cols), "float32", "sm_90").space}

    assert {66, 132} <= splits(2_097_152)
    assert splits(262_144) == {1}


# ---- on a GPU ---------------------------------------------------------------------------------------------


def outcome(op: Op, workload: Workload, device: Target, configs: list[Config]) -> list[object]:
    assert configs
    with Worker(Job(op.location, workload, device)) as worker:
        worker.start()
        return [*failures(worker, compiled(op, workload, device, configs))]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(70, 131_072), (35, 260_008), (3, 1_000_000)], ids=str)
@pytest.mark.parametrize("name", ["layernorm", "rmsnorm", "biased_softmax", "softmax"])
def test_split_rows_are_right(name: str, shape: tuple[int, int], dtype: str) -> None:
    """More rows than teams, and fewer; lengths that end within a round; weights in the reduction too."""
    device = target()
    case = Case(name, shape, dtype, "sm_90")
    case.target = device
    case.space = case.family.space(case.program, case.workload, device)
    configs: list[Config] = [*chosen(case, 1, 2)[:10]]
    assert outcome(case.op, case.workload, device, configs) == []


CHANNELS: tuple[tuple[str, tuple[int, ...], Mapping[str, Any]], ...] = (
    ("groupnorm", (3, 16, 64, 512), {"groups": 2}),
    ("instancenorm", (40, 5, 128, 512), {}),
)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "shape", "options"), CHANNELS, ids=str)
def test_norms_with_channels_are_right(
    name: str, shape: tuple[int, ...], options: Mapping[str, Any], dtype: str
) -> None:
    op, device = find(name), target()
    workload = op.workload(shape, dtype, **options)
    bound = dict(workload.options)
    program, family = op.program(**bound), families.find(op, "cuda", **bound)
    rng = random.Random(2)
    configs = [
        config
        for config in family.space(program, workload, device)
        if config["prefetch"] != 0 and (name == "instancenorm" or config["split"] != 1)
    ]
    assert outcome(op, workload, device, rng.sample(configs, 8)) == []
