"""`torch.ops.ksearch`: what PyTorch's dispatcher, compilers and autograd see of an op, with real kernels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

import ksearch.ops
from ksearch import operators
from ksearch.operators.program import as_tuple
from ksearch.types import Option
from tests.winners import Launches, in_use, put_in_force

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own modules
BACKENDS = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
SHAPE = (6, 40)
OPS: dict[str, dict[str, Option]] = {
    "softmax": {},
    "rmsnorm": {},
    "add_rmsnorm": {},
    "gelu": {"approximate": "tanh"},
    "softmax_backward": {},
    "rmsnorm_backward": {},
}
"""With a kernel of SHAPE each; layernorm and log_softmax have none."""


@dataclass(frozen=True)
class Tuned:
    backend: str
    folder: Path


@pytest.fixture(scope="module", params=BACKENDS)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("library")
    workloads = [operators.get(name).workload(SHAPE, **options) for name, options in OPS.items()]
    put_in_force(folder, request.param, workloads)
    return Tuned(request.param, folder)


@pytest.fixture
def launches(tuned: Tuned) -> Iterator[Launches]:
    with in_use(tuned.folder, tuned.backend) as launches:
        torch._dynamo.reset()
        yield launches


def tensors_of(name: str, device: str, shape: tuple[int, ...] = SHAPE, **look: Any) -> tuple[Tensor, ...]:
    """Of every role of the op."""
    op = operators.get(name)
    made = [
        torch.randn(each, device=device)
        for each in op.input_shapes(shape, {**op.options, **OPS.get(name, {})})
    ]
    return tuple(
        each.to(look.get("dtype", each.dtype)).requires_grad_(look.get("grad", False)) for each in made
    )


def called(name: str, through: str) -> Callable[..., Any]:
    return getattr(torch.ops.ksearch if through == "torch" else ksearch.ops, name)


def close(ours: Any, theirs: Any) -> None:
    for one, other in zip(as_tuple(ours), as_tuple(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str, tuned: Tuned, launches: Launches) -> None:
    overload = getattr(torch.ops.ksearch, name).default
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    # PyTorch 2.11 itself cannot differentiate a fused norm of unknown sizes on a GPU.
    own_fault = tuned.backend == "cuda" and "rmsnorm" in name and torch.__version__ < "2.12"
    for shape in (SHAPE, (3, 7)):
        for grad in (False, True):
            tensors = tensors_of(name, tuned.backend, shape, grad=grad)
            which = checks[:3] if own_fault and grad else checks
            opcheck(overload, tensors, OPS[name], test_utils=which)
    assert launches.count > 0


def test_opcheck_without_any_kernel(tuned: Tuned, launches: Launches) -> None:
    for name in ("layernorm", "log_softmax", "linear"):
        shape = (4, 8, 5) if name == "linear" else (4, 8)
        x = torch.randn(shape[:2], device=tuned.backend, requires_grad=True)
        others = [torch.randn(5, 8, device=tuned.backend)] if name == "linear" else []
        opcheck(getattr(torch.ops.ksearch, name).default, (x, *others))
    assert launches.count == 0


@pytest.mark.parametrize("name", OPS)
def test_a_call(name: str, tuned: Tuned, launches: Launches) -> None:
    tensors, options = tensors_of(name, tuned.backend), OPS[name]
    wanted = operators.get(name).function(*tensors, **options)
    close(called(name, "torch")(*tensors, **options), wanted)
    assert launches.count == 1
    with torch.inference_mode():
        close(called(name, "torch")(*tensors, **options), wanted)
    with torch.no_grad():
        close(called(name, "torch")(*tensors, **options), wanted)
    assert launches.count == 3


@pytest.mark.parametrize("through", ["torch", "ops"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_compiled_graph_of_a_known_shape(
    backend: str, through: str, tuned: Tuned, launches: Launches
) -> None:
    softmax = called("softmax", through)
    compiled = torch.compile(lambda x: softmax(x * 2) + 1, backend=backend, fullgraph=True, dynamic=False)
    x = tensors_of("softmax", tuned.backend)[0]
    close(compiled(x), torch.softmax(x * 2, -1) + 1)
    assert launches.count == 1, "what the graph was made with"
    x = tensors_of("softmax", tuned.backend, (5, 40))[0]
    close(compiled(x), torch.softmax(x * 2, -1) + 1)
    assert launches.count == 1, "no kernel for this one"


def graphs_of(function: Callable[..., Any], *tensors: Tensor, dynamic: bool = False) -> list[str]:
    """The functions of the graphs after PyTorch took them apart; runs it."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    seen: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    result = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)(*tensors)
    if result.requires_grad:
        result.sum().backward()
    return seen


