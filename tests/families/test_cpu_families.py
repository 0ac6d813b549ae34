"""Kernels of the CPU families, compiled and run: values against float64, memory against guard zones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ksearch import artifacts, backends, families
from ksearch.families.base import Space
from ksearch.operators import Op, get
from ksearch.operators.program import Input, Role, as_tuple
from ksearch.operators.stages import Kind
from ksearch.render import render
from ksearch.types import Config, ConfigValue, Target, Workload

TARGET = replace(backends.get("cpu").target(), units=2)
GUARD = 64
"""Elements before and after the output that nothing may write."""


def _op(function: Callable[..., Any], **roles: Role) -> Op:
    inputs = [
        Input(name, roles.get(name, Role.FULL)) for name in function.__annotations__ if name != "return"
    ]
    return Op(function.__name__, function, tuple(inputs), {}, f"{__file__}:{function.__name__}")


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def gate(x: Tensor, bias: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(x + bias) * scale + y


def rmsnorm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, dim=-1)


def shares(x: Tensor, scale: Tensor) -> Tensor:
    """A softmax with a division of elements, a minimum, and an input of one value per row."""
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True) * scale + x.amin(-1, keepdim=True)


def pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    gate = torch.sigmoid(x)
    return gate * y, gate


def sum_and_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return total * torch.rsqrt((total * total).mean(-1, keepdim=True) + 1e-6) * weight, total


def exponentials(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A softmax, its terms (which may be kept), and the input itself."""
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True), e, x


def spread(x: Tensor) -> Tensor:
    """Shows the sum of exponentials where the maximum would not hide it."""
    return x + torch.exp(x - x.amax(-1, keepdim=True)).sum(-1, keepdim=True)


def centered(x: Tensor) -> Tensor:
    """Shows the maximum in elements that are not NaN themselves."""
    return x - x.amax(-1, keepdim=True)


OPS = {
    op.name: op
    for op in (
        get("softmax"),
        get("sigmoid"),
        _op(swish),
        _op(gate, bias=Role.ROW, scale=Role.COLUMN),
        _op(rmsnorm, weight=Role.ROW),
        _op(log_softmax),
        _op(shares, scale=Role.COLUMN),
        _op(pair),
        _op(sum_and_norm, weight=Role.ROW),
        _op(exponentials),
    )
}
SPECIAL_OPS = {name: OPS[name] for name in ("softmax", "sigmoid", "log_softmax", "swish")}
SPECIAL_OPS |= {op.name: op for op in (_op(spread), _op(centered))}
SHAPES = ((1, 1), (3, 7), (5, 1000), (2, 50257))
DTYPES = ("float32", "float16", "bfloat16")


def run(
    op: Op, workload: Workload, config: Config, tensors: list[Tensor], shift: int = 0
) -> tuple[Tensor, ...]:
    """The kernel's outputs; every tensor begins `shift` elements after an aligned address, the second
    output twice as many, and so on."""
    backend = backends.get("cpu")
    family = families.find(op, "cpu")
    artifact = artifacts.build(backend, render(op, workload, config, TARGET))
    launch = family.launch(config, op.program(), workload, TARGET)
    placed = []
    for tensor in tensors:
        buffer = torch.empty(tensor.numel() + shift, dtype=tensor.dtype)
        buffer[shift:] = tensor.flatten()
        placed.append(buffer)
    firsts = [GUARD + shift * (1 + k) for k in range(len(op.program().outputs))]
    numel = workload.numel
    outs = [torch.full((first + numel + GUARD,), -777.0, dtype=tensors[0].dtype) for first in firsts]
    assert launch.alignment <= workload.itemsize
    step = workload.itemsize
    pointers = [buffer.data_ptr() + shift * buffer.itemsize for buffer in placed]
    pointers += [out.data_ptr() + first * step for out, first in zip(outs, firsts, strict=True)]
    kernel = backend.load(Path(artifact.binary), launch, 0)
    results = []
    for _ in range(2):
        for out, first in zip(outs, firsts, strict=True):
            out[first : first + numel] = float("nan")
        kernel(tuple(pointers), workload.rows, 0)
        pairs = zip(outs, firsts, strict=True)
        results.append([out[first : first + numel].clone().view(workload.shape) for out, first in pairs])
    kernel.unload()
    for out, first in zip(outs, firsts, strict=True):
        assert (out[:first] == -777).all(), "wrote before the output"
        assert (out[first + numel :] == -777).all(), "wrote past the output"
    for tensor, buffer in zip(tensors, placed, strict=True):
        assert torch.equal(buffer[shift:].nan_to_num(), tensor.flatten().nan_to_num()), "changed an input"
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), "two runs differ"
    return tuple(results[0])


def check(got: tuple[Tensor, ...], op: Op, tensors: list[Tensor]) -> None:
    """Each output is as good as PyTorch's."""
    exact = as_tuple(op.reference(*[tensor.double() for tensor in tensors]))
    own = as_tuple(op.reference(*tensors))
    for each in zip(got, exact, own, strict=True):
        check_output(*each)


