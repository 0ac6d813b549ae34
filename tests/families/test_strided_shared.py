"""Rows side by side whose columns several blocks share: those of a cluster, or parts all over a GPU."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ksearch import artifacts, backends, families
from ksearch.evaluate.messages import Job
from ksearch.evaluate.worker import Worker
from ksearch.families.base import Family, Space, nearest
from ksearch.families.strided_limits import Limits
from ksearch.invoke import Starter
from ksearch.operators import Op
from ksearch.operators.program import Program
from ksearch.render import render
from ksearch.selftest.edits import EDITS
from ksearch.types import Config, Target, Workload
from tests.families.cuda_cases import DTYPES, TARGETS, find, misfits
from tests.families.host_threads import run_on_host
from tests.families.test_cuda_run import compiled, failures, target

IN_CLUSTERS = ("softmax", "log_softmax", "softmax_backward", "rms_scale", "centered")
IN_PARTS = ("sum", "argmax", "argmin", "logsumexp", "prod", "var", "amax", "mean", "norm")
SHAPES = ((3, 4099, 37), (2, 5000, 4095), (3, 4096, 1), (1, 100_003, 24), (4, 1, 33), (16, 4096, 256))
"""Columns that are no multiple of what blocks and their threads take; few rows side by side, and one; one
column."""
PAIRS = [
    (name, shape)
    for place, name in enumerate((*IN_CLUSTERS, *IN_PARTS))
    for number, shape in enumerate(SHAPES)
    if (place + number) % 2 == 0
]


class Case:
    """An op over the dim before the last, on a device, and what the family says of it."""

    def __init__(self, name: str, shape: Sequence[int], dtype: str, device: Target) -> None:
        self.op: Op = find(name)
        options = {} if name in ("rms_scale", "centered") else {"dim": "-2"}
        dims = tuple(shape)
        if name == "rms_scale":  # over the second of four dims
            dims = (shape[0], shape[1], 1, shape[2])
        if name == "centered":  # over the second and third
            dims = (shape[0], shape[1], 1, shape[2])
        self.workload: Workload = self.op.workload(dims, dtype, **options)
        self.options = dict(self.workload.options)
        self.program: Program = self.op.program(**self.options)
        self.family: Family = families.find(self.op, "cuda", **self.options)
        self.device = device
        self.space: Space = self.family.space(self.program, self.workload, device)

    def shared(self, rng: random.Random, key: Callable[[Config], Any]) -> list[Config]:
        """Of the configs whose columns blocks share, the tightest for each `key`, and one from anywhere."""
        return self.tightest(rng, key, lambda config: int(config["cluster"]) * int(config["parts"]) > 1)

    def tightest(
        self, rng: random.Random, key: Callable[[Config], Any], counts: Callable[[Config], bool]
    ) -> list[Config]:
        """The same, of the configs that count."""
        slack = Limits(self.program, self.workload, self.device).slack
        configs: list[Config] = [config for config in self.space if counts(config)]
        rng.shuffle(configs)
        configs.sort(key=lambda config: (key(config), slack(config)))
        found: list[Config] = []
        for _, group in itertools.groupby(configs, key):
            members = list(group)
            found += [members[0], rng.choice(members)]
        return found


def region(config: Config) -> tuple[Any, ...]:
    names = ("storage", "reduction", "math", "vec")
    return (*(config[name] for name in names), config["down"] == 1)


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("names", [IN_CLUSTERS, IN_PARTS], ids=["clusters", "parts"])
def test_the_tightest_of_every_region_compile_and_fit(names: tuple[str, ...], arch: str) -> None:
    device, rng, todo = TARGETS[arch], random.Random(arch), []
    for place, name in enumerate(names):
        shape = ((2, 4096, 512), (1, 20_011, 4095))[place % 2]
        case = Case(name, shape, DTYPES[place % len(DTYPES)], device)
        found = case.shared(rng, region)
        assert bool(found) == (arch == "sm_90" or names == IN_PARTS), "sm_80 has no clusters"
        todo += [(case.workload, config) for config in rng.sample(found, min(2, len(found)))]
    assert misfits(device, todo) == []


def test_what_is_shared_and_what_is_not() -> None:
    device = TARGETS["sm_90"]

    def values(name: str, shape: Sequence[int], axis: str) -> set[Any]:
        return {config[axis] for config in Case(name, shape, "float32", device).space}

    assert values("softmax", (16, 4096, 4096), "cluster") == {1, 2, 4, 8, 16}
    assert values("softmax", (16, 32, 4096), "cluster") == {1}, "a row that is short for one block"
    assert values("softmax", (1, 1_000_000, 64), "parts") == {1}, "passes over parts would have to wait"
    assert values("sum", (1, 1_000_000, 64), "cluster") == {1}
    assert max(values("sum", (1, 1_000_000, 64), "parts")) >= 1024
    assert values("sum", (4096, 128, 4096), "parts") == {1}, "rows enough for the whole device"
    assert values("sum", (4, 1, 33), "parts") == {1}
    for storage in ("registers", "global"):
        case = Case("softmax", (16, 4096, 4096), "float32", device)
        assert {c["cluster"] for c in case.space if c["storage"] == storage} >= {4, 8, 16}


@pytest.mark.parametrize("name", ["softmax", "sum", "var"])
def test_the_launch_takes_every_part_of_every_row(name: str) -> None:
    for shape in ((3, 6400, 100), (1, 64_000, 4095), (1, 1_000_003, 3)):
        case = Case(name, shape, "float32", TARGETS["sm_90"])
        for config in case.shared(random.Random(3), lambda c: (c["cluster"], c["parts"], c["across"])):
            launch = case.family.launch(config, case.program, case.workload, case.device)
            cluster, parts = int(config["cluster"]), int(config["parts"])
            blocks = shape[0] * -(-shape[2] // (int(config["across"]) * int(config["vec"])))
            assert launch.grid(case.workload.rows) == blocks * cluster * parts
            assert (launch.cluster, launch.persistent) == (cluster, parts > 1)
            assert (launch.workspace_bytes > 0) == (launch.scratch_bytes > 0) == (parts > 1)
            if parts > 1:
                wide, words = int(config["across"]) * int(config["vec"]), 3 if name == "var" else 1
                assert launch.scratch_bytes >= 4 * words * blocks * parts * wide, (
                    "room for all that a part comes to"
                )
                fewest = int(config["min_blocks"]) * case.device.units // 9
                assert (launch.workspace_bytes - 16) // 4 * fewest >= blocks, "on a ninth of the device, too"
                assert launch.most_rows == case.workload.rows


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("softmax", (16, 4096, 4096), "cluster"),
        ("sum", (1, 1_000_000, 64), "parts"),
        ("sum", (8, 131_072, 128), "parts"),
        ("sum", (32, 4096, 512), "parts"),
        ("logsumexp", (32, 4096, 512), "parts"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_rows_are_shared_from_the_first_guess_on(
    name: str, shape: tuple[int, ...], axis: str, dtype: str
) -> None:
    case = Case(name, shape, dtype, TARGETS["sm_90"])
    first = case.family.guesses(case.program, case.workload, case.device)[0]
    assert case.space.allows(first)
    assert int(first[axis]) > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_guesses_that_share_long_rows_do_not_spill(dtype: str) -> None:
    """Halves in two registers a column did, with as many columns as fill a block's."""
    device, todo = TARGETS["sm_90"], []
    for name, shape in (("softmax", (2, 4096, 256)), ("log_softmax", (4, 2048, 1024))):
        case = Case(name, shape, dtype, device)
        guesses = case.family.guesses(case.program, case.workload, device)
        todo += [(case.workload, guess) for guess in guesses[:3] if case.space.allows(guess)]
    assert len(todo) >= 4
    assert misfits(device, todo) == []