def test_a_graph_sees_pytorch_where_there_is_no_kernel(tuned: Tuned, launches: Launches) -> None:
    x = torch.randn(SHAPE, device=tuned.backend)
    assert "ksearch.softmax.default" in graphs_of(ksearch.ops.softmax, x)
    assert not any("ksearch" in each for each in graphs_of(ksearch.ops.log_softmax, x))
    assert not any("ksearch" in each for each in graphs_of(ksearch.ops.softmax, x[:5]))
    assert not any("ksearch" in each for each in graphs_of(lambda x: ksearch.ops.softmax(x.t()), x))
    assert not any("ksearch" in each for each in graphs_of(lambda x: ksearch.ops.softmax(x, 0), x))


def test_a_graph_of_sizes_that_are_not_known(tuned: Tuned, launches: Launches) -> None:
    """The op is in the graph where it has any kernel, and looks for it when it runs."""
    x = torch.randn(9, 40, device=tuned.backend)
    assert "ksearch.softmax.default" in graphs_of(ksearch.ops.softmax, x, dynamic=True)
    assert not any("ksearch" in each for each in graphs_of(ksearch.ops.log_softmax, x, dynamic=True))
    torch._dynamo.reset()
    before = launches.count
    compiled = torch.compile(lambda x: ksearch.ops.softmax(x * 2) + 1, fullgraph=True, dynamic=True)
    for rows, count in ((9, 0), (6, 1), (11, 1)):
        x = torch.randn(rows, 40, device=tuned.backend)
        close(compiled(x), torch.softmax(x * 2, -1) + 1)
        assert launches.count - before == count


def test_graphs_of_gradients(tuned: Tuned, launches: Launches) -> None:
    """A kernel both ways, or PyTorch's own both ways."""
    x = torch.randn(SHAPE, device=tuned.backend, requires_grad=True)
    found = graphs_of(lambda x: ksearch.ops.softmax(x).square(), x)
    assert {"ksearch.softmax.default", "ksearch.softmax_backward.default"} <= {*found}
    ours, x.grad = x.grad, None
    torch.softmax(x, -1).square().sum().backward()
    close(ours, x.grad)
    found = graphs_of(lambda x: ksearch.ops.gelu(x, approximate="tanh"), x)
    assert not any("ksearch" in each for each in found)