def check_output(got: Tensor, exact: Tensor, own: Tensor) -> None:
    """Error against float64 at most 4 times PyTorch's own and 2 roundings, on the scale of each row."""
    rounded = exact.to(got.dtype)
    whole = rounded.isfinite() & own.isfinite()
    special = torch.where(rounded == own, rounded, own)[~whole]
    assert torch.equal(got[~whole].nan_to_num(7.5), special.nan_to_num(7.5)), "NaN or inf in other places"
    scale = torch.where(whole, exact.abs(), 0.0).amax(-1, keepdim=True)
    allowed = 2 * torch.finfo(got.dtype).eps * scale + torch.finfo(got.dtype).smallest_normal
    allowed = allowed + 4 * torch.where(whole, (own.double() - exact).abs(), 0.0).amax(-1, keepdim=True)
    error = torch.where(whole, (got.double() - exact).abs(), 0.0)
    assert (error <= allowed).all(), f"{(error / allowed).max():.1f} times the error allowed"


def inputs(op: Op, shape: tuple[int, ...], dtype: str) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    shapes = op.input_shapes(shape)
    return [(torch.randn(s, generator=draw) * 3).to(getattr(torch, dtype)) for s in shapes]


def space_of(op: Op, workload: Workload, target: Target = TARGET) -> Space:
    return families.find(op, "cpu").space(op.program(), workload, target)


def cover(space: Space) -> Iterator[dict[str, ConfigValue]]:
    """Few configs in which every value of every parameter occurs."""
    missing = {(name, value) for name, values in space.values.items() for value in values}
    configs = list(space)
    missing &= {item for config in configs for item in config.items()}
    while missing:
        best = max(configs, key=lambda config: len(missing & config.items()))
        missing -= best.items()
        yield best


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_values_of_a_config_from_the_space(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    op = OPS[name]
    workload = op.workload(shape, dtype)
    configs = list(space_of(op, workload))
    # another point for each case, so that together they walk through the space
    place = 7919 * (31 * list(OPS).index(name) + 7 * DTYPES.index(dtype) + SHAPES.index(shape))
    config = configs[place % len(configs)]
    tensors = inputs(op, shape, dtype)
    check(run(op, workload, config, tensors, shift=place % 5), op, tensors)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *[("softmax", (37, 1000)), ("softmax", (3, 50257)), ("sigmoid", (3, 50257)), ("shares", (37, 1000))],
        *[("pair", (3, 50257)), ("sum_and_norm", (37, 1000)), ("exponentials", (37, 1000))],
    ],
    ids=str,
)
def test_every_value_of_every_parameter(name: str, shape: tuple[int, ...]) -> None:
    op = OPS[name]
    workload = op.workload(shape)
    tensors = inputs(op, shape, "float32")
    for config in cover(space_of(op, workload)):
        check(run(op, workload, config, tensors, shift=1), op, tensors)


@pytest.mark.skipif("-avx" not in TARGET.arch, reason="only AVX has stores past the caches")
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("name", ["pair", "sum_and_norm"])
def test_outputs_are_streamed_whether_or_not_they_are_aligned_alike(name: str, shift: int) -> None:
    """A streamed store needs an aligned address: with a shift, no column is aligned in both outputs."""
    op = OPS[name]
    workload = op.workload((37, 1000))
    config = next(config for config in space_of(op, workload) if config["store"] == "stream")
    tensors = inputs(op, workload.shape, "float32")
    check(run(op, workload, config, tensors, shift), op, tensors)


@pytest.mark.parametrize("reduction", ["two_step", "online"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "shares"])
def test_few_long_rows_split_over_the_threads(name: str, reduction: str) -> None:
    op = OPS[name]
    workload = op.workload((2, 393217))
    choices = [c for c in space_of(op, workload) if c["split"] and c["reduction"] == reduction]
    tensors = inputs(op, workload.shape, "float32")
    check(run(op, workload, choices[0], tensors), op, tensors)


