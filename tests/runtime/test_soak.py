"""Twenty ops from sixteen threads over four streams, and every result compared.

python -m pytest tests/runtime/test_soak.py -m soak     # two minutes; the other one takes five seconds
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ksearch
from ksearch import operators
from ksearch.operators.program import as_tuple
from tests.winners import Launches, in_use, put_in_force

pytestmark = pytest.mark.gpu

OPS = (
    "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "tanh", "sigmoid", "hardswish", "softplus",
    "residual_add", "swiglu", "softmax", "log_softmax", "rmsnorm", "layernorm", "add_rmsnorm", "l1norm",
    "l2norm",
)  # fmt: skip
SHAPES = ((64, 1000), (257, 4096), (33, 16384))
THREADS, STREAMS = 16, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("soak")
    put_in_force(made, "cuda", [operators.get(name).workload(shape) for name in OPS for shape in SHAPES])
    return made


@pytest.fixture
def launches(folder: Path) -> Iterator[Launches]:
    with in_use(folder, "cuda") as counted:
        yield counted


def case(name: str, shape: tuple[int, int], seed: int) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Inputs, and what is right for them."""
    generator = torch.Generator("cuda").manual_seed(seed)
    op = operators.get(name)
    shapes = op.input_shapes(shape, dict(op.workload(shape).options))
    tensors = [torch.randn(each, device="cuda", generator=generator) for each in shapes]
    wanted = as_tuple(op.reference(*(each.double() for each in tensors), **dict(op.workload(shape).options)))
    return tensors, tuple(each.float() for each in wanted)


def soak(seconds: float, launches: Launches) -> None:
    cases = [
        (name, *case(name, shape, seed)) for name in OPS for shape in SHAPES for seed in range(2)
    ]  # fmt: skip
    streams = [torch.cuda.Stream() for _ in range(STREAMS)]
    for name, tensors, _ in cases:
        getattr(ksearch.ops, name)(*tensors)  # loaded before the clock runs
    torch.cuda.synchronize()
    end = time.monotonic() + seconds
    wrong: list[str] = []
    calls = [0] * THREADS

    def work(number: int) -> None:
        chance = random.Random(number)
        try:
            while time.monotonic() < end and not wrong:
                name, tensors, wanted = chance.choice(cases)
                function: Callable[..., object] = getattr(ksearch.ops, name)
                with torch.cuda.stream(chance.choice(streams)):
                    if chance.random() < 0.5:
                        results = as_tuple(function(*tensors))
                    else:
                        outs = tuple(torch.full_like(each, torch.nan) for each in wanted)
                        results = as_tuple(function(*tensors, out=outs if len(outs) > 1 else outs[0]))
                    pairs = zip(results, wanted, strict=True)
                    good = [torch.isclose(one, other, rtol=1e-4, atol=1e-5).all() for one, other in pairs]
                    if not bool(torch.stack(good).all()):  # waits for this stream alone
                        wrong.append(f"{name} {tuple(tensors[0].shape)}")
                calls[number] += 1
        except Exception as error:  # noqa: BLE001  (told to the thread that asserts)
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(calls) > 0
    assert launches.count >= sum(calls), "every call was a kernel's"


def test_for_five_seconds(launches: Launches) -> None:
    soak(5.0, launches)


@pytest.mark.soak
@pytest.mark.slow
def test_for_two_minutes(launches: Launches) -> None:
    soak(120.0, launches)