@pytest.mark.parametrize("through", ["torch", "ops"])
@pytest.mark.parametrize(
    ("name", "count"),
    [("softmax", 2), ("rmsnorm", 2), ("add_rmsnorm", None), ("gelu", None), ("layernorm", 0)],
)
def test_gradients(name: str, count: int | None, through: str, tuned: Tuned, launches: Launches) -> None:
    """`count` kernels: forward and backward. Without one for the backward, ksearch.ops leaves it to PyTorch;
    torch.ops runs the forward, and differentiates the op's own function."""
    tensors, options = tensors_of(name, tuned.backend, grad=True), OPS.get(name, {})
    grads = [torch.randn(SHAPE, device=tuned.backend) for _ in operators.get(name).program(**options).outputs]
    wanted = torch.autograd.grad(as_tuple(operators.get(name).function(*tensors, **options)), tensors, grads)
    results = as_tuple(called(name, through)(*tensors, **options))
    close(torch.autograd.grad(results, tensors, grads), wanted)
    assert launches.count == (count if count is not None else through == "torch")


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "rmsnorm", "layernorm", "add_rmsnorm", "gelu"])
def test_gradcheck(name: str, tuned: Tuned, launches: Launches) -> None:
    tensors = tensors_of(name, tuned.backend, (3, 5), dtype=torch.float64, grad=True)
    function = called(name, "torch")
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("name", ["softmax", "rmsnorm"])
def test_second_derivatives_are_pytorchs(name: str, tuned: Tuned, launches: Launches) -> None:
    tensors = tensors_of(name, tuned.backend, grad=True)

    def second(function: Callable[..., Tensor]) -> Any:
        (first,) = torch.autograd.grad(function(*tensors).square().sum(), tensors[:1], create_graph=True)
        return torch.autograd.grad(first.square().sum(), tensors)

    for ours, theirs in zip(second(called(name, "ops")), second(operators.get(name).function), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert launches.count == 2, "the forward, and its gradient on the way to the second"


@pytest.mark.parametrize(
    "name", ["softmax_backward", "log_softmax_backward", "rmsnorm_backward", "layernorm_backward"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_derivatives_are_those_of_autograd(name: str, dtype: torch.dtype, tuned: Tuned) -> None:
    forward = operators.get(name.removesuffix("_backward"))
    x = torch.randn(SHAPE, device=tuned.backend, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    for weight in (torch.randn(40, device=tuned.backend, dtype=dtype), None):
        others = () if "softmax" in name else (weight,)
        y = forward.function(x, *others)
        (wanted,) = torch.autograd.grad(y, x, grad)
        saved = (y,) if "softmax" in name else (x, *others)
        close(operators.get(name).function(grad, *saved).detach(), wanted)


def test_forward_derivatives_and_transforms(tuned: Tuned, launches: Launches) -> None:
    x, tangent = torch.randn(2, *SHAPE, device=tuned.backend)
    softmax = torch.ops.ksearch.softmax
    close(torch.func.jvp(softmax, (x,), (tangent,)),
          torch.func.jvp(lambda x: F.softmax(x, -1), (x,), (tangent,)))  # fmt: skip
    close(torch.func.grad(lambda x: softmax(x).square().sum())(x),
          torch.func.grad(lambda x: F.softmax(x, -1).square().sum())(x))  # fmt: skip
    assert launches.count == 0


def test_the_gradient_of_a_sum_reaches_the_kernel(tuned: Tuned, launches: Launches) -> None:
    """It is one element, expanded."""
    x, weight = (each.requires_grad_() for each in tensors_of("rmsnorm", tuned.backend))
    y = ksearch.ops.rmsnorm(x, weight.detach())
    before = launches.count
    y.sum().backward()
    assert launches.count == before + 1
    theirs = x.detach().requires_grad_()
    F.rms_norm(theirs, (SHAPE[-1],), weight.detach(), 1e-6).sum().backward()
    close(x.grad, theirs.grad)


def test_vmap(tuned: Tuned, launches: Launches) -> None:
    """The mapped dim becomes one more of rows, where no tensor's role changes by that."""
    x = torch.randn(2, 40, 3, device=tuned.backend)
    softmax = torch.ops.ksearch.softmax
    close(torch.vmap(softmax, 2)(x), torch.vmap(lambda x: x.softmax(-1), 2)(x))
    norm, weight = torch.ops.ksearch.rmsnorm, torch.randn(40, device=tuned.backend)
    weights = torch.randn(3, 40, device=tuned.backend)
    x = torch.randn(3, 2, 40, device=tuned.backend)
    wanted = torch.vmap(operators.get("rmsnorm").function, (0, None))(x, weight)
    close(torch.vmap(norm, (0, None))(x, weight), wanted)
    close(torch.vmap(norm)(x, weights), torch.vmap(operators.get("rmsnorm").function)(x, weights))
    both = torch.ops.ksearch.add_rmsnorm
    close(torch.vmap(both, (0, None, None))(x, x[0], weight),
          torch.vmap(operators.get("add_rmsnorm").function, (0, None, None))(x, x[0], weight))  # fmt: skip
    linear = torch.ops.ksearch.linear
    operand = torch.randn(5, 40, device=tuned.backend)
    close(torch.vmap(linear, (0, None))(x, operand), F.linear(x, operand))
    for op, tensors in (
        (norm, (x[:, 0], weights)),  # of one row each, beside which a weight for each is as large as x
        (linear, (x, torch.randn(3, 5, 40, device=tuned.backend))),
        (torch.ops.ksearch.add_rmsnorm, (x, x, weights)),
    ):
        one_by_one = [as_tuple(op(*each)) for each in zip(*tensors, strict=True)]
        close(torch.vmap(op)(*tensors), tuple(map(torch.stack, zip(*one_by_one, strict=True))))


def test_vmap_reaches_the_kernel(tuned: Tuned, launches: Launches) -> None:
    x = torch.randn(SHAPE, device=tuned.backend)
    close(torch.vmap(torch.ops.ksearch.softmax)(x), x.softmax(-1))
    assert launches.count == 1


@pytest.mark.parametrize("through", ["torch", "ops"])
def test_autocast(through: str, tuned: Tuned, launches: Launches) -> None:
    """A linear gives the lower dtype, as torch's does; on a GPU a softmax gives float32."""
    device = tuned.backend
    x, weight = torch.randn(4, 8, device=device), torch.randn(5, 8, device=device)
    narrow = torch.randn(SHAPE, device=device, dtype=torch.bfloat16)
    with torch.autocast(device, dtype=torch.bfloat16):
        for name, tensors in (
            ("linear", (x, weight)),
            ("softmax", (narrow,)),
            ("gelu", (narrow,)),
            ("layernorm", (narrow, narrow[0])),
            ("linear_sigmoid_sum", (x, weight)),
        ):
            wanted = operators.get(name).function(*tensors)
            result = called(name, through)(*tensors)
            assert result.dtype is wanted.dtype
            torch.testing.assert_close(result, wanted, rtol=2e-2, atol=2e-2)
        before = launches.count
        x = torch.randn(SHAPE, device=device)
        close(called("softmax", through)(x), x.softmax(-1))
        assert launches.count == before + 1


def test_autocast_in_a_graph(tuned: Tuned, launches: Launches) -> None:
    x, weight = torch.randn(4, 8, device=tuned.backend), torch.randn(5, 8, device=tuned.backend)
    for through in ("torch", "ops"):
        torch._dynamo.reset()
        compiled = torch.compile(called("linear", through), backend="aot_eager", fullgraph=True)
        with torch.autocast(tuned.backend, dtype=torch.bfloat16):
            result = compiled(x, weight)
        assert result.dtype is torch.bfloat16


def test_an_op_of_ones_own(tuned: Tuned, launches: Launches) -> None:
    """Registered when it is asked for, and again when it is defined again, with another form."""

    @ksearch.op(name="library_pair")
    def pair(x: Tensor, y: Tensor | None = None, *, low: float = -float("inf"), name: str = 'a "b"') -> Any:
        return x.clamp(min=low), x

    x = torch.randn(3, 4, device=tuned.backend)
    low, same = torch.ops.ksearch.library_pair(x, low=0.0)
    assert torch.equal(low, x.clamp(min=0))
    assert torch.equal(same, x)
    assert same.data_ptr() != x.data_ptr(), "no result is an input"
    schema = torch.ops.ksearch.library_pair.default._schema
    assert str(schema).endswith("-> (Tensor, Tensor)")

    @ksearch.op(name="library_pair")
    def one(x: Tensor) -> Tensor:
        return x + 1

    assert torch.equal(torch.ops.ksearch.library_pair(x), x + 1)
    assert torch.equal(torch.compile(torch.ops.ksearch.library_pair, backend="eager")(x), x + 1)


def test_names() -> None:
    assert torch.ops.ksearch.layer_norm is not None, "an alias"
    with pytest.raises(AttributeError, match="did you mean softmax"):
        torch.ops.ksearch.sofmax  # noqa: B018
    assert not hasattr(torch.ops.ksearch, "__path__")


@pytest.mark.parametrize("first", ["import torch, ksearch", "import ksearch, torch; ksearch.ops"])
def test_it_is_there_from_the_import_on(first: str) -> None:
    code = f"{first}; print(torch.ops.ksearch.softmax(torch.zeros(1, 2)).tolist())"
    root = str(Path(ksearch.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[[0.5, 0.5]]"
