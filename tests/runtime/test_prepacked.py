"""Prepacked linears at run time: packed once, again after a change of the weight, else PyTorch."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ksearch
from ksearch import operators, records, runtime
from ksearch.errors import UsageError
from ksearch.invoke import Starter
from ksearch.launch import Launch
from ksearch.runtime import Match
from ksearch.runtime.prepacked import Prepacked
from ksearch.types import Workload
from tests.runtime.test_linear import INPUTS, Recorder
from tests.winners import Launches, in_use, put_in_force

SHAPE = (33, 48, 70)
"""BATCH, IN, OUT."""
NAME = "linear_sigmoid_scale_residual"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("prepacked")
    op = operators.get(NAME)
    put_in_force(made, "cpu", [op.workload(SHAPE, prepacked=True)])
    return made


@pytest.fixture
def launches(folder: Path) -> Iterator[Launches]:
    with in_use(folder, "cpu") as counted:
        yield counted


def tensors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    rows, inner, cols = SHAPE
    return torch.randn(rows, inner), torch.randn(cols, inner), torch.randn(cols)


def right(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    result: Tensor = operators.get(NAME).reference(x, weight, bias)
    return result


def test_a_weight_is_packed_once(launches: Launches, packings: list[tuple[int, Tensor]]) -> None:
    x, weight, bias = tensors()
    handle = ksearch.load(NAME, SHAPE, device="cpu", prepacked=weight)
    assert isinstance(handle, Prepacked)
    assert handle.match is Match.EXACT
    assert len(packings) == 1, "when it is loaded"
    for seed in range(3):
        x = tensors(seed)[0]
        torch.testing.assert_close(handle(x, bias), right(x, weight, bias))
    out = torch.empty(SHAPE[0], SHAPE[2])
    assert handle(x, bias, out=out) is out
    torch.testing.assert_close(out, right(x, weight, bias))
    assert (launches.count, len(packings)) == (4, 1)


def test_a_weight_that_changed_is_packed_again(
    launches: Launches, packings: list[tuple[int, Tensor]]
) -> None:
    x, weight, bias = tensors()
    handle = ksearch.load(NAME, SHAPE, device="cpu", prepacked=weight)
    for count in (2, 3):
        weight.mul_(2.0)
        for _ in range(2):
            torch.testing.assert_close(handle(x, bias), right(x, weight, bias))
        assert len(packings) == count
        assert torch.equal(packings[-1][1], weight)
    weight.set_(torch.randn_like(weight))  # other memory
    torch.testing.assert_close(handle(x, bias), right(x, weight, bias))
    assert (launches.count, len(packings)) == (5, 4)


def test_a_change_behind_pytorchs_back_is_packed_when_told(launches: Launches) -> None:
    x, weight, bias = tensors()
    before = weight.clone()
    handle = ksearch.load(NAME, SHAPE, device="cpu", prepacked=weight)
    assert isinstance(handle, Prepacked)
    weight.data.mul_(2.0)
    torch.testing.assert_close(handle(x, bias), right(x, before, bias))
    handle.repack()
    torch.testing.assert_close(handle(x, bias), right(x, weight, bias))
    assert launches.count == 2


def test_a_gradient_goes_pytorchs_way(launches: Launches) -> None:
    x, weight, bias = tensors()
    parameter = torch.nn.Parameter(weight)
    handle = ksearch.load(NAME, SHAPE, device="cpu", prepacked=parameter)
    handle(x, bias).sum().backward()
    other = parameter.detach().clone().requires_grad_()
    right(x, other, bias).sum().backward()
    assert launches.count == 0
    assert parameter.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(parameter.grad, other.grad)
    with torch.no_grad():
        torch.testing.assert_close(handle(x, bias), right(x, parameter, bias))
    assert launches.count == 1
    torch.optim.SGD([parameter], lr=0.1).step()
    with torch.inference_mode():
        torch.testing.assert_close(handle(x, bias), right(x, parameter, bias))
    assert launches.count == 2


def test_what_no_kernel_takes_runs_pytorch(launches: Launches) -> None:
    x, weight, bias = tensors()
    handle = ksearch.load(NAME, SHAPE, device="cpu", prepacked=weight)
    torch.testing.assert_close(handle(x[:5], bias), right(x[:5], weight, bias))
    torch.testing.assert_close(torch.compile(handle, backend="eager")(x, bias), right(x, weight, bias))
    weight.set_(weight.clone().t().contiguous().t())  # not contiguous any more
    torch.testing.assert_close(handle(x, bias), right(x, weight, bias))
    assert launches.count == 0
    missing = ksearch.load("linear_relu", SHAPE, device="cpu", prepacked=tensors()[1])
    assert missing.match is Match.FALLBACK
    assert "--prepacked" in missing.reason
    torch.testing.assert_close(missing(x, bias), torch.nn.functional.linear(x, tensors()[1], bias).relu())


def test_plain_and_prepacked_never_meet(launches: Launches, folder: Path) -> None:
    x, weight, bias = tensors()
    plain = ksearch.load(NAME, SHAPE, device="cpu")
    assert plain.match is Match.FALLBACK
    torch.testing.assert_close(plain(x, weight, bias), right(x, weight, bias))
    getattr(ksearch.ops, NAME)(x, weight, bias)
    assert launches.count == 0
    assert runtime.known.kernels(NAME, plain.target) == ()
    op = operators.get(NAME)
    one, other = op.workload(SHAPE), op.workload(SHAPE, prepacked=True)
    assert one.key != other.key
    assert (str(other), other.mode) == (str(one).replace("float32", "float32 prepacked"), "strict prepacked")


def test_a_bundle_has_prepacked_winners(folder: Path, tmp_path: Path) -> None:
    from ksearch.export.bundle import write_bundle
    from ksearch.store import Store

    x, weight, bias = tensors()
    with in_use(folder, "cpu") as launches:
        with Store.open(folder / "ksearch.db", readonly=True) as store:
            write_bundle(tmp_path / "a.ksearch", store, store.winners(), None)
        with ksearch.load_bundle(tmp_path / "a.ksearch") as bundle:
            handle = bundle.load(NAME, SHAPE, device="cpu", prepacked=weight)
            torch.testing.assert_close(handle(x, bias), right(x, weight, bias))
        assert launches.count == 1


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.zeros(48, 70), "48x70 float32 on cpu.*takes one of 70x48 float32"),
        (torch.zeros(70, 48, dtype=torch.float16), "float16"),
        (torch.zeros(70, 48, device="meta"), "on meta"),
    ],
)
def test_a_weight_that_is_not_the_ops_is_refused(launches: Launches, weight: Tensor, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ksearch.load(NAME, SHAPE, device="cpu", prepacked=weight)


def test_a_weight_whose_changes_cannot_be_seen_is_refused(launches: Launches) -> None:
    with torch.inference_mode():
        weight = torch.zeros(70, 48)
    with pytest.raises(UsageError, match="clone it"):
        ksearch.load(NAME, SHAPE, device="cpu", prepacked=weight)


def test_what_has_no_weight_cannot_be_prepacked() -> None:
    with pytest.raises(UsageError, match="softmax has none"):
        ksearch.load("softmax", (4, 8), device="cpu", prepacked=torch.zeros(8, 8))


def test_two_layers_of_one_shape_keep_their_own_weights(launches: Launches) -> None:
    x, weight, bias = tensors()
    other = copy.deepcopy(weight).neg_()
    handles = [ksearch.load(NAME, SHAPE, device="cpu", prepacked=each) for each in (weight, other)]
    for _ in range(2):
        for handle, each in zip(handles, (weight, other), strict=True):
            torch.testing.assert_close(handle(x, bias), right(x, each, bias))
    assert launches.count == 4


def test_a_kernel_gets_the_packed_weight_behind_its_scratch_and_beside_the_weight() -> None:
    kernel, workload = Recorder(), Workload("f", (3, 5), regime="prepacked", inner=4)
    given = [torch.randn(3, 4), torch.randn(5, 4), torch.randn(5), torch.empty(3, 5)]
    pointers, packed = tuple(tensor.data_ptr() for tensor in given), torch.zeros(96, dtype=torch.uint8)
    launch = Launch(scratch_bytes=256, pack=Launch(entry="pack"), packed_bytes=96)
    starter = Starter(kernel, launch, workload, INPUTS, torch.device("cpu"))
    assert not starter.is_plain
    starter(given[:3], pointers, 3, 0, packed)
    ((got, _, _),) = kernel.calls
    assert got[:4] == pointers
    assert got[4] not in (0, *pointers)
    assert got[5:] == (packed.data_ptr(),)


def test_a_launch_that_packs_reads_back_from_json() -> None:
    launch = Launch(scratch_bytes=256, pack=Launch(entry="pack", block=256), packed_bytes=96)
    assert Launch.read(json.loads(json.dumps(asdict(launch)))) == launch
    records.check_launch(launch)
    for broken in (
        replace(launch, pack=None),
        replace(launch, packed_bytes=0),
        replace(launch, packed_bytes=5),
    ):
        with pytest.raises(ValueError, match="packed_bytes"):
            records.check_launch(broken)


class Held(torch.nn.Module):
    """The weight is its own, and the handle's."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.handle = ksearch.load(NAME, SHAPE, prepacked=self.weight)


def test_a_handle_is_pickled_and_copied_with_its_weight(launches: Launches) -> None:
    x, weight, bias = tensors()
    model = Held(weight.clone())
    shared = copy.copy(model.handle)
    assert shared.weight is model.weight
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.handle.weight is other.weight is not model.weight
        other.weight.neg_()
        before = launches.count
        torch.testing.assert_close(other.handle(x, bias), right(x, -weight, bias), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.handle(x, bias), right(x, weight, bias), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(shared(x, bias), right(x, weight, bias), rtol=1e-4, atol=1e-4)
        assert launches.count == before + 3