@pytest.mark.parametrize(
    ("name", "shape", "wish"),
    [
        ("sum", (2, 1003, 8), {"across": 4, "down": 8, "vec": 2, "unroll": 4, "parts": 8}),
        ("amax", (1, 5000, 40), {"across": 32, "down": 4, "vec": 2, "unroll": 2, "parts": 4}),
        ("sum", (3, 640, 3), {"across": 4, "down": 8, "vec": 1, "unroll": 1, "parts": 2}),
        ("softmax", (1, 520, 40), {"across": 16, "down": 8, "vec": 2, "cluster": 2, "storage": "registers"}),
        ("softmax", (3, 263, 8), {"across": 8, "down": 4, "vec": 1, "cluster": 2, "storage": "registers"}),
        ("softmax", (2, 517, 3), {"across": 4, "down": 8, "vec": 1, "cluster": 4, "storage": "global"}),
        ("softmax", (2, 190, 20), {"across": 8, "down": 4, "vec": 2, "storage": "both"}),
        ("softmax", (1, 270, 6), {"across": 8, "down": 4, "vec": 1, "cluster": 2, "storage": "both"}),
        ("softmax", (5, 190, 40), {"across": 8, "down": 4, "vec": 2, "storage": "refilled"}),
        ("softmax", (11, 270, 6), {"across": 8, "down": 4, "vec": 1, "cluster": 2, "storage": "refilled"}),
    ],
)
def test_what_blocks_share_is_right_on_the_host(
    name: str, shape: tuple[int, ...], wish: Config, tmp_path: Path
) -> None:
    case = Case(name, shape, "float32", replace(TARGETS["sm_90"], units=2))
    (config,) = nearest(case.space, wish)
    assert {key: config[key] for key in wish} == wish
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found = run_on_host(case.op, case.workload, config, case.device, [x], tmp_path)
    expected = case.op.reference(x.double(), dim="-2")
    torch.testing.assert_close(found.double().view_as(expected), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("softmax", (16, 4096, 4096)), ("sum", (1, 1_000_000, 64)), ("softmax", (4, 64, 8192))],
)
def test_threads_that_do_not_wait_are_planted(name: str, shape: tuple[int, ...]) -> None:
    """Of a cluster's blocks, of those that count parts, of one block's groups."""
    case = Case(name, shape, "float32", TARGETS["sm_90"])
    first = case.family.guesses(case.program, case.workload, case.device)[0]
    text = render(case.op, case.workload, first, case.device).text
    (edit,) = (edit for edit in EDITS if edit.name == "missing barrier")
    assert edit.finds(text)
    assert "__nanosleep" in edit.apply(text)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "shape"), PAIRS, ids=str)
