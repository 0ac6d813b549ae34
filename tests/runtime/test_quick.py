"""Calls like earlier ones without a launcher: they are started ready, and all else is looked at."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ksearch
import ksearch.ops
from ksearch import operators, runtime
from ksearch.operators.program import as_tuple
from ksearch.runtime import call, library, quick
from tests.runtime.conftest import promote
from tests.runtime.racing import wrong_answers
from tests.winners import at, forced

BACKENDS = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
SHAPE = (6, 40)
OPS = ("softmax", "add_rmsnorm")


@pytest.fixture(scope="module", params=BACKENDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, forced(tmp_path_factory, request.param, OPS, SHAPE)


@pytest.fixture
def device(folder: tuple[str, Path]) -> Iterator[str]:
    with at(folder[1]):
        runtime.refresh()
        yield folder[0]
        runtime.refresh()


def given(name: str, device: str) -> tuple[tuple[Tensor, ...], Any]:
    op = operators.get(name)
    tensors = tuple(torch.randn(shape, device=device) for shape in op.input_shapes(SHAPE, op.options))
    return tensors, op.function(*tensors)


def check(ours: Any, theirs: Any) -> None:
    for one, other in zip(as_tuple(ours), as_tuple(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", OPS)
def test_the_third_call_at_the_same_places_is_ready(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, wanted = given(name, device)
    handle = ksearch.load(name, SHAPE, device=device)
    assert handle.kernel is not None
    assert handle.kernel.is_plain
    out = tuple(torch.empty_like(each) for each in as_tuple(wanted))
    results = out if len(out) > 1 else out[0]
    for _ in range(2):
        check(handle(*tensors, out=results), wanted)
    monkeypatch.setattr(call.KernelCall, "start", lambda *_, **__: pytest.fail("it was made ready"))
    for _ in range(3):
        versions = [each._version for each in out]
        for each in out:
            each.data.zero_()
        found = as_tuple(handle(*tensors, out=results))
        assert all(one is other for one, other in zip(found, out, strict=True))
        check(results, wanted)
        assert [each._version for each in out] == [version + 1 for version in versions]


def test_threads_share_what_is_ready(device: str) -> None:
    """One that was not used for CUDA before is among them."""
    (x,), wanted = given("softmax", device)
    handle, out = ksearch.load("softmax", SHAPE, device=device), torch.empty_like(x)
    for _ in range(3):
        handle(x, out=out)
    out.zero_()
    right: list[bool] = []

    def work() -> None:
        for _ in range(100):
            found = handle(x, out=out)
            right.append(torch.allclose(found, wanted, rtol=2e-5, atol=2e-6))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 400
    assert wrong_answers(handle, SHAPE, device) == []


def test_a_ready_start_is_on_the_callers_stream(device: str) -> None:
    if device == "cpu":
        pytest.skip("CPUs have no streams")
    (x,), _ = given("softmax", device)
    handle, out, side = (
        ksearch.load("softmax", SHAPE, device=device),
        torch.empty_like(x),
        torch.cuda.Stream(),
    )
    for turn in range(6):
        stream = side if turn % 2 else torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(2_000_000)
            x.normal_()
            handle(x, out=out)  # on another stream it would read x before it is there
            wanted = torch.softmax(x, -1)
        stream.synchronize()
        check(out, wanted)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        handle(x, out=out)
    x.normal_()
    graph.replay()
    check(out, torch.softmax(x, -1))


def test_places_that_are_not_for_the_kernel(backend: Any) -> None:
    """Tensors that look as others did may overlap, or start elsewhere."""
    backend.is_plain = True
    promote("softmax", (4, 8), alignment=16)
    handle = ksearch.load("softmax", (4, 8))
    memory = torch.randn(100)
    x, out = memory[:32].view(4, 8), memory[32:64].view(4, 8)
    for _ in range(4):
        assert (handle(x, out=out) == 42).all()
    assert backend.ready_starts == 3, "that of the second call was the first"
    overlapping, shifted = memory[16:48].view(4, 8), memory[65:97].view(4, 8)
    for inputs, result in ((x, x), (x, overlapping), (shifted, out), (x, shifted)):
        for _ in range(3):
            memory.normal_()
            wanted = torch.softmax(inputs, -1)
            torch.testing.assert_close(handle(inputs, out=result), wanted)
    assert backend.ready_starts == 3
    assert (handle(x, out=out) == 42).all()


def test_a_ready_start_that_is_refused_is_told_and_pytorch_runs(
    backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend.is_plain = True
    promote("softmax", (4, 8))
    handle, x, out = ksearch.load("softmax", (4, 8)), torch.randn(4, 8), torch.empty(4, 8)
    for _ in range(3):
        handle(x, out=out)
    backend.refuse_launch = True
    torch.testing.assert_close(handle(x, out=out), torch.softmax(x, -1))
    assert "the kernel did not start: CUDA_ERROR_INVALID_VALUE" in caplog.text
    backend.refuse_launch = False
    assert (handle(x, out=out) == 42).all()


def test_more_places_than_are_kept(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.is_plain = True
    monkeypatch.setattr(call, "_MOST_PLACES", 4)
    promote("softmax", (4, 8))
    handle, x = ksearch.load("softmax", (4, 8)), torch.randn(4, 8)
    outs = [torch.empty(4, 8) for _ in range(6)]
    for _ in range(3):
        for out in outs:
            for _ in range(3):
                out.zero_()
                assert (handle(x, out=out) == 42).all()
                assert handle.kernel is not None
                assert len(handle.kernel.ready) <= 4
    assert backend.ready_starts > len(outs)


def test_on_another_device_nothing_is_started(backend: Any) -> None:
    """Which is the current one is asked before each call, where there are several."""
    backend.is_plain = True
    promote("softmax", (4, 8))
    handle, x = ksearch.load("softmax", (4, 8)), torch.randn(4, 8)
    for _ in range(3):
        handle(x)
    kernel, looked_at = handle.kernel, []
    assert kernel is not None
    away = [False]
    kernel.is_elsewhere = lambda: away[0]
    called = quick.make(kernel, lambda tensors, out: looked_at.append((tensors, out)))
    assert (called(x) == 42).all()
    away[0] = True
    assert called(x) is None
    assert called(x, out=x) is None
    assert looked_at == [((x,), None), ((x,), x)]


@pytest.mark.parametrize("name", OPS)
def test_tensors_that_are_left_out_or_none(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle does without those that its workload does not have."""
    backend.is_plain = True
    options = {"weight": "none"} if name == "add_rmsnorm" else {}
    promote(name, (4, 8), **options)
    handle = ksearch.load(name, (4, 8), **options)
    tensors = [torch.randn(4, 8) for _ in range(2 if options else 1)]
    handle(*tensors)
    monkeypatch.setattr(call.KernelCall, "_unfit", lambda *_: pytest.fail("it was looked at again"))
    for each in ((*tensors,), (*tensors, None), (None, *tensors)):
        assert (as_tuple(handle(*each))[0] == 42).all()


