"""Calls that come through PyTorch's dispatcher, as compiled graphs make them: the launcher stands in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ksearch.ops
from ksearch import operators, runtime
from ksearch.errors import NoWinner
from ksearch.runtime import library
from tests.runtime.racing import wrong_answers
from tests.winners import at, put_in_force

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own modules
BACKENDS = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
SHAPE = (6, 40)
SOFTMAX, GELU = torch.ops.ksearch.softmax, torch.ops.ksearch.gelu


@pytest.fixture(scope="module", params=BACKENDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("winners")
    wanted: dict[str, dict[str, str]] = {"softmax": {}, "gelu": {"approximate": "tanh"}, "add_rmsnorm": {}}
    wanted["layernorm"] = {"bias": "none"}
    put_in_force(
        folder,
        request.param,
        [operators.get(name).workload(SHAPE, **named) for name, named in wanted.items()],
    )
    return request.param, folder


BOTH = pytest.mark.parametrize("device", [True, False], ids=["launcher", "python"], indirect=True)
"""What is started before the dispatcher is the same without a launcher, from Python."""


@pytest.fixture
def device(request: pytest.FixtureRequest, folder: tuple[str, Path], built: Path) -> Iterator[str]:
    has_launcher = getattr(request, "param", True)
    with at(folder[1]) as patch:
        patch.setenv("KSEARCH_LAUNCHER", str(built if has_launcher else built.with_name("none.so")))
        runtime.refresh()
        torch._dynamo.reset()
        yield folder[0]
        runtime.refresh()


class Python:
    """Counts the calls that reach the Python functions."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        quickly = runtime.Dispatcher.quickly

        def counted(this: Any, *given: Any) -> Any:
            self.calls += 1
            return quickly(this, *given)

        patch.setattr(runtime.Dispatcher, "quickly", counted)


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> Python:
    return Python(monkeypatch)


def check(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


def test_a_call_that_was_met_before_needs_no_python(device: str, python: Python) -> None:
    x = torch.randn(SHAPE, device=device)
    check(SOFTMAX(x), x.softmax(-1))
    assert python.calls > 0
    before = python.calls
    for call in (SOFTMAX, SOFTMAX.default):
        for _ in range(3):
            x.normal_()
            check(call(x), x.softmax(-1))
            check(call(x, dim="-1"), x.softmax(-1))
    assert python.calls == before
    with torch.inference_mode():
        for _ in range(3):
            result = SOFTMAX(x)
        assert result.is_inference()
    with torch.no_grad():
        check(SOFTMAX(x), x.softmax(-1))
    assert python.calls <= before + 2, "once more, for tensors of inference mode"


def test_several_outputs_absent_tensors_and_options(device: str, python: Python) -> None:
    x, residual = torch.randn(2, *SHAPE, device=device)
    weight = torch.randn(40, device=device)
    norm, add_norm = torch.ops.ksearch.layernorm, torch.ops.ksearch.add_rmsnorm
    calls = {
        "tanh": (lambda: GELU(x, approximate="tanh"), F.gelu(x, approximate="tanh")),
        "a weight, no bias": (lambda: norm(x, weight), F.layer_norm(x, (40,), weight)),
        "two outputs": (
            lambda: add_norm(x, residual, weight),
            operators.get("add_rmsnorm").function(x, residual, weight),
        ),
    }
    for what, (call, wanted) in calls.items():
        check(call(), wanted)
        before = python.calls
        for _ in range(2):
            check(call(), wanted)
        assert python.calls == before, what
    check(GELU(x), F.gelu(x))
    check(norm(x), F.layer_norm(x, (40,)))
    check(norm(x, None, weight), F.layer_norm(x, (40,), None, weight))
    check(norm(x, weight, weight), F.layer_norm(x, (40,), weight, weight))
    check(norm(x, weight, eps=0.5), F.layer_norm(x, (40,), weight, eps=0.5))
    assert python.calls > before, "no kernel is known for these"


@BOTH
def test_a_call_of_an_overload_means_what_it_says(device: str, python: Python) -> None:
    """It is launched before it comes to the dispatcher; what is seen on the way there still sees it."""
    x, call = torch.randn(SHAPE, device=device), SOFTMAX.default
    for _ in range(3):
        check(call(x), x.softmax(-1))
    before = python.calls
    check(GELU.default(x, approximate="tanh"), F.gelu(x, approximate="tanh"))
    check(GELU.default(x, approximate="none"), F.gelu(x))
    check(call(x, dim="0"), x.softmax(0))
    check(call(x.t()), x.t().softmax(-1))
    assert python.calls > before
    for arguments, named in (
        ((), {}),
        ((x, x), {}),
        ((x,), {"dims": "-1"}),
        ((x,), {"dim": 3.5}),
        ((1,), {}),
    ):
        with pytest.raises((RuntimeError, TypeError)):
            call(*arguments, **named)
    assert hash(call) == hash(call.op), "it is kept by that"

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    with Watch():
        check(call(x), x.softmax(-1))
    assert "ksearch.softmax.default" in seen
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, acc_events=True) as profile:  # else torch 2.11 warns
        call(x)
    assert "ksearch::softmax" in {each.name for each in profile.events()}