def test_every_number_of_blocks_is_right(name: str, shape: tuple[int, ...]) -> None:
    device = target()
    # In float32 a log_softmax next to 0 is 1 + little that was rounded, and PyTorch's over such dims is not.
    dtypes = DTYPES[1:] if name == "log_softmax" else DTYPES
    case = Case(name, shape, dtypes[(len(name) + shape[1]) % len(dtypes)], device)
    found = case.shared(random.Random(5), lambda c: (c["cluster"], c["parts"]))
    others = case.shared(random.Random(6), region)
    configs = [*found[::2], *random.Random(7).sample(others, min(6, len(others)))]
    if shape[1] > 1 and shape[2] > 1 and device.arch == "sm_90":
        assert configs
    with Worker(Job(case.op.location, case.workload, device)) as worker:
        worker.start()
        assert failures(worker, compiled(case.op, case.workload, device, configs)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sum", "argmax", "softmax"])
def test_the_same_bits_each_time_and_the_first_of_equals(name: str) -> None:
    case = Case(name, (2, 30_011, 96), "float32", target())
    draw = torch.Generator("cuda").manual_seed(1)
    x = torch.randint(0, 3, case.workload.shape, generator=draw, device="cuda").float()
    if name == "sum":
        x = torch.randn(case.workload.shape, generator=draw, device="cuda")
    for config in case.shared(random.Random(8), lambda c: (c["cluster"], c["parts"]))[::2]:
        launch = case.family.launch(config, case.program, case.workload, case.device)
        artifact = artifacts.build(backends.get("cuda"), render(case.op, case.workload, config, case.device))
        kernel = backends.get("cuda").load(Path(artifact.binary), launch, 0)
        start = Starter(kernel, launch, case.workload, case.program.inputs, torch.device("cuda", 0))
        results = []
        for _ in range(20):
            out = torch.empty_like(x if name == "softmax" else x[:, 0])
            out = out.long() if name == "argmax" else out
            start([x], (x.data_ptr(), out.data_ptr()), case.workload.rows, 0)
            results.append(out)
        assert all(torch.equal(results[0], each) for each in results[1:]), config
        if name == "argmax":
            places = torch.arange(x.shape[1], device="cuda").view(1, -1, 1).expand_as(x)
            first = torch.where(x == x.amax(1, keepdim=True), places, x.shape[1]).amin(1)
            assert torch.equal(results[0], first), config
        kernel.unload()
