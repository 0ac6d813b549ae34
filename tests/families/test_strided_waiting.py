"""Rows side by side whose columns wait in shared memory, too, and are filled again while they are stored."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ksearch import artifacts, backends
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.messages import Job
from ksearch.evaluate.problem import Problem
from ksearch.evaluate.whole import check_whole
from ksearch.evaluate.worker import Worker
from ksearch.families.strided_limits import HALVED, held_items, items, waiting_bytes
from ksearch.invoke import Starter
from ksearch.render import render
from ksearch.types import Config, Status
from tests.families.cuda_cases import DTYPES, TARGETS, misfits
from tests.families.test_cuda_run import compiled, failures, target
from tests.families.test_strided_shared import IN_CLUSTERS, Case

SHAPES = ((40, 515, 1000), (600, 64, 2052), (16, 2051, 2048), (12, 4096, 1028))
IN_TURN = [
    *((name, shape) for name in ("softmax", "log_softmax") for shape in SHAPES),
    *(("rms_scale", shape) for shape in SHAPES[:2]),  # one exchange: in one block alone
]


def is_waiting(config: Config) -> bool:
    return config["storage"] in HALVED


def region(config: Config) -> tuple[Any, ...]:
    return (config["storage"], config["cluster"] != 1, config["vec"], config["math"])


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tightest_compile_and_fit(dtype: str, arch: str) -> None:
    device, rng, todo = TARGETS[arch], random.Random(f"{dtype} {arch}"), []
    for place, name in enumerate(IN_CLUSTERS):
        shape = ((16, 4096, 4096), (2, 5000, 4095), (64, 512, 1028))[(place + len(dtype)) % 3]
        case = Case(name, shape, dtype, device)
        found = case.tightest(rng, region, is_waiting)
        todo += [(case.workload, config) for config in rng.sample(found, min(2, len(found)))]
    assert len(todo) >= 4
    assert misfits(device, todo) == []


def test_what_may_wait_there_and_what_may_not() -> None:
    device = TARGETS["sm_90"]

    def storages(name: str, shape: Sequence[int], dtype: str = "float32") -> set[Any]:
        return {config["storage"] for config in Case(name, shape, dtype, device).space}

    assert storages("softmax", (16, 4096, 4096)) == {"registers", "both", "refilled", "global"}
    assert storages("softmax", (16, 7, 4096)) == {"registers", "global"}, "short rows need no more room"
    assert "refilled" not in storages("softmax", (1, 4096, 512)), "nothing comes after the first turn"
    assert storages("sum", (16, 4096, 4096)) == {"global"}, "nothing waits"
    case = Case("softmax_backward", (64, 1024, 4096), "float32", device)
    found = {(c["storage"], c["cluster"] == 1) for c in case.space if is_waiting(c)}
    assert ("both", False) in found
    assert ("refilled", False) not in found, "its one exchange would run into that of the next turn"
    bytes_each = {
        int(c["vec"]) * 2 for c in Case("softmax", (8, 4096, 4096), "float16", device).space if is_waiting(c)
    }
    assert min(bytes_each) == 4, "there are no smaller copies"


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows_wait_there_from_the_first_guess_on(dtype: str) -> None:
    for shape in ((16, 4096, 4096), (64, 2048, 4096), (16, 8192, 4096), (64, 512, 4096)):
        case = Case("softmax", shape, dtype, TARGETS["sm_90"])
        first = case.family.guesses(case.program, case.workload, case.device)[0]
        assert case.space.allows(first)
        assert first["storage"] == ("refilled" if dtype == "float32" else "both")
        line = int(first["across"]) * int(first["vec"]) * case.workload.itemsize
        assert line == (256 if dtype == "float32" else 128)
        assert int(first["down"]) * int(first["cluster"]) * items(first, case.workload) == shape[1]


def test_the_launch_has_room_for_what_waits() -> None:
    for name in ("softmax", "softmax_backward"):
        case = Case(name, (64, 1024, 4096), "float16", TARGETS["sm_90"])
        for config in case.tightest(random.Random(4), region, is_waiting):
            launch = case.family.launch(config, case.program, case.workload, case.device)
            reads = 2 if name == "softmax_backward" else 1
            assert launch.smem_bytes == waiting_bytes(config, case.workload, reads) > 0
            assert launch.smem_bytes * int(config["min_blocks"]) <= case.device.smem_bytes
            bytes_each = int(config["vec"]) * 2
            held = launch.block * held_items(config, case.workload) * reads * bytes_each
            columns = items(config, case.workload) * launch.block * reads * bytes_each
            assert held + launch.smem_bytes == columns
            assert launch.persistent == (config["storage"] == "refilled") == (launch.workspace_bytes > 0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", IN_CLUSTERS)
def test_what_waits_there_is_right(name: str) -> None:
    case = Case(name, (5, 1030, 1028), DTYPES[len(name) % 2 + 1], target())
    configs = random.Random(2).sample(
        found := case.tightest(random.Random(1), region, is_waiting), min(8, len(found))
    )
    with Worker(Job(case.op.location, case.workload, case.device)) as worker:
        worker.start()
        assert failures(worker, compiled(case.op, case.workload, case.device, configs)) == []


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "shape"), IN_TURN, ids=str)
def test_turn_after_turn_is_right_and_the_same_each_time(name: str, shape: tuple[int, ...]) -> None:
    """On all rows: fewer would be no more than the blocks that run at once. And with fewer, as after it."""
    # In float32 a log_softmax next to 0 is 1 + little that was rounded, and PyTorch's over such dims is not.
    dtypes = DTYPES[1:] if name == "log_softmax" else DTYPES
    case = Case(name, shape, dtypes[(len(name) + shape[1]) % len(dtypes)], target())
    problem = Problem(Job(case.op.location, case.workload, case.device))
    found = case.tightest(random.Random(3), region, lambda config: config["storage"] == "refilled")
    configs = random.Random(4).sample(found, min(6, len(found)))
    assert configs
    for config in configs:
        launch = case.family.launch(config, case.program, case.workload, case.device)
        artifact = artifacts.build(backends.get("cuda"), render(case.op, case.workload, config, case.device))
        kernel = backends.get("cuda").load(Path(artifact.binary), launch, 0)
        start = Starter(kernel, launch, case.workload, case.program.inputs, torch.device("cuda", 0))

        def run(tensors: Sequence[Guarded], outputs: Sequence[Guarded], start: Starter = start) -> None:
            pointers = tuple(each.pointer for each in (*tensors, *outputs))
            stream = torch.cuda.current_stream().cuda_stream
            start([each.values for each in tensors], pointers, tensors[0].values.shape[0], stream)

        verdict = check_whole(problem, run)
        assert verdict.status is Status.PASSED, (config, verdict.message)
        x = torch.randn(case.workload.shape, dtype=getattr(torch, case.workload.dtype), device="cuda")
        if len(case.program.inputs) == 1:
            results = []
            for rows in [case.workload.rows, 2 * case.workload.stride] * 4:
                out = torch.full_like(x, torch.nan)
                start([x], (x.data_ptr(), out.data_ptr()), rows, torch.cuda.current_stream().cuda_stream)
                results.append(out)
            assert not results[0].isnan().any(), config
            assert all(torch.equal(results[0], each) for each in results[2::2]), config
            assert all(torch.equal(results[0][:2], each[:2]) for each in results[1::2]), config
            assert all(each[2:].isnan().all() for each in results[1::2]), config
        kernel.unload()
