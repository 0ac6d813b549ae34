"""Torch's own samples of every function that a built-in op equals: the answers are torch's, and where a
kernel can give them, a compiled one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import ksearch
from ksearch import operators, runtime
from ksearch.errors import UsageError
from ksearch.runtime import Match
from ksearch.types import Workload
from tests.operators.opinfo import COVERED, OURS, Call, calls, dtypes, fits, infos, workload_of
from tests.winners import Launches, in_use, put_in_force

BACKENDS = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
MOST = {"cpu": {torch.float32: 3, torch.bfloat16: 1, torch.float16: 0}, "cuda": dict.fromkeys(OURS, 10**6)}
"""Kernels of each op and dtype: a C++ compiler takes 1 to 2.5 s for one, NVRTC 0.2 s."""
MOST_ALIKE = {"cpu": {torch.float32: 1, torch.bfloat16: 1, torch.float16: 0}, "cuda": MOST["cuda"]}
"""The same of reductions and losses, which are many and one template."""


@dataclass(frozen=True)
class Tuned:
    """Workloads with a kernel, and where they are stored."""

    backend: str
    folder: Path
    workloads: frozenset[Workload]


@pytest.fixture(scope="module", params=BACKENDS)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Kernels for the samples, all compiled at once."""
    backend, folder = request.param, tmp_path_factory.mktemp("opinfo")
    chosen = [
        workload
        for name in COVERED
        for dtype in OURS
        for workload in pick(needed(name, backend, dtype), most(name, backend, dtype))
    ]
    put_in_force(folder, backend, chosen)
    return Tuned(backend, folder, frozenset(chosen))


@pytest.fixture
def launches(tuned: Tuned) -> Iterator[Launches]:
    """Starts of these kernels in one test."""
    with in_use(tuned.folder, tuned.backend) as launches:
        yield launches


def needed(name: str, backend: str, dtype: torch.dtype) -> Iterable[Workload]:
    """The workloads of those samples that a kernel can take."""
    found = (workload_of(name, call) for call in calls(name, backend, dtype) if fits(call))
    return dict.fromkeys(workload for workload in found if workload is not None)


def most(name: str, backend: str, dtype: torch.dtype) -> int:
    is_alike = operators.get(name).program().family == "reduction"
    return (MOST_ALIKE if is_alike else MOST)[backend][dtype]


def pick(workloads: Iterable[Workload], count: int) -> list[Workload]:
    """The longest row, then each time what is least like those picked before: by length, then by options."""
    left = sorted(workloads, key=lambda each: (-each.cols, -each.numel))
    picked: list[Workload] = []
    while left and len(picked) < count:
        best = max(left, key=lambda each: min((_distance(each, other) for other in picked), default=0.0))
        picked.append(best)
        left.remove(best)
    return picked


def _distance(one: Workload, other: Workload) -> float:
    return abs(math.log2(one.cols / other.cols)) + 4 * (one.options != other.options)


def test_every_op_that_equals_a_function_of_torch_has_samples() -> None:
    """So that a new op, or a new name in torch, cannot take an op out of these tests unseen."""
    built_in = [name for name in operators.names() if operators.get(name).location == name]
    with_function = {name for name in built_in if operators.get(name).torch_function}
    assert with_function == COVERED.keys()
    assert {name: [_full_name(info) for info in infos(name)] for name in COVERED} == COVERED


