"""Tensors at the edges of what a kernel can take: the answer is PyTorch's, and no kernel runs on what is
not plain memory of its workload.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ksearch
from ksearch import operators
from ksearch.operators.program import as_tuple
from ksearch.runtime import Handle, Match
from tests.winners import Launches, in_use, put_in_force

BACKENDS = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
OPS = ("gelu", "softmax", "add_rmsnorm")
"""Pointwise, over rows, and of two outputs and three inputs."""
SHAPE = (4, 8)
SHAPES = (SHAPE, (1,), (2, 3, 4, 5), (37, 1003))


class Tagged(Tensor):
    pass


def channels_last(device: str) -> Tensor:
    return torch.randn(2, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last)


UNFIT: dict[str, Callable[[str], Tensor]] = {
    "no rows": lambda device: torch.randn(0, 8, device=device),
    "no columns": lambda device: torch.randn(4, 0, device=device),
    "no elements": lambda device: torch.randn(0, device=device),
    "no dimension": lambda device: torch.randn((), device=device),
    "transposed": lambda device: torch.randn(8, 4, device=device).t(),
    "every other column": lambda device: torch.randn(4, 16, device=device)[:, ::2],
    "some columns": lambda device: torch.randn(4, 9, device=device)[:, 1:],
    "one row expanded": lambda device: torch.randn(8, device=device).expand(SHAPE),
    "one element expanded": lambda device: torch.randn((), device=device).expand(SHAPE),
    "backwards in memory": lambda device: torch.randn(2, 3, 4, 5, device=device).permute(0, 1, 3, 2).mT.mT,
    "channels last": channels_last,
    "negated": lambda device: torch._neg_view(torch.randn(SHAPE, device=device)),
    "negated, one element": lambda device: torch.randn(1, dtype=torch.complex64, device=device).conj().imag,
    "requires a gradient": lambda device: torch.randn(SHAPE, device=device, requires_grad=True),
    "subclass": lambda device: torch.randn(SHAPE, device=device).as_subclass(Tagged),
    "meta": lambda device: torch.randn(SHAPE, device="meta"),
    "float64": lambda device: torch.randn(SHAPE, device=device, dtype=torch.float64),
    "int32": lambda device: torch.ones(SHAPE, device=device, dtype=torch.int32),
    "complex, conjugate": lambda device: torch.randn(SHAPE, device=device, dtype=torch.complex64).conj(),
    "sparse": lambda device: torch.randn(SHAPE, device=device).relu().to_sparse(),
    "sparse rows": lambda device: torch.eye(4, 8, device=device).to_sparse_csr(),
    "nested": lambda device: torch.nested.nested_tensor([torch.randn(4, 8, device=device)] * 2),
}
FIT: dict[str, Callable[[str], Tensor]] = {
    "plain": lambda device: torch.randn(SHAPE, device=device),
    "one element": lambda device: torch.randn(1, device=device),
    "one element, any stride": lambda device: torch.randn(2, device=device)[::2],
    "four dimensions": lambda device: torch.randn(2, 3, 4, 5, device=device),
    "later in its storage": lambda device: torch.randn(8, 8, device=device)[4:],
    "parameter": lambda device: torch.nn.Parameter(torch.randn(SHAPE, device=device), requires_grad=False),
    "special values": lambda device: torch.tensor(
        [[0.0, -0.0, 1e-40, -3e18, 88.0, -104.0, 1e-7, 2.0], [torch.nan, *7 * [1.0]]] * 2, device=device
    ),
    "infinite": lambda device: torch.tensor([[torch.inf, *7 * [1.0]], [-torch.inf] * 8] * 2, device=device),
}


@dataclass(frozen=True)
class Tuned:
    backend: str
    folder: Path


@pytest.fixture(scope="module", params=BACKENDS)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("edges")
    workloads = [operators.get(name).workload(shape) for name in OPS for shape in SHAPES]
    put_in_force(folder, request.param, workloads)
    return Tuned(request.param, folder)


@pytest.fixture
def launches(tuned: Tuned) -> Iterator[Launches]:
    with in_use(tuned.folder, tuned.backend) as launches:
        yield launches


def handle(name: str, shape: tuple[int, ...], device: str) -> Handle:
    found = ksearch.load(name, shape, device=device)
    assert found.match is Match.EXACT
    return found


def arguments(name: str, x: Tensor) -> list[tuple[Tensor, ...]]:
    """Calls in which `x` is one of the tensors, and all others are plain."""
    if name != "add_rmsnorm":
        return [(x,)]
    if x.is_nested:
        return [(x, x, torch.ones(8, device=x.device))]
    plain = torch.ones(x.shape, dtype=x.dtype, device=x.device)
    weight = torch.arange(x.shape[-1] if x.dim() else 1, device=x.device).to(x.dtype)
    return [(x, plain, weight), (plain, x, weight)]


def outcome(function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Any:
    """The results; of a call that fails, the kind of error."""
    try:
        return as_tuple(function(*tensors))
    except Exception as error:  # noqa: BLE001  (whatever torch raises is right)
        return type(error)


def check_kernel(name: str, function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> None:
    """Against float64 on the CPU: torch's own gelu of inf is NaN in vectors of float32, and its fused
    rms_norm on a GPU makes NaN of the whole row."""
    wanted = as_tuple(operators.get(name).function(*(each.double().cpu() for each in tensors)))
    for ours, theirs in zip(as_tuple(function(*tensors)), wanted, strict=True):
        assert ours.is_contiguous()
        assert ours.device == tensors[0].device
        torch.testing.assert_close(ours.cpu(), theirs.float(), equal_nan=True)


def check(name: str, function: Callable[..., Any], tensors: tuple[Tensor, ...], rtol: float = 0.0) -> None:
    """What PyTorch gives, bit for bit where `rtol` is 0, or the error that it raises."""
    wanted, found = outcome(operators.get(name).function, tensors), outcome(function, tensors)
    if isinstance(wanted, type):
        assert found == wanted
        return
    for ours, theirs in zip(found, wanted, strict=True):
        assert type(ours) is type(theirs)
        assert ours.requires_grad == theirs.requires_grad
        if theirs.is_meta:
            assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
        elif theirs.is_nested:
            assert all(map(torch.equal, ours.unbind(), theirs.unbind()))
        else:
            strided = theirs.layout is torch.strided
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0, equal_nan=True, check_stride=strided)


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.filterwarnings("ignore:.*(Sparse|sparse|nested tensor).*:UserWarning")
def test_what_a_kernel_cannot_take_goes_to_pytorch(
    name: str, kind: str, tuned: Tuned, launches: Launches
) -> None:
    for tensors in arguments(name, UNFIT[kind](tuned.backend)):
        shapes = SHAPES[:1] if tensors[0].is_nested else SHAPES
        for shape in shapes:
            check(name, handle(name, shape, tuned.backend), tensors)
        check(name, getattr(ksearch.ops, name), tensors)
    assert launches.count == 0


@pytest.mark.parametrize("kind", FIT)
@pytest.mark.parametrize("name", OPS)
def test_what_it_can_take_it_gets(name: str, kind: str, tuned: Tuned, launches: Launches) -> None:
    x = FIT[kind](tuned.backend)
    for number, tensors in enumerate(arguments(name, x), 1):
        check_kernel(name, handle(name, tuple(x.shape), tuned.backend), tensors)
        check_kernel(name, getattr(ksearch.ops, name), tensors)
        assert launches.count == 2 * number


@pytest.mark.parametrize("offset", [1, 2, 3, 4])
@pytest.mark.parametrize("name", OPS)
def test_a_storage_offset(name: str, offset: int, tuned: Tuned, launches: Launches) -> None:
    """Who answers depends on what the kernel's vectors need; the answer does not."""
    x = torch.randn(32 + offset, device=tuned.backend)[offset:].view(SHAPE)
    loaded = handle(name, SHAPE, tuned.backend)
    assert loaded.winner is not None
    assert loaded.winner.launch is not None
    fits = x.data_ptr() % loaded.winner.launch.alignment == 0
    for tensors in arguments(name, x):
        before = launches.count
        check_kernel(name, loaded, tensors)
        assert launches.count - before == fits


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_two_calls_agree_bit_for_bit(
    name: str, shape: tuple[int, ...], tuned: Tuned, launches: Launches
) -> None:
    x = torch.randn(shape, device=tuned.backend)
    for tensors in arguments(name, x):
        before = launches.count
        first, second = (as_tuple(getattr(ksearch.ops, name)(*tensors)) for _ in range(2))
        assert all(map(torch.equal, first, second))
        assert launches.count == before + 2


ALIASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the input": lambda x, memory: x,
    "half of the input": lambda x, memory: memory[16:48].view(SHAPE),
    "the input, transposed": lambda x, memory: memory[:32].view(8, 4).t(),
    "memory, transposed": lambda x, memory: memory[64:].view(8, 4).t(),
}


@pytest.mark.parametrize("kind", ALIASES)
@pytest.mark.parametrize("name", OPS)
def test_an_out_that_a_kernel_cannot_write(name: str, kind: str, tuned: Tuned, launches: Launches) -> None:
    """As the first output and as the last, beside one that is plain."""
    called = getattr(ksearch.ops, name)
    for position in range(len(operators.get(name).program().outputs)):
        memory = torch.randn(96, device=tuned.backend)
        x = memory[:32].view(SHAPE)
        tensors = arguments(name, x)[0]
        wanted = as_tuple(operators.get(name).function(*(each.clone() for each in tensors)))
        outs = [torch.full(SHAPE, torch.nan, device=tuned.backend) for _ in wanted]
        outs[position] = ALIASES[kind](x, memory)
        results = called(*tensors, out=tuple(outs) if len(outs) > 1 else outs[0])
        for result, out, each in zip(as_tuple(results), outs, wanted, strict=True):
            assert result is out
            torch.testing.assert_close(out, each)
    in_place = kind == "the input" and name == "gelu"
    assert launches.count == in_place


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_kernel_of_elements_writes_over_its_input(
    shape: tuple[int, ...], tuned: Tuned, launches: Launches
) -> None:
    """And over nothing beside it."""
    size = math.prod(shape)
    memory = torch.randn(size + 64, device=tuned.backend)
    before, x = memory.clone(), memory[32 : 32 + size].view(shape)
    wanted = torch.nn.functional.gelu(x)
    loaded = handle("gelu", shape, tuned.backend)
    for called in (ksearch.ops.gelu, loaded):
        memory.copy_(before)
        assert called(x, out=x) is x
        torch.testing.assert_close(x, wanted)
        assert torch.equal(memory[:32], before[:32])
        assert torch.equal(memory[32 + size :], before[32 + size :])
    assert launches.count == (2 if loaded.winner.launch.in_place else 0)


