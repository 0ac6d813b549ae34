"""`ksearch.ops.<name>`: the handle that fits the live tensor, found once and then kept."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from types import SimpleNamespace

import pytest
import torch

import ksearch
from ksearch import operators
from ksearch.errors import UsageError
from ksearch.runtime import dispatch, dispatcher, loader, presence, refresh
from tests.runtime.conftest import promote

SHAPE = (4, 8)


@pytest.fixture
def lookups(monkeypatch):
    """Every look into the database."""
    seen = []
    find = loader.lookup.find

    def counted(path, workload, target):
        seen.append(workload)
        return find(path, workload, target)

    monkeypatch.setattr(loader.lookup, "find", counted)
    return seen


@pytest.fixture
def own_op():
    """Enters an op under a name that no other test has; gone again afterwards."""

    def enter(function, name):
        ksearch.op(name=name)(function)
        return getattr(ksearch.ops, name)

    return enter


def test_the_best_that_is_known_for_each_tensor_runs(backend, lookups):
    promote("softmax", SHAPE)
    promote("softmax", (2, 16), 7.0)
    for _ in range(3):
        assert (ksearch.ops.softmax(torch.randn(SHAPE)) == 42).all()
        assert (ksearch.ops.softmax(torch.randn(2, 16)) == 7).all()
        x = torch.randn(SHAPE, dtype=torch.float16)
        torch.testing.assert_close(ksearch.ops.softmax(x), torch.softmax(x, -1))
    assert len(lookups) == 3, "one for each kind of tensor"


def test_out(backend):
    promote("softmax", SHAPE)
    out = torch.empty(SHAPE)
    assert ksearch.ops.softmax(torch.randn(SHAPE), out=out) is out
    assert (out == 42).all()


def test_options_and_tensors_by_name(backend, lookups, own_op):
    def scale_shift(x, weight, *, shift=1.0, times=2):
        return x * weight * times + shift

    scale_shift = own_op(scale_shift, "scale_shift")
    promote("scale_shift", SHAPE, shift=3.0)
    x, weight = torch.randn(SHAPE), torch.randn(8)
    assert (scale_shift(x, weight, shift=3.0) == 42).all()
    assert (scale_shift(x=x, weight=weight, shift=3.0) == 42).all()
    assert (scale_shift(x, weight=weight, shift=3.0) == 42).all()
    assert len(lookups) == 1
    torch.testing.assert_close(scale_shift(x, weight), x * weight * 2 + 1)
    torch.testing.assert_close(scale_shift(x, weight, shift=3.0, times=3), x * weight * 3 + 3)
    with pytest.raises(UsageError, match="no option 'lift'"):
        scale_shift(x, weight, lift=2)
    with pytest.raises(UsageError, match="takes 2 tensors"):
        scale_shift(x, shift=3.0)


def test_an_op_defined_anew_is_another_op(backend, own_op):
    def first(x):
        return x + 1

    def second(x):
        return x + 2

    x = torch.zeros(SHAPE)
    assert own_op(first, "renewed")(x)[0, 0] == 1
    assert own_op(second, "renewed")(x)[0, 0] == 2


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(SHAPE, dtype=torch.float64),
        torch.empty(0, 8),
        torch.empty(SHAPE, device="meta"),
        torch.randn(4, 8)[:, ::2],
    ],
    ids=["float64", "empty", "meta", "strided"],
)
def test_what_can_have_no_kernel_runs_pytorch(backend, caplog, x):
    promote("softmax", (4, 4))
    for _ in range(2):
        result = ksearch.ops.softmax(x)
        assert (result.shape, result.dtype, result.device) == (x.shape, x.dtype, x.device)
        if not x.is_meta:
            torch.testing.assert_close(result, torch.softmax(x, -1))
    assert len(caplog.records) == 1
    assert "runs PyTorch" in caplog.text


@pytest.mark.parametrize("arguments", [(), (3,), ([1.0, 2.0],), (None,)])
def test_something_else_than_a_tensor_is_an_error(backend, arguments):
    with pytest.raises(UsageError, match="softmax takes a tensor first"):
        ksearch.ops.softmax(*arguments)


def test_copies_are_the_op_itself():
    softmax = ksearch.ops.softmax
    assert copy.deepcopy(softmax) is softmax
    assert pickle.loads(pickle.dumps(softmax)) is softmax
    of_a_bundle = dispatch.Dispatcher(softmax.op, SimpleNamespace())
    with pytest.raises(TypeError, match="softmax of a bundle"):
        copy.copy(of_a_bundle)


def test_names():
    assert {"softmax", "sigmoid"} <= set(dir(ksearch.ops))
    assert dir(ksearch.ops) == operators.names()
    assert not hasattr(ksearch.ops, "no_such_op")
    with pytest.raises(AttributeError, match="softmax"):
        ksearch.ops.sofmax  # noqa: B018
    assert "softmax" in repr(ksearch.ops.softmax)
    assert ksearch.ops.softmax is dispatcher("softmax")


def test_gradients(backend):
    promote("softmax", SHAPE)
    x = torch.randn(SHAPE, requires_grad=True)
    ksearch.ops.softmax(x).pow(2).sum().backward()
    ours, x.grad = x.grad, None
    torch.softmax(x, -1).pow(2).sum().backward()
    torch.testing.assert_close(ours, x.grad)


def test_two_threads_meet_a_shape_at_once_and_load_it_once(backend, lookups, monkeypatch):
    promote("softmax", SHAPE)
    load = backend.load

    def slow(*arguments):
        time.sleep(0.05)
        return load(*arguments)

    monkeypatch.setattr(backend, "load", slow)
    start, right = threading.Barrier(4), []

    def call() -> None:
        start.wait()
        right.extend(bool((ksearch.ops.softmax(torch.randn(SHAPE)) == 42).all()) for _ in range(50))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 200
    assert len(lookups) == len(backend.loaded) == 1


def test_under_autocast_the_op_asks_what_is_cast_whatever_its_handle_met_there(backend, monkeypatch):
    """A handle keeps the dtype of its tensors; the op gives what autocast makes of them."""
    promote("softmax", (4, 8))
    softmax, x, asked = ksearch.ops.softmax, torch.randn(4, 8), []
    softmax(x)
    monkeypatch.setattr(
        softmax._library, "cast", lambda kind, tensors, options: asked.append(kind) or tensors
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (softmax.find(x)(x) == 42).all()
        assert asked == []
        assert (softmax(x) == 42).all()
    assert asked == ["cpu"]


def test_whether_there_is_a_kernel_depends_on_which_option_has_a_value(backend, own_op):
    def function(x, *, scale=1.0, shift=1.0):
        return x * scale + shift

    affine, tensors = own_op(function, "own_affine"), (torch.randn(4, 8),)
    promote("own_affine", (4, 8), scale=2.0)
    assert affine.has_kernel(tensors, {"scale": 2.0})
    assert not affine.has_kernel(tensors, {"shift": 2.0})


def test_what_is_kept_of_questions_has_an_end(backend, monkeypatch):
    for module in (dispatch, presence):
        monkeypatch.setattr(module, "MOST_ROUTES", 3)
    softmax = ksearch.ops.softmax
    for rows in range(1, 12):
        assert not softmax.has_kernel((torch.randn(rows, 8),), {})
        assert len(softmax._presence._known) <= 3
        assert len(softmax._handles) <= 3


def test_the_ops_of_a_bundle_get_new_locks_after_a_fork():
    of_a_bundle = dispatch.Dispatcher(operators.get("softmax"), SimpleNamespace())
    before = of_a_bundle._lock
    dispatch._after_fork()
    assert of_a_bundle._lock is not before


def test_refresh_while_others_call(backend):
    promote("softmax", SHAPE)
    stop, wrong = threading.Event(), []

    def call() -> None:
        while not stop.is_set():
            if not (ksearch.ops.softmax(torch.randn(SHAPE)) == 42).all():
                wrong.append(1)

    thread = threading.Thread(target=call)
    thread.start()
    for _ in range(20):
        refresh()
    stop.set()
    thread.join()
    assert wrong == []