def _full_name(info: object) -> str:
    return ".".join(filter(None, (info.name, info.variant_test_name)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", OURS, ids=str)
@pytest.mark.parametrize("name", COVERED)
def test_the_answers_are_torchs_and_kernels_give_them(
    name: str, dtype: torch.dtype, tuned: Tuned, launches: Launches
) -> None:
    ours = {each for each in tuned.workloads if (each.op, f"torch.{each.dtype}") == (name, str(dtype))}
    assert bool(ours) == bool(most(name, tuned.backend, dtype))
    handles = {each: _handle(each, tuned.backend) for each in ours}
    assert {handle.match for handle in handles.values()} <= {Match.EXACT}
    by_kernel = set()
    for call in calls(name, tuned.backend, dtype):
        workload = workload_of(name, call)
        handle = handles.get(workload) if fits(call) else None
        expected = handle is not None and _is_aligned(call, handle)
        if compare(name, call, launches, expected=expected) and workload is not None:
            by_kernel.add(workload)
    assert by_kernel == ours, "every kernel has run"


def _handle(workload: Workload, device: str) -> runtime.Handle:
    return ksearch.load(workload.op, workload.dims, workload.dtype, device, **dict(workload.options))


def _is_aligned(call: Call, handle: runtime.Handle) -> bool:
    assert handle.winner is not None
    assert handle.winner.launch is not None
    return all(each.data_ptr() % handle.winner.launch.alignment == 0 for each in call.tensors)


def compare(name: str, call: Call, launches: Launches, *, expected: bool) -> bool:
    """Whether a kernel gave the answer, which must be as `expected`; else it is torch's, bit for bit."""
    function = getattr(ksearch.ops, name)
    before = launches.count
    if not isinstance(call.args[0], torch.Tensor):
        with pytest.raises(UsageError, match="takes a tensor first"):
            function(*call.args, **call.named)
        return False
    result = function(*call.args, **call.named)
    assert launches.count - before == expected, f"{name}({call})"
    wanted = call.function(*call.args, **call.named)
    if expected:  # where torch may give a dimension of size 1 another stride, a kernel's answer is contiguous
        assert result.is_contiguous()
        wanted = _without_slips(wanted, result, call)
        if name == "linear":
            wanted = _where_terms_cancel(result, wanted, call)
    torch.testing.assert_close(
        result,
        wanted,
        **({} if expected else {"rtol": 0.0, "atol": 0.0, "check_stride": True}),
        equal_nan=True,
        msg=lambda text: f"{name}({call}): {text}",
    )
    return expected


def _where_terms_cancel(result: torch.Tensor, wanted: torch.Tensor, call: Call) -> torch.Tensor:
    """`result` where it is off by no more than roundings of the terms that are summed: a kernel gets the sum
    without the bias rounded to the dtype, and where that bias cancels it the rest is this rounding. A float32
    that is split in two keeps 22 bits: three roundings of 2^-22."""
    bias = {name: each.double().abs() for name, each in call.named.items() if each is not None}
    terms = call.function(*[each.double().abs() for each in call.args if each is not None], **bias)
    off = (result.double() - wanted.double()).abs()
    return torch.where(off <= 6 * torch.finfo(result.dtype).eps * terms, result, wanted)


def _without_slips(given: torch.Tensor, result: torch.Tensor, call: Call) -> torch.Tensor:
    """Torch's answer; but the exact one where its own is not close to that (its log_softmax in bfloat16 is 0
    for -0.0013 on a CPU), and `result` where that is: the two may be on either side of what is exact."""
    if not given.is_floating_point():
        return given
    args = [_widened(each) for each in call.args]
    named = {name: _widened(each) for name, each in call.named.items()}
    exact = call.function(*args, **named).to(given.dtype)
    rtol = {torch.float32: 1.3e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}[given.dtype]  # assert_close's
    near, right = (
        torch.isclose(each, exact, rtol=rtol, atol=1e-5, equal_nan=True) for each in (given, result)
    )
    return torch.where(right, result, torch.where(near, given, exact))


def _widened(thing: object) -> object:
    """Of a call's argument; the dtype that it asks for, too: a `dtype=torch.float16` of cumsum rounds each
    partial sum on a GPU."""
    if isinstance(thing, torch.dtype):
        return torch.float64 if thing.is_floating_point else thing
    return thing.double() if isinstance(thing, torch.Tensor) and thing.is_floating_point() else thing


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_is_exact_does_not_depend_on_the_dtype_that_is_asked_for(dtype: torch.dtype) -> None:
    x = torch.rand(400, 5, generator=torch.Generator().manual_seed(0)).to(dtype)

    def in_turn(x: torch.Tensor, dim: int, *, dtype: torch.dtype) -> torch.Tensor:
        """As cumsum does on a GPU."""
        rows = list(x.to(dtype))
        for place in range(1, len(rows)):
            rows[place] = rows[place - 1] + rows[place]
        return torch.stack(rows, dim)

    right = x.double().cumsum(0).to(dtype)
    given = in_turn(x, 0, dtype=dtype)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(right, given)
    assert torch.equal(_without_slips(given, right, Call(in_turn, (x, 0), {"dtype": dtype})), right)


@pytest.mark.parametrize("name", COVERED)
def test_other_dtypes_are_torchs(name: str, tuned: Tuned, launches: Launches) -> None:
    others = [dtype for dtype in dtypes(name, tuned.backend) if dtype not in OURS]
    assert torch.float64 in others
    for dtype in others:
        for call in calls(name, tuned.backend, dtype, reference=False):
            assert not compare(name, call, launches, expected=False)
