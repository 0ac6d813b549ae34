"""Packed weights on a GPU: the plain kernel's bits, whatever the weight; the check; streams and graphs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ksearch
from ksearch import artifacts, backends, operators
from ksearch.evaluate.messages import Job
from ksearch.evaluate.worker import Worker
from ksearch.types import Candidate, Config, Status
from tests.families.linear_cases import SPLIT, Case, Runner, guarded
from tests.families.test_linear_cuda_run import _strict, check, device, odd_features, odd_rows  # noqa: F401
from tests.winners import Launches, in_use, put_in_force

pytestmark = pytest.mark.gpu

SHAPES = ((200, 512, 516), (5, 100, 70), (1, 4, 1), (300, 264, 390), (70, 333, 130))
NAME, SHAPE = "linear_gelu", (64, 512, 384)


def twins(name: str, dims: tuple[int, ...], scheme: str, seed: int) -> tuple[Runner, Runner]:
    """A plain kernel and one with a packed weight, of one config that both spaces have."""
    plain, packed = (Case(name, dims, target=device(), prepacked=prepacked) for prepacked in (False, True))
    mine = [c for c in packed.configs if c["scheme"] == scheme and plain.space.allows(c)]
    config: Config = random.Random(seed).choice(mine)
    return Runner(plain, config), Runner(packed, config)


@pytest.mark.parametrize("name", ["linear", "linear_gelu", "linear_sigmoid_sum", "linear_extremes"])
@pytest.mark.parametrize("dims", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SPLIT)
def test_the_bits_are_the_plain_kernels(scheme: str, dims: tuple[int, ...], name: str) -> None:
    for seed, kind in enumerate(("uniform", "normal", "wide")):
        plain, packed = twins(name, dims, scheme, seed)
        inputs = guarded(plain.case, kind, seed)
        for one, other in zip(plain(inputs), packed(inputs), strict=True):
            ints = one.view(torch.int32), other.view(torch.int32)
            assert torch.equal(*ints), f"{int((ints[0] != ints[1]).sum())} elements: {packed.config}"
        plain.unload()
        packed.unload()


@pytest.mark.parametrize("scheme", SPLIT)
def test_what_splitting_cannot_do_is_the_same_too(scheme: str) -> None:
    """NaN stands where NaN does, and all else is equal in every bit."""
    for seed in range(3):
        plain, packed = twins("linear", (200, 512, 516), scheme, seed)
        inputs = guarded(plain.case, "uniform", seed)
        odd_features(inputs[1].values)
        odd_rows(inputs[0].values)
        (one,), (other,) = plain(inputs), packed(inputs)
        same = (one == other) | (one.isnan() & other.isnan())
        assert same.all(), f"{int((~same).sum())} elements: {packed.config}"
        plain.unload()
        packed.unload()


@pytest.mark.parametrize("scheme", SPLIT)
def test_tiles_that_only_packed_weights_have_are_right(scheme: str) -> None:
    """Of 192 rows, for which a kernel that splits in registers has none left."""
    case = Case("linear", (400, 512, 516), target=device(), prepacked=True)
    wide = [c for c in case.configs if c["scheme"] == scheme and int(c["tile_n"]) > 128]
    configs = random.Random(scheme).sample(wide, min(4, len(wide)))
    assert check(case, configs, ["uniform", "normal"]) == []


def test_the_worker_finds_it_right_and_times_packing_apart() -> None:
    case = Case("linear_sigmoid_sum", (64, 1024, 1000), target=device(), prepacked=True)
    candidates = []
    for config in case.family.guesses(case.program, case.workload, case.target)[:3]:
        artifact = artifacts.build(backends.get("cuda"), case.source(config))
        launch = case.family.launch(config, case.program, case.workload, case.target)
        candidates.append(Candidate(dict(config), launch, artifact))
    with Worker(Job("linear_sigmoid_sum", case.workload, case.target)) as worker:
        worker.start()
        for candidate in candidates:
            outcome = worker.screen(candidate)
            assert outcome.status is Status.PASSED, (candidate.config, outcome)
        for entry in worker.finals(candidates, budget_s=0.5).entries:
            assert entry.outcome.status is Status.PASSED, entry.outcome
            assert entry.packing is not None
            assert entry.packing.size_bytes == entry.candidate.launch.packed_bytes
            assert entry.packing.time_us > 0
        assert worker.respawns == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("packed")
    put_in_force(made, "cuda", [operators.get(NAME).workload(SHAPE, prepacked=True)])
    return made


@pytest.fixture
def launches(folder: Path) -> Iterator[Launches]:
    with in_use(folder, "cuda") as counted:
        yield counted


def test_a_handle_follows_its_weight_on_streams_and_in_graphs(launches: Launches) -> None:
    torch.manual_seed(0)
    rows, inner, cols = SHAPE
    x, weight, bias = (torch.randn(shape, device="cuda") for shape in ((rows, inner), (cols, inner), (cols,)))

    def right() -> torch.Tensor:
        return torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias))

    handle = ksearch.load(NAME, SHAPE, device="cuda", prepacked=weight)
    torch.testing.assert_close(handle(x, bias), right(), rtol=1e-5, atol=1e-4)
    weight.mul_(0.5)
    torch.cuda.synchronize()
    for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            got = handle(x, bias)
        stream.synchronize()
        torch.testing.assert_close(got, right(), rtol=1e-5, atol=1e-4)
    graph, out = torch.cuda.CUDAGraph(), torch.empty(rows, cols, device="cuda")
    with torch.cuda.graph(graph):
        handle(x, bias, out=out)
    graph.replay()
    torch.testing.assert_close(out, right(), rtol=1e-5, atol=1e-4)
    weight.add_(0.25)
    handle(x, bias)  # packs anew, in the same memory
    graph.replay()
    torch.testing.assert_close(out, right(), rtol=1e-5, atol=1e-4)
    assert launches.count == 5
    weight.mul_(2.0)
    late = torch.cuda.CUDAGraph()
    with torch.cuda.graph(late):  # nothing is packed while a graph is captured: PyTorch's way
        handle(x, bias, out=out)
    late.replay()
    torch.testing.assert_close(out, right(), rtol=1e-5, atol=1e-4)
    assert launches.count == 5


def test_a_patched_model_runs_packed_kernels(tmp_path: Path) -> None:
    rows, inner, cols = SHAPE
    put_in_force(tmp_path, "cuda", [operators.get("linear").workload(SHAPE, prepacked=True)])
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(inner, cols), torch.nn.ReLU()).cuda().eval()
    x = torch.randn(rows, inner, device="cuda")
    with in_use(tmp_path, "cuda") as counted, torch.no_grad():
        wanted = model(x)
        report = ksearch.patch(model, x, prepacked=True)
        assert report.swapped == ("0",)
        torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-4)
        model[0].weight.mul_(2.0)
        got = model(x)
        launched = counted.count
        report.undo()
        torch.testing.assert_close(got, model(x), rtol=1e-5, atol=1e-4)
        assert launched == counted.count == 2
        torch.set_float32_matmul_precision("high")
        with ksearch.patch(model, x, prepacked=True) as again:
            assert again.swapped == (), "where PyTorch may use TF32 the plain kernels are the rivals"
