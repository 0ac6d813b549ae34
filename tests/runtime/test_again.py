"""Handles, and modules that hold them, in pickles and copies; the fake kernel fills its output with 42."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import weakref

import pytest
import torch

import ksearch
import ksearch.nn
from ksearch import env, runtime
from ksearch.errors import NoWinner
from ksearch.runtime import Match
from ksearch.runtime import again as again_module
from tests.runtime.conftest import promote
from tests.runtime.test_bundle import KEY, export

SHAPE = (4, 8)
ARGUMENTS = {
    **dict.fromkeys(("Softmax", "LogSoftmax"), (-1,)),
    **dict.fromkeys(("RMSNorm", "LayerNorm"), (8,)),
    "GroupNorm": (2, 4),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"), (4,)),
    "Linear": (8, 3),
}
INPUTS = {
    "GroupNorm": (2, 4, 8),
    "BatchNorm1d": (2, 4, 8),
    "BatchNorm2d": (2, 4, 3, 3),
    "BatchNorm3d": (2, 4, 3, 3, 3),
}


@pytest.fixture
def handle(backend):
    promote("softmax", SHAPE)
    return ksearch.load("softmax", SHAPE, device="cpu")


class Model(torch.nn.Module):
    def __init__(self, handle: runtime.Handle) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.handle = handle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.handle(x.detach()) * self.scale


def again(thing):
    return pickle.loads(pickle.dumps(thing))


def through_a_file(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [again, through_a_file, copy.copy, copy.deepcopy])
def test_a_handle_goes_through(handle, way):
    found = way(handle)
    assert found.match is Match.EXACT
    assert found.workload == handle.workload
    assert (found(torch.randn(SHAPE)) == 42).all()
    assert (again(found)(torch.randn(SHAPE)) == 42).all()


@pytest.mark.parametrize("way", [again, through_a_file, copy.deepcopy])
def test_a_module_that_holds_one(handle, way):
    model = Model(handle)
    copied = way(model)
    with torch.no_grad():
        copied.scale += 1
    assert (model(torch.randn(SHAPE)) == 42).all()
    assert (copied(torch.randn(SHAPE)) == 84).all()


def test_what_is_known_there_answers(handle, monkeypatch, tmp_path, caplog):
    """Another winner, or PyTorch."""
    sent, x = pickle.dumps(handle), torch.randn(SHAPE)
    promote("softmax", SHAPE, 43.0)
    runtime.refresh()
    assert (pickle.loads(sent)(x) == 43).all()
    monkeypatch.setenv("KSEARCH_DB", str(tmp_path / "other.db"))
    there = pickle.loads(sent)
    assert there.match is Match.FALLBACK
    assert "to get one: ksearch tune softmax --shape 4x8" in there.reason
    torch.testing.assert_close(there(x), torch.softmax(x, -1))
    monkeypatch.setenv("KSEARCH_REQUIRE", "1")
    with pytest.raises(NoWinner, match="KSEARCH_REQUIRE"):
        pickle.loads(sent)


def test_a_database_that_was_named_is_named_again(backend, monkeypatch, tmp_path):
    promote("softmax", SHAPE)
    named = os.path.relpath(env.database_path())
    sent = pickle.dumps(ksearch.load("softmax", SHAPE, db=named))
    monkeypatch.setenv("KSEARCH_DB", str(tmp_path / "other.db"))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(sent).match is Match.EXACT


def test_a_device_that_is_not_there_runs_pytorch(handle, monkeypatch, caplog):
    asked = copy.copy(handle.asked)
    object.__setattr__(asked, "device", "cuda:1")
    handle.asked = asked
    there = again(handle)
    assert (there.match, there.kernel) == (Match.FALLBACK, None)
    assert "no device cuda" in there.reason
    x = torch.randn(SHAPE)
    torch.testing.assert_close(there(x), torch.softmax(x, -1))
    assert "runs PyTorch" in caplog.text
    assert again(there).asked == asked
    monkeypatch.setenv("KSEARCH_REQUIRE", "1")
    with pytest.raises(NoWinner, match="no device cuda"):
        again(handle)


def test_a_handle_that_was_not_loaded_is_not_pickled(handle):
    handle.asked = None
    with pytest.raises(TypeError, match=r"ksearch\.load did not give"):
        pickle.dumps(handle)


def test_a_handle_of_an_op_of_ones_own(backend, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import ksearch\n\n@ksearch.op\ndef doubled(x):\n    return x * 2\n")
    handle = ksearch.load(f"{file}:doubled", SHAPE)
    there, x = again(handle), torch.randn(SHAPE)
    assert there.workload == handle.workload
    torch.testing.assert_close(there(x), x * 2)


@pytest.mark.parametrize("op", ["softmax", "add_rmsnorm"])
def test_a_handle_is_freed_with_its_last_name(backend, op):
    """Its kernel holds memory of the device, so that no cycle may wait for Python's collector."""
    promote(op, SHAPE)
    handle = ksearch.load(op, SHAPE)
    given = [torch.randn(shape) for shape in handle.op.input_shapes(SHAPE, handle.op.options)]
    for _ in range(3):
        handle(*given)
    kernel = weakref.ref(handle.kernel)
    was = gc.isenabled()
    gc.disable()
    try:
        del handle
        assert kernel() is None
    finally:
        if was:
            gc.enable()


