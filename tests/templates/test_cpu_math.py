"""ks:: functions and dtype conversions of the CPU templates, against float64 and against PyTorch's own."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from ksearch.backends.cpu import FLAGS
from ksearch.render import template_folder

Run: TypeAlias = Callable[[str, int, Tensor, torch.dtype], Tensor]

WIDTHS = (1, 4, 8, 16)
MAX_ULP = {
    "exp": 2, "exp2": 2, "expm1": 2, "log": 1.5, "log1p": 2, "log2": 2.5, "tanh": 3, "erf": 2, "sigmoid": 3,
    "sqrt": 0.5, "rsqrt": 2, "sin": 1, "cos": 1, "abs": 0, "floor": 0, "ceil": 0, "round": 0, "sign": 0,
}  # fmt: skip
BUILDS = ["-march=native", *(["-march=x86-64"] if platform.machine() == "x86_64" else [])]
"""With the instructions of this machine, and portable code for what they do."""

SPECIAL = torch.tensor(
    [
        0.0, -0.0, 1, -1, 0.5, 1.5, 2.5, -0.5, -2.5, 8, 1e-45, -1e-45, 1e-40, 1.1754944e-38, 3.4e38, -3.4e38,
        88.72, 88.73, 89, -87.4, -103.97, -103.98, -104, 127.5, 128, -149, -150, -151,
        float("inf"), -float("inf"), float("nan"), 1e-8,
    ]
)  # fmt: skip


def _text() -> str:
    include = template_folder() / "include"
    text = (include / "simd.hpp").read_text() + (include / "math.hpp").read_text()
    for width in WIDTHS:
        vector = f"ks::Simd<{width}>::Float"

        def loop(
            name: str, source: str, result: str, value: str, vector: str = vector, width: int = width
        ) -> str:
            return (
                f'extern "C" void {name}_{width}(const {source}* in, {result}* out, long n) {{\n'
                f"    for (long i = 0; i < n; i += {width})\n"
                f"        ks::store(out + i, {value.replace('LOAD', f'ks::load<{vector}>(in + i)')});\n}}\n"
            )

        for name in MAX_ULP:
            text += loop(name, "float", "float", f"ks::{name}(LOAD)")
        for name in ("max", "min", "pow"):
            text += loop(name, "float", "float", f"ks::{name}(LOAD, ks::load<{vector}>(in + n + i))")
        for name in ("float16", "bfloat16"):
            text += loop(f"from_{name}", f"ks::{name}", "float", "LOAD")
            text += loop(f"to_{name}", "float", f"ks::{name}", "LOAD")
    return text


@pytest.fixture(scope="module", params=BUILDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder: Path = tmp_path_factory.mktemp("math")
    (folder / "math.cpp").write_text(_text())
    flags = [request.param if flag == "-march=native" else flag for flag in FLAGS]
    command = ["c++", *flags, "-w", str(folder / "math.cpp"), "-o", str(folder / "math.so")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "math.so"))

    def call(name: str, width: int, values: Tensor, dtype: torch.dtype) -> Tensor:
        count = values.numel() // 2 if name in ("max", "min", "pow") else values.numel()
        out = torch.empty(count, dtype=dtype)
        pointers = ctypes.c_void_p(values.data_ptr()), ctypes.c_void_p(out.data_ptr())
        getattr(library, f"{name}_{width}")(*pointers, ctypes.c_long(count))
        return out

    return call


def _inputs() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (1 << 14,), generator=draw).to(torch.int32).view(torch.float32)
    uniform = torch.rand(1 << 12, generator=draw)
    ranges = [uniform * 195 - 105, uniform * 6 - 3, uniform * 2e-3 - 1e-3, uniform + 0.5, uniform * 1e-38]
    return torch.cat([bits, *ranges, SPECIAL.repeat(16)])


def _ulp(got: Tensor, exact: Tensor) -> Tensor:
    """Distance in units of the last place of the exact value, where both are finite."""
    exponent = exact.abs().clamp_min(2.0**-126).log2().floor()
    return (got.double() - exact).abs() / torch.exp2(exponent - 23)


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", MAX_ULP)
def test_functions_are_as_exact_as_they_say(run: Run, name: str, width: int) -> None:
    values = _inputs()
    got = run(name, width, values, torch.float32)
    function: Any = getattr(torch, name)
    exact = function(values.double())
    rounded = exact.float()
    whole = rounded.isfinite() & got.isfinite()
    assert _same(got, rounded)[~whole].all(), values[~whole & ~_same(got, rounded)][:5]
    error = _ulp(got, exact)
    if name == "sigmoid":  # below 2^-126 PyTorch's own float result is 0, as 1/(1 + inf) is
        whole &= (exact > 2.0**-126) | ~_same(got, function(values))
    worst = error[whole].argmax()
    assert error[whole][worst] <= MAX_ULP[name], (values[whole][worst], got[whole][worst])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["max", "min", "pow"])
def test_functions_of_two(run: Run, name: str, width: int) -> None:
    pair = torch.stack([SPECIAL.repeat_interleave(len(SPECIAL)), SPECIAL.repeat(len(SPECIAL))])
    function: Any = {"max": torch.maximum, "min": torch.minimum, "pow": torch.pow}[name]
    got = run(name, width, pair.flatten(), torch.float32)
    torch.testing.assert_close(got, function(*pair.double()).float(), rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_value_converts_exactly(run: Run, dtype: torch.dtype, width: int) -> None:
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    got = run(f"from_{str(dtype).removeprefix('torch.')}", width, values, torch.float32)
    assert _same(got, values.float()).all()
    assert (got.signbit() == values.float().signbit()).all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversion_rounds_to_nearest_even(run: Run, dtype: torch.dtype, width: int) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    bits = every.view(torch.int32)
    half = 1 << (12 if dtype is torch.float16 else 15)
    between = torch.cat([bits + half + shift for shift in (-1, 0, 1)]).view(torch.float32)  # ties and beside
    values = torch.cat([every, between, _inputs()])
    values = values[: values.numel() // 16 * 16]
    got = run(f"to_{str(dtype).removeprefix('torch.')}", width, values, dtype)
    expected = values.to(dtype)
    wrong = ~_same(got, expected)
    assert not wrong.any(), (values[wrong][:5], got[wrong][:5], expected[wrong][:5])