def test_a_compiled_graph_needs_no_python(device: str, python: Python) -> None:
    x = torch.randn(SHAPE, device=device)
    for function in (ksearch.ops.softmax, SOFTMAX, lambda x: ksearch.ops.softmax(x * 2) + 1):
        torch._dynamo.reset()
        graph = torch.compile(function, fullgraph=True)
        with torch.no_grad():
            wanted = torch.softmax(x * 2, -1) + 1 if "lambda" in repr(function) else x.softmax(-1)
            for _ in range(2):  # the first call is made under modes of the compiler's
                check(graph(x), wanted)
            before = python.calls
            for _ in range(3):
                check(graph(x), wanted)
        assert python.calls == before


@BOTH
def test_what_a_compiler_is_to_compare_is_little(device: str) -> None:
    """Of a call that is nothing but tensors: each thing that it met is compared before every call."""
    met: list[int] = []

    def keep(guards: Sequence[Any]) -> list[bool]:
        met.append(len(guards))
        return [True] * len(guards)

    graph = torch.compile(ksearch.ops.softmax, options={"guard_filter_fn": keep})
    with torch.no_grad():
        graph(torch.randn(SHAPE, device=device))
    assert max(met) < 45


@BOTH
@pytest.mark.parametrize("call", [SOFTMAX, SOFTMAX.default], ids=["packet", "overload"])
def test_what_is_not_for_the_kernel(call: Any, device: str) -> None:
    x = torch.randn(SHAPE, device=device)
    for _ in range(3):
        call(x)
    wide = torch.randn(6, 80, device=device)
    others = {
        "shape": torch.randn(5, 40, device=device),
        "dtype": x.double(),
        "strides": wide[:, ::2],
        "negated": torch._neg_view(x),
        "transposed": torch.randn(40, 6, device=device).t(),
        "one number": torch.randn((), device=device),
        "empty": torch.randn(0, 40, device=device),
    }
    for what, other in others.items():
        assert torch.equal(call(other), torch.softmax(other, -1)), what
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are new
        ragged = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(2, 4)], device=device)
    ours, theirs = call(ragged), torch.softmax(ragged, -1)
    assert all(map(torch.equal, ours.unbind(), theirs.unbind()))
    assert call(torch.empty(SHAPE, device="meta")).shape == SHAPE


@BOTH
@pytest.mark.parametrize("call", [SOFTMAX, SOFTMAX.default], ids=["packet", "overload"])
def test_subclasses_and_modes(call: Any, device: str, python: Python) -> None:
    class Other(torch.Tensor):
        pass

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    x = torch.randn(SHAPE, device=device)
    for _ in range(3):
        call(x)
    before = python.calls
    assert type(call(x.as_subclass(Other))) is Other
    assert python.calls > before, "a subclass is not for the kernel"
    with Watch():
        check(call(x), x.softmax(-1))
    assert "ksearch.softmax.default" in seen
    batch = torch.randn(3, *SHAPE, device=device)
    check(torch.vmap(call)(batch), torch.softmax(batch, -1))
    check(torch.vmap(lambda _: call(x))(batch)[0], x.softmax(-1))
    check(torch.func.functionalize(call)(x), x.softmax(-1))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert call(torch.empty(SHAPE, device=device)).shape == SHAPE
    with torch.autocast(device, dtype=torch.bfloat16):
        assert GELU(x.bfloat16()).dtype is F.gelu(x.bfloat16()).dtype
        assert call(x).dtype is torch.softmax(x, -1).dtype