def test_a_handle_of_a_bundle(backend, tmp_path, caplog):
    promote("softmax", SHAPE)
    path = export(tmp_path / "ops.ksb")
    env.database_path().unlink()
    sent = pickle.dumps(ksearch.load_bundle(path).load("softmax", SHAPE, device="cpu"))
    there = pickle.loads(sent)
    assert there.match is Match.EXACT
    assert (again(there)(torch.randn(SHAPE)) == 42).all()
    path.unlink()
    again_module._bundle.cache_clear()
    there, x = pickle.loads(sent), torch.randn(SHAPE)
    assert f"cannot read the bundle {path}" in there.reason
    torch.testing.assert_close(there(x), torch.softmax(x, -1))


def test_a_signed_bundle_may_not_become_another_one(backend, tmp_path, caplog):
    """The key is not in the pickle: what was signed with it is told by its digest."""
    key = tmp_path / "key"
    key.write_bytes(KEY)
    promote("softmax", SHAPE)
    path = export(tmp_path / "ops.ksb", key)
    sent = pickle.dumps(ksearch.load_bundle(path, key).load("softmax", SHAPE, device="cpu"))
    assert KEY not in sent
    there = pickle.loads(sent)
    assert there.match is Match.EXACT
    promote("softmax", SHAPE, 43.0)
    path.unlink()
    export(path)
    for each in (sent, pickle.dumps(there)):
        again_module._bundle.cache_clear()
        assert "is not the one that was signed" in pickle.loads(each).reason


@pytest.mark.parametrize("kind", list(ksearch.nn.MODULES.values()), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", [again, through_a_file, copy.deepcopy])
def test_modules_go_through(kind, way):
    made = kind(*ARGUMENTS.get(kind.__name__, ())).eval()
    x = torch.randn(INPUTS.get(kind.__name__, (2, 8)))
    copied = way(made)
    assert type(copied) is kind
    assert copied.state_dict().keys() == made.state_dict().keys()
    torch.testing.assert_close(copied(x), made(x))


@pytest.mark.parametrize("way", [again, through_a_file, copy.deepcopy])
def test_a_patched_model_goes_through(backend, way):
    promote("softmax", SHAPE)
    model = torch.nn.Sequential(torch.nn.Softmax(-1), torch.nn.Dropout())
    with ksearch.patch(model, torch.randn(SHAPE)) as report:
        assert report.swapped == ("0",)
        copied = way(model)
    assert type(model[0]) is torch.nn.Softmax
    assert type(copied[0]) is ksearch.nn.Softmax
    with torch.no_grad():
        assert (copied.eval()(torch.randn(SHAPE)) == 42).all()