def test_ops_know_the_kernel_of_a_shape_again(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.is_plain = True
    shapes = (4, 8), (4, 16), (2, 8)
    for number, shape in enumerate(shapes):
        promote("softmax", shape, 40.0 + number)
    softmax = ksearch.ops.softmax
    for shape in shapes:
        softmax(torch.randn(shape))
    monkeypatch.setattr(call.KernelCall, "_unfit", lambda *_: pytest.fail("it was looked at again"))
    for _ in range(2):
        for number, shape in enumerate(shapes):
            for _ in range(2):
                assert (softmax(torch.randn(shape)) == 40 + number).all()


def test_what_the_dispatcher_met_first_is_known_to_ops(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls with all options, which are the usual ones."""
    promote("softmax", (4, 8))
    x, call_op = torch.randn(4, 8), torch.ops.ksearch.softmax.default
    assert (call_op(x) == 42).all()
    monkeypatch.setattr(runtime.Dispatcher, "__call__", lambda *_, **__: pytest.fail("it was read again"))
    assert (call_op(x) == 42).all()
    assert ksearch.ops.softmax.quickly((x,), None) is not None


def test_what_the_dispatcher_met_with_other_options_is_not(backend: Any) -> None:
    promote("softmax", (8, 8), 41.0)
    promote("leaky_relu", (4, 8), 43.0, negative_slope=0.5)
    x = torch.randn(4, 8)
    assert (torch.ops.ksearch.leaky_relu.default(x, negative_slope=0.5) == 43).all()
    for _ in range(3):
        torch.testing.assert_close(ksearch.ops.leaky_relu(x), torch.nn.functional.leaky_relu(x))
        torch.testing.assert_close(torch.ops.ksearch.leaky_relu.default(x), torch.nn.functional.leaky_relu(x))


def test_nested_tensors_go_to_pytorch(device: str) -> None:
    """PyTorch's guards would end the process."""
    (x,), _ = given("softmax", device)
    handle = ksearch.load("softmax", SHAPE, device=device)
    calls = (handle, ksearch.ops.softmax, torch.ops.ksearch.softmax, torch.ops.ksearch.softmax.default)
    for each in (*calls, lambda x: handle(x, out=torch.empty_like(x))):
        for _ in range(3):
            each(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are new
        ragged = torch.nested.nested_tensor([torch.randn(6, 40), torch.randn(2, 40)], device=device)
    wanted = torch.softmax(ragged, -1).unbind()
    for each in calls:
        assert all(map(torch.equal, each(ragged).unbind(), wanted))
    tensors, _ = given("add_rmsnorm", device)
    norm = ksearch.load("add_rmsnorm", SHAPE, device=device)
    for _ in range(3):
        norm(*tensors)
    with pytest.raises((RuntimeError, TypeError, ksearch.KsearchError)):
        norm(tensors[0], ragged, *tensors[2:])
    with pytest.raises((RuntimeError, TypeError, ksearch.KsearchError)):
        handle(x, out=ragged)


def test_an_op_that_is_asked_for_under_torch_ops_first_is_that_one() -> None:
    """PyTorch's namespace makes a new object each time that it is asked, and only one leads here."""

    @ksearch.op
    def asked_for_there(x: Tensor) -> Tensor:
        return x * 2

    found = torch.ops.ksearch.asked_for_there
    assert found is torch.ops.ksearch.asked_for_there
    assert found.default is library._registered["asked_for_there"].overload
