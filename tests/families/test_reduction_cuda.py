"""What the CUDA reduction family offers to the search, and a sample of it compiled: nothing spills."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ksearch import backends, families, operators
from ksearch.families import reduction_limits
from ksearch.families.cuda import register_cap
from ksearch.launch import ANY_ROWS
from ksearch.operators import Op
from ksearch.render import render
from ksearch.types import Config, Target, Workload
from tests.families.cuda_cases import DTYPES, TARGETS

NAMES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("sum", {}),
    ("sum", {"dim": "-1"}),
    ("prod", {"dim": "-1"}),
    ("argmax", {}),
    ("argmin", {"dim": "-1"}),
    ("logsumexp", {}),
    ("var", {}),
    ("norm", {"dim": "-1"}),
    ("mse_loss", {}),
    ("kl_div", {}),
    ("triplet_margin_loss", {"swap": True}),
    ("cross_entropy", {"label_smoothing": 0.1}),
)
SHAPES = ((64, 4096), (1000, 257), (8, 131_072), (100_000, 40), (3, 50_257), (1, 5))


class Case:
    def __init__(
        self, name: str, options: Mapping[str, Any], shape: tuple[int, ...], dtype: str, arch: str
    ) -> None:
        self.op: Op = operators.get(name)
        self.workload: Workload = self.op.workload(shape, dtype, **options)
        self.target: Target = TARGETS[arch]
        bound = dict(self.workload.options)
        self.program, self.family = self.op.program(**bound), families.find(self.op, "cuda", **bound)
        self.space = self.family.space(self.program, self.workload, self.target)

    def slack(self, config: Config) -> int:
        cap = register_cap(int(config["threads"]) * int(config["rows"]), int(config["min_blocks"]))
        return cap - reduction_limits.registers(config, self.program, self.workload)

    def sample(self, rng: random.Random) -> list[dict[str, Any]]:
        """Of each region the config with the least slack, cache policies drawn."""

        def region(config: Config) -> tuple[Any, ...]:
            ways = int(config["parts"]) > 1, config["grid"] == "cluster"
            return *ways, config["vec"], config["reduction"], config["math"]

        configs = sorted(self.space, key=lambda config: (region(config), self.slack(config), rng.random()))
        return [next(found) for _, found in itertools.groupby(configs, region)]


def problem(case: Case, config: Config) -> str | None:
    compiled = backends.get("cuda").compile(render(case.op, case.workload, config, case.target))
    launch = case.family.launch(config, case.program, case.workload, case.target)
    cap = register_cap(launch.block, int(config["min_blocks"]))
    if compiled.spill_bytes == 0 and 0 < compiled.registers <= cap:
        return None
    return f"{case.workload}: spills {compiled.spill_bytes} bytes, {compiled.registers} of {cap}: {config}"


@pytest.mark.parametrize("arch", TARGETS)
def test_the_tightest_of_every_region_compile_without_spills(arch: str) -> None:
    rng = random.Random(arch)
    todo = []
    for place, (name, options) in enumerate(NAMES):
        shape = SHAPES[(place + len(arch)) % len(SHAPES)] if name != "cross_entropy" else SHAPES[place % 2]
        case = Case(name, options, shape, DTYPES[place % len(DTYPES)], arch)
        found = case.sample(rng)
        todo += [(case, config) for config in rng.sample(found, min(3, len(found)))]
    with ThreadPoolExecutor(2) as pool:  # NVRTC lets go of the GIL
        problems = [found for found in pool.map(lambda item: problem(*item), todo) if found]
    assert problems == [], f"{len(problems)} of {len(todo)}"


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("name", ["sum", "argmax", "var"])
def test_there_are_configs_for_every_length_and_guesses_among_them(name: str, arch: str) -> None:
    lengths = (*range(1, 20), 100, 257, 4096, 50_257, 131_072, 10_000_000)
    for cols, rows, dtype in itertools.product(lengths, (1, 64, 100_000), ("float32", "bfloat16")):
        if cols * rows > 1 << 33:
            continue
        case = Case(name, {"dim": "-1"}, (rows, cols), dtype, arch)
        assert next(iter(case.space), None) is not None, case.workload
        guesses = case.family.guesses(case.program, case.workload, case.target)
        assert guesses
        assert all(set(guess) == set(case.space.values) for guess in guesses)
        if cols >= 4096:
            assert any(case.space.allows(guess) for guess in guesses), case.workload


def test_more_than_32_bits_of_elements_are_shared_out() -> None:
    case = Case("argmax", {}, (3, 1 << 31), "bfloat16", "sm_90")
    parts = {int(config["parts"]) for config in case.space}
    assert min(parts) > 1
    assert all((3 << 31) // each < 1 << 31 for each in parts)


def test_a_launch_reaches_all_rows_and_never_more_parts_than_run() -> None:
    for shape, options in (((1000, 257), {"dim": "-1"}), ((8, 131_072), {"dim": "-1"}), ((5, 131_072), {})):
        case = Case("sum", options, shape, "float32", "sm_90")
        rows = case.workload.rows
        known = [config for config in case.space if config["grid"] != "drawn"]  # test_reduction_drawn.py
        for config in random.Random(3).sample(known, 200):
            launch = case.family.launch(config, case.program, case.workload, case.target)
            parts = int(config["parts"])
            assert launch.grid(rows) == -(-rows // int(config["rows"])) * parts
            is_cluster = config["grid"] == "cluster"
            assert launch.cluster == (parts if is_cluster else 1)
            assert (launch.workspace_bytes > 0) == (parts > 1 and not is_cluster)
            assert launch.workspace_bytes % 16 == 0
            if parts > 1 and not is_cluster:
                assert launch.persistent
                most = launch.grid(launch.most_rows)
                assert rows * parts <= most <= 16 * int(config["min_blocks"]) * case.target.units
                fewest = int(config["min_blocks"]) * case.target.units // 9
                assert launch.workspace_bytes * fewest >= most * 32, "room on a ninth of the device, too"
            elif case.workload.over:
                assert launch.most_rows == ANY_ROWS
            else:
                assert launch.most_rows == 1


def test_two_configs_are_two_kernels() -> None:
    case = Case("logsumexp", {}, (640, 4096), "bfloat16", "sm_90")
    kernels: dict[object, Config] = {}
    for config in random.Random(1).sample(list(case.space), 150):
        launch = case.family.launch(config, case.program, case.workload, case.target)
        kernel = (render(case.op, case.workload, config, case.target).text, launch)
        assert kernel not in kernels, f"{config} is the same kernel as {kernels[kernel]}"
        kernels[kernel] = config


@pytest.mark.parametrize(
    ("name", "options", "dtype", "pairs"),
    [
        ("amax", {"dim": "-1"}, "bfloat16", {"max_pair"}),
        ("argmin", {"dim": "-1"}, "float16", {"min_pair"}),
        ("logsumexp", {}, "bfloat16", {"max_pair"}),
        ("cross_entropy", {}, "bfloat16", {"max_pair"}),
        ("amax", {"dim": "-1"}, "float32", set()),
        ("norm", {"dim": "-1", "ord": math.inf}, "bfloat16", set()),
    ],
    ids=str,
)
def test_halves_are_compared_in_pairs_where_nothing_is_done_to_them(
    name: str, options: Mapping[str, Any], dtype: str, pairs: set[str]
) -> None:
    case = Case(name, options, (640, 4096), dtype, "sm_90")
    config = next(config for config in case.space if int(config["vec"]) > 1)
    text = render(case.op, case.workload, config, case.target).text
    assert set(re.findall(r"\w+_pair(?=\()", text)) == pairs