def test_two_outs_that_are_the_two_inputs(tuned: Tuned, launches: Launches) -> None:
    x, residual = torch.randn(2, *SHAPE, device=tuned.backend)
    weight = torch.randn(8, device=tuned.backend)
    for swapped in (False, True):
        ours = [x.clone(), residual.clone()]
        wanted = operators.get("add_rmsnorm").function(x, residual, weight)
        ksearch.ops.add_rmsnorm(*ours, weight, out=tuple(ours[::-1] if swapped else ours))
        assert all(map(torch.equal, ours[::-1] if swapped else ours, wanted))
    assert launches.count == 0


def test_an_out_that_is_read_negated(tuned: Tuned, launches: Launches) -> None:
    x, memory = torch.randn(SHAPE, device=tuned.backend), torch.zeros(SHAPE, device=tuned.backend)
    ksearch.ops.softmax(x, out=torch._neg_view(memory))
    assert torch.equal(memory, -torch.softmax(x, -1))
    assert launches.count == 0


def traced_by_jit(function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    def program(*given: Tensor) -> Any:  # it wants a function with a name
        return function(*given)

    traced: Callable[..., Any] = torch.jit.trace(program, tensors, check_trace=False)
    return traced


def traced_by_make_fx(function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(function)(*tensors)


def compiled(function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    return torch.compile(function, backend="eager", fullgraph=True)


def functionalized(function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    return torch.func.functionalize(function)


@pytest.mark.parametrize(
    "transform", [traced_by_jit, traced_by_make_fx, compiled, functionalized], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("through", ["load", "ops"])
@pytest.mark.parametrize("name", OPS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*might cause the trace to be incorrect:torch.jit.TracerWarning")
def test_what_is_traced_is_pytorchs_but_for_a_kernel_in_a_compiled_graph(
    name: str, through: str, transform: Callable[..., Any], tuned: Tuned, launches: Launches
) -> None:
    """On other values than those that were there when it was traced."""
    called = handle(name, SHAPE, tuned.backend) if through == "load" else getattr(ksearch.ops, name)
    first, second = (arguments(name, torch.randn(SHAPE, device=tuned.backend))[0] for _ in range(2))
    # On a GPU torch.compile makes another sum of a fused norm than eager PyTorch does.
    if transform is compiled and through == "ops":
        check_kernel(name, transform(called, first), second)
        assert launches.count == 1
    else:
        check(name, transform(called, first), second, rtol=1e-5 if transform is compiled else 0.0)
        assert launches.count == 0


@pytest.mark.parametrize("through", ["load", "ops"])
@pytest.mark.parametrize("name", OPS)
def test_a_mode_of_fake_tensors(name: str, through: str, tuned: Tuned, launches: Launches) -> None:
    from torch._subclasses import FakeTensor, FakeTensorMode

    called = handle(name, SHAPE, tuned.backend) if through == "load" else getattr(ksearch.ops, name)
    tensors = arguments(name, torch.randn(SHAPE, device=tuned.backend))[0]
    with FakeTensorMode(allow_non_fake_inputs=True):
        results = as_tuple(called(*tensors))
    assert all(type(each) is FakeTensor and tuple(each.shape) == SHAPE for each in results)
    assert launches.count == 0


@pytest.mark.gpu
def test_tensors_of_another_device_than_the_winners(tuned: Tuned, launches: Launches) -> None:
    other = "cuda" if tuned.backend == "cpu" else "cpu"
    for name in OPS:
        tensors = arguments(name, torch.randn(SHAPE, device=other))[0]
        check(name, handle(name, SHAPE, tuned.backend), tensors)
        check(name, getattr(ksearch.ops, name), tensors)
    assert launches.count == 0
