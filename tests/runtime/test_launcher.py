"""Calls through the compiled launcher: what it answers, and that it declines all else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import ksearch.ops
from ksearch import operators, runtime
from ksearch.cli import main
from ksearch.operators.program import as_tuple
from ksearch.runtime import launcher
from tests.runtime.racing import wrong_answers
from tests.winners import at, forced

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own modules
BACKENDS = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
SHAPE = (6, 40)
OPS = ("softmax", "gelu", "add_rmsnorm")


@pytest.fixture(scope="module", params=BACKENDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, forced(tmp_path_factory, request.param, OPS, SHAPE)


@pytest.fixture
def device(folder: tuple[str, Path], built: Path) -> Iterator[str]:
    """With the winners in force, and the launcher found."""
    with at(folder[1]) as patch:
        patch.setenv("KSEARCH_LAUNCHER", str(built))
        runtime.refresh()
        yield folder[0]
        runtime.refresh()


def tensors_of(name: str, device: str) -> tuple[Tensor, ...]:
    op = operators.get(name)
    return tuple(torch.randn(shape, device=device) for shape in op.input_shapes(SHAPE, op.options))


def handle_of(name: str, device: str) -> Any:
    return ksearch.load(name, SHAPE, "float32", device)


def starts(name: str, device: str) -> int:
    """Calls that the launchers of an op answered: its handle's here, and its dispatcher's."""
    found = getattr(ksearch.ops, name).find(*tensors_of(name, device))
    return int(found.kernel.launcher.starts)


def check(ours: Any, theirs: Any) -> None:
    for one, other in zip(as_tuple(ours), as_tuple(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", OPS)
def test_the_first_call_is_looked_at_and_the_next_are_launched(name: str, device: str) -> None:
    tensors = tensors_of(name, device)
    wanted = operators.get(name).function(*tensors)
    for count in range(4):
        check(getattr(ksearch.ops, name)(*tensors), wanted)
        assert starts(name, device) == count
    handle = handle_of(name, device)
    for count in range(3):
        check(handle(*tensors), wanted)
        assert handle.kernel.launcher.starts == count
    out = tuple(torch.empty_like(each) for each in as_tuple(wanted))
    given = out if len(out) > 1 else out[0]
    for _ in range(2):
        versions = [each._version for each in out]
        found = as_tuple(handle(*tensors, out=given))
        assert all(one is other for one, other in zip(found, out, strict=True))
        check(given, wanted)
        assert [each._version for each in out] == [version + 1 for version in versions]
    assert handle.kernel.launcher.starts == 3


def test_what_differs_is_looked_at_again(device: str) -> None:
    handle, x = handle_of("softmax", device), torch.randn(SHAPE, device=device)
    for _ in range(3):
        handle(x)
    before = handle.kernel.launcher.starts
    wide = torch.randn(6, 80, device=device)
    others = {
        "shape": torch.randn(5, 40, device=device),
        "dtype": x.double(),
        "strides": wide[:, ::2],
        "negated": torch._neg_view(x),
        "transposed": torch.randn(40, 6, device=device).t(),
    }
    for what, other in others.items():
        assert torch.equal(handle(other), torch.softmax(other, -1)), what
    with pytest.raises(ksearch.KsearchError):
        handle(x, out=torch.empty(5, 40, device=device))
    assert handle.kernel.launcher.starts == before
    handle(x)
    assert handle.kernel.launcher.starts == before + 1


def test_memory_that_a_kernel_cannot_take(device: str) -> None:
    handle, gelu = handle_of("softmax", device), handle_of("gelu", device)
    size = SHAPE[0] * SHAPE[1]
    memory = torch.randn(2 * size, device=device)
    x = memory[:size].view(SHAPE)
    out = torch.empty(SHAPE, device=device)
    for _ in range(3):
        handle(x, out=out)
    before = handle.kernel.launcher.starts
    wanted = torch.softmax(x, -1)
    overlapping = memory[8 : 8 + size].view(SHAPE)
    assert torch.equal(handle(x, out=overlapping), wanted)
    off = memory[1 : 1 + size].view(SHAPE)
    check(handle(off, out=out), torch.softmax(off, -1))
    assert handle.kernel.launcher.starts == before + (handle.winner.launch.alignment <= 4)
    x = torch.randn(SHAPE, device=device)
    right_ones = [torch.nn.functional.gelu(x)]
    right_ones.append(torch.nn.functional.gelu(right_ones[0]))
    for right in right_ones:  # over its own input, where the kernel can do that
        check(gelu(x, out=x), right)


def test_gradients(device: str) -> None:
    handle = handle_of("softmax", device)
    x = torch.randn(SHAPE, device=device)
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        for _ in range(2):
            assert not handle(leaf).requires_grad
    before = handle.kernel.launcher.starts
    assert before == 1
    result = handle(leaf)
    result.square().sum().backward()
    other = x.clone().requires_grad_()
    torch.softmax(other, -1).square().sum().backward()
    assert leaf.grad is not None
    assert other.grad is not None
    check(leaf.grad, other.grad)
    with forward_ad.dual_level():
        tangent = torch.randn_like(x)
        ours = forward_ad.unpack_dual(handle(forward_ad.make_dual(x, tangent))).tangent
        theirs = forward_ad.unpack_dual(torch.softmax(forward_ad.make_dual(x, tangent), -1)).tangent
        check(ours, theirs)
    assert handle.kernel.launcher.starts == before


def test_modes(device: str) -> None:
    handle, x = handle_of("softmax", device), torch.randn(SHAPE, device=device)
    wanted = torch.softmax(x, -1)
    for _ in range(2):
        check(handle(x), wanted)
    with torch.inference_mode():
        for _ in range(3):
            result = handle(x)
        assert result.is_inference()
        check(result, wanted)
    before = handle.kernel.launcher.starts
    batch = torch.randn(3, *SHAPE, device=device)
    assert torch.equal(torch.vmap(handle)(batch), torch.softmax(batch, -1))
    assert torch.equal(torch.func.functionalize(handle)(x), wanted)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert handle(torch.empty(SHAPE, device=device)).shape == SHAPE
    check(torch.compile(handle, backend="eager")(x), wanted)
    assert handle.kernel.launcher.starts == before


def test_autocast_casts_calls_of_ops(device: str) -> None:
    x = torch.randn(SHAPE, device=device)
    for _ in range(2):
        ksearch.ops.softmax(x)
    with torch.autocast(device, dtype=torch.bfloat16):
        for _ in range(3):
            assert ksearch.ops.softmax(x).dtype is torch.softmax(x, -1).dtype
            assert ksearch.ops.gelu(x.bfloat16()).dtype is torch.nn.functional.gelu(x.bfloat16()).dtype


def test_subclasses_are_not_for_kernels(device: str) -> None:
    class Other(torch.Tensor):
        pass

    handle, x = handle_of("softmax", device), torch.randn(SHAPE, device=device)
    for _ in range(2):
        handle(x)
    assert type(handle(x.as_subclass(Other))) is Other
    parameter = torch.nn.Parameter(x, requires_grad=False)
    for _ in range(2):
        check(handle(parameter), torch.softmax(x, -1))
    assert handle.kernel.launcher.starts == 3


def test_threads(device: str) -> None:
    assert wrong_answers(ksearch.ops.softmax, SHAPE, device) == []


def test_what_is_found_anew_is_launched(device: str) -> None:
    x = torch.randn(SHAPE, device=device)
    for _ in range(3):
        ksearch.ops.softmax(x)
    assert starts("softmax", device) == 2
    runtime.refresh()
    for _ in range(2):
        ksearch.ops.softmax(x)
    assert starts("softmax", device) == 1


def test_streams_and_graphs(device: str) -> None:
    if device == "cpu":
        pytest.skip("CPUs have neither")
    handle, x = handle_of("softmax", device), torch.randn(SHAPE, device=device)
    out = torch.empty_like(x)
    for _ in range(2):
        handle(x, out=out)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        x.normal_()
        handle(x, out=out)
        wanted = torch.softmax(x, -1)
    stream.synchronize()
    check(out, wanted)
    before = handle.kernel.launcher.starts
    with torch.cuda.graph(graph):
        handle(x, out=out)
    assert handle.kernel.launcher.starts == before + 1
    x.normal_()
    graph.replay()
    check(out, torch.softmax(x, -1))


def test_one_that_cannot_be_loaded_is_told_of(
    folder: tuple[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with at(folder[1]) as patch:
        patch.setenv("KSEARCH_LAUNCHER", str(broken))
        x = torch.randn(SHAPE, device=folder[0])
        handle = handle_of("softmax", folder[0])
        check(handle(x), torch.softmax(x, -1))
        assert handle.kernel.launcher is None
    assert "calls go without" in caplog.text


def test_the_command(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    made = []
    monkeypatch.setattr(launcher, "build", made.append)
    assert main(["launcher", "-o", str(tmp_path / "here.so")]) == 0
    assert made == [tmp_path / "here.so"]
    assert str(tmp_path / "here.so") in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setenv("KSEARCH_CXX", "no-such-compiler")
    assert main(["launcher", "-o", str(tmp_path / "here.so")]) == 1
    assert "no such compiler" in capsys.readouterr().err