@pytest.mark.parametrize("call", [SOFTMAX, SOFTMAX.default], ids=["packet", "overload"])
def test_gradients(call: Any, device: str, python: Python) -> None:
    x, tangent = torch.randn(2, *SHAPE, device=device)
    for _ in range(3):
        call(x)

    def gradient(function: Any) -> Tensor:
        leaf = x.clone().requires_grad_()
        function(leaf).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    for _ in range(3):
        check(gradient(call), gradient(lambda x: x.softmax(-1)))
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        for _ in range(2):
            assert not call(leaf).requires_grad
        before = python.calls
        call(leaf)
        assert python.calls == before
    assert call(leaf).requires_grad
    with forward_ad.dual_level():
        ours = forward_ad.unpack_dual(call(forward_ad.make_dual(x, tangent))).tangent
        theirs = forward_ad.unpack_dual(torch.softmax(forward_ad.make_dual(x, tangent), -1)).tangent
        check(ours, theirs)
    check(torch.func.grad(lambda x: call(x).square().sum())(x),
          torch.func.grad(lambda x: x.softmax(-1).square().sum())(x))  # fmt: skip


def test_what_was_learned_is_forgotten(device: str, python: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(SHAPE, device=device)
    for _ in range(2):
        SOFTMAX(x)
    monkeypatch.setenv("KSEARCH_DISABLE", "1")
    runtime.refresh()
    for _ in range(3):
        before = python.calls
        assert torch.equal(SOFTMAX(x), x.softmax(-1))
        assert python.calls > before, "nothing is launched"
    monkeypatch.delenv("KSEARCH_DISABLE")
    monkeypatch.setenv("KSEARCH_REQUIRE", "1")
    runtime.refresh()
    with pytest.raises(NoWinner, match="has no kernel here"):
        SOFTMAX(x[:5])
    check(SOFTMAX(x), x.softmax(-1))


def test_an_op_that_is_defined_again(device: str) -> None:
    """Its name is launched no more: the kernel was for another function."""
    registered = library.register(operators.get("softmax"), ksearch.ops.softmax)
    assert registered is not None
    x = torch.randn(SHAPE, device=device)
    for _ in range(3):
        check(SOFTMAX(x), x.softmax(-1))

    class Backing:
        def __call__(self, *args: Any, out: Any = None, **named: Any) -> Any:
            return args[0] + 1

        def quickly(self, args: Any, out: Any) -> None:
            """Never."""

        def has_kernel(self, tensors: Any, options: Any) -> bool:
            return False

    try:
        assert library.register(operators.get("softmax"), Backing()) is registered
        assert torch.equal(SOFTMAX(x), x + 1)
        runtime.refresh()
        ksearch.ops.softmax(x)  # what the former one learns is for nobody
        assert torch.equal(SOFTMAX(x), x + 1)
    finally:
        library.register(operators.get("softmax"), ksearch.ops.softmax)
    check(SOFTMAX(x), x.softmax(-1))


def test_the_launcher_may_come_later_and_go(device: str, python: Python, tmp_path: Path) -> None:
    x = torch.randn(SHAPE, device=device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KSEARCH_LAUNCHER", str(tmp_path / "none.so"))
        runtime.refresh()
        for _ in range(3):
            before = python.calls
            check(SOFTMAX(x), x.softmax(-1))
            assert python.calls > before
        check(torch.ops.ksearch.layernorm(x), F.layer_norm(x, (40,)))
    runtime.refresh()
    for _ in range(2):
        check(SOFTMAX(x), x.softmax(-1))
    before = python.calls
    check(SOFTMAX(x), x.softmax(-1))
    assert python.calls == before


@BOTH
def test_threads(device: str) -> None:
    assert wrong_answers(SOFTMAX, SHAPE, device) == []


def test_opcheck(device: str) -> None:
    for shape in (SHAPE, (3, 7)):
        for grad in (False, True):
            x = torch.randn(shape, device=device, requires_grad=grad)
            SOFTMAX(x.detach())
            opcheck(SOFTMAX.default, (x,))