def _special_rows(cols: int) -> Tensor:
    inf, nan = float("inf"), float("nan")
    rows = torch.randn(13, cols, generator=torch.Generator().manual_seed(5))
    rows[0, cols // 2] = nan
    rows[1, 0] = inf
    rows[2, -1] = -inf
    rows[3] = -inf
    rows[4] = inf
    rows[5] = 0.0
    rows[6] *= 1e-39  # denormals
    rows[7, cols // 3] = 3e4
    rows[8] -= 500.0
    rows[9, : cols // 2] = -inf  # what is known of the maximum stays -inf for a long time
    rows[10] = -6e4
    rows[11, -1], rows[11, 0] = inf, nan
    rows[12] = torch.linspace(-110, 95, cols)
    return rows


@pytest.mark.parametrize(("cols", "dtype"), [*((11, dtype) for dtype in DTYPES), (8999, "float32")])
@pytest.mark.parametrize("name", SPECIAL_OPS)
def test_special_values(name: str, cols: int, dtype: str) -> None:
    op = SPECIAL_OPS[name]
    tensors = [_special_rows(cols).to(getattr(torch, dtype))]
    workload = op.workload(tensors[0].shape, dtype)
    family = families.find(op, "cpu")
    reductions = set()  # one config of each, where there are two
    for config in family.guesses(op.program(), workload, TARGET):
        if config.get("reduction") not in reductions:
            reductions.add(config.get("reduction"))
            check(run(op, workload, config, tensors), op, tensors)
    assert ("online" in reductions) == (Kind.SUM_EXP in op.program().online_kinds)


def test_softmax_rows_sum_to_one() -> None:
    op = OPS["softmax"]
    workload = op.workload((4, 50257))
    config = families.find(op, "cpu").guesses(op.program(), workload, TARGET)[0]
    (got,) = run(op, workload, config, inputs(op, workload.shape, "float32"))
    torch.testing.assert_close(got.double().sum(-1), torch.ones(4, dtype=torch.float64), rtol=1e-6, atol=0)


def test_long_sums_are_as_exact_as_pytorchs() -> None:
    """3 million positive terms: one accumulator per lane would lose three digits."""
    op = OPS["rmsnorm"]
    workload = op.workload((1, 3_000_001))
    tensors = [torch.rand(workload.shape) + 1, torch.ones(workload.cols)]
    narrow = min(space_of(op, workload), key=lambda c: (int(c["simd"]), int(c["unroll"])))
    check(run(op, workload, narrow, tensors), op, tensors)


@pytest.mark.parametrize("shape", [(16, 8192), (4, 100_003)], ids=str)
def test_sums_beside_a_huge_element_are_as_exact_as_pytorchs(shape: tuple[int, ...]) -> None:
    """1e8, the square of the spike, swallows each term under 4 that is added to it: rows of 8192 were 4.7
    times the error allowed where a lane took 512 terms one by one."""
    op = get("layernorm")
    workload = op.workload(shape)
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(7)) * 0.1]
    tensors += [torch.ones(workload.cols), torch.zeros(workload.cols)]
    tensors[0][:, workload.cols // 3] = 1e4
    space = space_of(op, workload)
    for unroll in (1, 8):
        config = next(c for c in space if c["simd"] == 32 and c["unroll"] == unroll)
        check(run(op, workload, config, tensors), op, tensors)


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        (n, a)
        for n in ("softmax", "sigmoid")
        for a in ("x86_64-avx512", "x86_64-avx2", "x86_64-sse2", "aarch64")
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (100, 7), (2048, 4096), (1, 2_000_000), (100_000, 64)], ids=str)
@pytest.mark.parametrize("units", [1, 2, 64])
def test_spaces_are_sound(name: str, arch: str, shape: tuple[int, ...], units: int) -> None:
    op = OPS[name]
    target = replace(TARGET, arch=arch, units=units)
    family = families.find(op, "cpu")
    workload = op.workload(shape)
    space = family.space(op.program(), workload, target)
    configs = list(space)
    assert 1 <= len(configs) <= 5000
    if workload.numel > 1 << 20 and units > 1:
        assert len(configs) >= 24
    assert len({tuple(c.items()) for c in configs}) == len(configs)
    assert {c["store"] for c in configs} <= ({"stream", "temporal"} if "avx" in arch else {"temporal"})
    assert max(int(c["threads"]) for c in configs) <= units
    widest = {"x86_64-avx512": 64, "x86_64-avx2": 32}.get(arch, 16)
    assert max(int(c["simd"]) for c in configs) == widest
    guesses = family.guesses(op.program(), workload, target)
    assert 1 <= len(guesses) <= 4
    assert all(guess in configs for guess in guesses)


def test_small_tensors_are_first_tried_on_one_thread() -> None:
    op = OPS["softmax"]
    workload = op.workload((8, 64))
    assert families.find(op, "cpu").guesses(op.program(), workload, TARGET)[0]["threads"] == 1


def test_exponentials_are_kept_only_where_the_output_needs_them_again() -> None:
    kept = {
        name
        for name in ("softmax", "shares", "exponentials", "rmsnorm", "log_softmax")
        if any(c["keep"] for c in space_of(OPS[name], OPS[name].workload((8, 1000))))
    }
    assert kept == {"softmax", "shares", "exponentials"}
    assert not any(c["keep"] for c in space_of(OPS["softmax"], OPS["softmax"].workload((8, 1_000_000))))


def test_kept_terms_are_not_computed_twice() -> None:
    op = OPS["softmax"]
    workload = op.workload((8, 1000))
    config = families.find(op, "cpu").guesses(op.program(), workload, TARGET)[0]
    text = render(op, workload, config, TARGET).text
    output = text[text.index("KS_FN void output_kept") :]
    assert config["keep"]
    assert "ks::exp(" in text[text.index("KS_FN void stage1") :].split("\n}")[0]
    assert " = kept;" in output.split("\n}")[0]
