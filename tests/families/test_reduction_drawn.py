"""Reductions whose work is drawn: rows that add to a total, in integers and so in any order, and parts of a
whole tensor."""

from __future__ import annotations

import ctypes
import itertools
import math
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ksearch import backends, families, operators
from ksearch.evaluate.messages import Job
from ksearch.evaluate.worker import Worker
from ksearch.families.base import nearest
from ksearch.render import render
from ksearch.types import Config, ConfigValue, Option, Source, Target, Workload
from tests.families.cuda_cases import TARGETS
from tests.families.test_cuda_run import compiled, failures
from tests.families.test_reduction_cuda import Case, problem
from tests.families.test_reduction_kernels import first, run, target

CASES: tuple[tuple[str, Mapping[str, Any], tuple[int, ...], str], ...] = (
    ("cross_entropy", {}, (32768, 4096), "bfloat16"),
    ("cross_entropy", {"label_smoothing": 0.1}, (5000, 1003), "bfloat16"),
    ("cross_entropy", {}, (100_000, 40), "float32"),
    ("triplet_margin_loss", {"swap": True}, (5000, 257), "float16"),
    ("amax", {}, (100_000_000,), "bfloat16"),
    ("amin", {}, (5_000_003,), "float16"),
    ("argmax", {}, (50_000_003,), "bfloat16"),
    ("sum", {}, (100_000_000,), "float32"),
    ("norm", {}, (30_000_001,), "bfloat16"),
    ("var", {}, (30_000_000,), "float32"),
    ("kl_div", {}, (32768, 4096), "bfloat16"),
)


def drawn(name: str, options: Mapping[str, Any], shape: tuple[int, ...], dtype: str, device: Target) -> Case:
    """A case with a space of such configs alone."""
    case = Case(name, options, shape, dtype, device.arch if device.arch in TARGETS else "sm_90")
    case.target = device
    return case


def configs_of(case: Case) -> list[dict[str, ConfigValue]]:
    space = case.family.space(case.program, case.workload, case.target)
    return [config for config in space if config["grid"] == "drawn"]


def tightest(case: Case, rng: random.Random) -> list[dict[str, ConfigValue]]:
    """Of each region of such configs the one with the fewest registers to spare."""

    def region(config: Config) -> tuple[Any, ...]:
        return int(config["rows"]) > 1, int(config["threads"]) <= 32, config["vec"], config["unroll"]

    found = sorted(configs_of(case), key=lambda config: (region(config), case.slack(config), rng.random()))
    return [next(group) for _, group in itertools.groupby(found, region)]


@pytest.mark.parametrize("arch", TARGETS)
def test_such_configs_do_not_spill(arch: str) -> None:
    rng, todo = random.Random(arch), []
    for name, options, shape, dtype in CASES[arch == "sm_90" :: 2]:
        case = drawn(name, options, shape, dtype, TARGETS[arch])
        found = tightest(case, rng)
        assert found, case.workload
        todo += [(case, config) for config in rng.sample(found, min(2, len(found)))]
    with ThreadPoolExecutor(2) as pool:  # NVRTC lets go of the GIL
        assert [each for each in pool.map(lambda item: problem(*item), todo) if each] == []


def test_work_is_drawn_where_any_order_gives_the_same_bits() -> None:
    def grids(name: str, shape: tuple[int, ...], **options: Option) -> set[tuple[bool, str]]:
        case = Case(name, options, shape, "float32", "sm_90")
        return {(int(config["parts"]) > 1, str(config["grid"])) for config in case.space}

    rows, parts = (False, "drawn"), (True, "drawn")
    assert grids("cross_entropy", (32768, 4096)) & {rows, parts} == {rows}
    assert grids("amax", (10_000_000,)) & {rows, parts} == {parts}
    assert grids("mse_loss", (4096, 4096)) & {rows, parts} == {parts}
    for name, shape, options in (
        ("cross_entropy", (200, 4096), {}),  # each row is known from the start
        ("cross_entropy", (1, 10_000_000), {"reduction": "none"}),
        ("amax", (32768, 4096), {"dim": "-1"}),  # a plain grid does that
        ("sum", (8, 131_072), {"dim": "-1"}),
    ):
        assert not grids(name, shape, **options) & {rows, parts}, (name, shape)


def test_a_launch_has_room_for_what_it_leaves() -> None:
    for name, options, shape, dtype in CASES[2:8]:
        case = drawn(name, options, shape, dtype, TARGETS["sm_90"])
        for config in random.Random(1).sample(configs_of(case), 100):
            launch = case.family.launch(config, case.program, case.workload, case.target)
            parts, units = int(config["parts"]), case.target.units
            assert launch.persistent
            assert launch.block % 32 == 0
            assert launch.workspace_bytes % 16 == 0
            if parts == 1:
                totals = len(case.program.schedule(case.program.online_kinds).totals)
                assert 128 + 80 * totals <= 1024
                assert 8 * launch.workspace_bytes >= 256 + 8 * 1024, "on an eighth of a small device, too"
            else:
                assert launch.workspace_bytes * units >= 32 * parts
                assert (launch.grid(1), launch.most_rows) == (-(-parts // int(config["rows"])), 1)


def exact_sums(folder: Path) -> ctypes.CDLL:
    """The arithmetic of totals, out of a kernel's own text, for the host."""
    case = drawn("cross_entropy", {}, (32768, 4096), "bfloat16", TARGETS["sm_90"])
    text = render(case.op, case.workload, configs_of(case)[0], case.target).text
    text = text[text.index("// Totals as integers.") : text.index("// Adds this block's sums")]
    head = """
    #include <cmath>
    #include <cstdint>
    #include <cstring>
    #define KS_FN static inline
    #define KS_INFINITY INFINITY
    #define KS_NAN NAN
    #define __shared__ static
    using u32 = uint32_t;
    using u64 = uint64_t;
    template <class To, class From> To as(From from) { To to; memcpy(&to, &from, sizeof to); return to; }
    static u32 __float_as_uint(float value) { return as<u32>(value); }
    static double __longlong_as_double(long long value) { return as<double>(value); }
    constexpr int ROWS = 1;
    """
    tail = """
    extern "C" double sum_of(const float* terms, long long count) {
        memset(exact, 0, sizeof exact);
        for (long long n = 0; n < count; ++n) add_exactly(exact[0][0], terms[n]);
        return value_of(exact[0][0]);
    }
    """
    file = folder / "exact.so"
    file.write_bytes(backends.get("cpu").compile(Source(head + text + tail, "cpu", "native")).binary)
    library = ctypes.CDLL(str(file))
    library.sum_of.restype = ctypes.c_double
    library.sum_of.argtypes = ctypes.c_void_p, ctypes.c_longlong
    return library


def test_totals_are_exact_in_any_order(tmp_path: Path) -> None:
    library = exact_sums(tmp_path)

    def total(terms: torch.Tensor) -> float:
        return float(library.sum_of(terms.data_ptr(), terms.numel()))

    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(100_000, generator=generator) * 12
    mixed = torch.randn(50_000, generator=generator) * 2.0 ** torch.randint(-60, 60, (50_000,)).float()
    tiny = torch.randint(1, 1 << 23, (1000,), dtype=torch.int32).view(torch.float32)  # below the normal ones
    largest = torch.full((1000,), torch.finfo(torch.float32).max)
    both = torch.cat([mixed, largest, -largest, tiny])
    for terms in (losses, mixed, -losses, tiny, largest, -largest, both):
        exact = math.fsum(terms.tolist())
        found = total(terms.contiguous())
        assert found == pytest.approx(exact, rel=1e-15, abs=0)
        shuffled = terms[torch.randperm(terms.numel(), generator=generator)].contiguous()
        assert total(shuffled) == found
    one = torch.tensor([1.0])
    for special, wanted in (
        ([math.inf], math.inf),
        ([-math.inf, 3.0], -math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan], math.nan),
        ([math.inf, math.nan], math.nan),
        ([0.0, -0.0], 1.0),
    ):
        found = total(torch.cat([one, torch.tensor(special)]))
        assert found == wanted or (math.isnan(wanted) and math.isnan(found))


# ---- on a GPU ---------------------------------------------------------------------------------------------

RUN: tuple[tuple[str, Mapping[str, Any], tuple[int, ...], str], ...] = (
    ("cross_entropy", {}, (3000, 4096), "bfloat16"),
    ("cross_entropy", {"label_smoothing": 0.1}, (2000, 1003), "float16"),
    ("cross_entropy", {"reduction": "sum"}, (50_000, 40), "float32"),
    ("cross_entropy", {}, (700, 50_257), "float32"),
    ("triplet_margin_loss", {"swap": True}, (5001, 257), "bfloat16"),
    ("amax", {}, (5_000_003,), "bfloat16"),
    ("amin", {}, (9_000_000,), "float32"),
    ("argmax", {}, (7_000_001,), "bfloat16"),
    ("argmin", {}, (3, 2_000_000), "float32"),
    ("norm", {"ord": math.inf}, (6_000_005,), "float16"),
    ("sum", {}, (5_000_003,), "float32"),
    ("norm", {}, (9_000_001,), "bfloat16"),
    ("var", {}, (4_000_000,), "float32"),
    ("mse_loss", {}, (640, 8191), "bfloat16"),
    ("kl_div", {"reduction": "batchmean"}, (1280, 4096), "float32"),
)


@pytest.mark.gpu
@pytest.mark.parametrize("case", RUN, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[2]))}-{case[3]}")
def test_drawn_work_is_right(case: tuple[str, Mapping[str, Any], tuple[int, ...], str]) -> None:
    """As a search checks it, which runs it twice and compares the bits."""
    device = target("cuda")
    found = drawn(*case, device)
    configs = tightest(found, random.Random(3))
    configs = random.Random(4).sample(configs, min(8, len(configs)))
    with Worker(Job(found.op.location, found.workload, device)) as worker:
        worker.start()
        assert failures(worker, compiled(found.op, found.workload, device, configs)) == []


def drawn_guesses(workload: Workload) -> list[dict[str, ConfigValue]]:
    op, options = operators.get(workload.op), dict(workload.options)
    family, program = families.find(op, "cuda", **options), op.program(**options)
    space = family.space(program, workload, target("cuda"))
    base: dict[str, ConfigValue] = {"grid": "drawn", "unroll": 4}
    return nearest(space, {**base, "threads": 32, "rows": 4}, {**base, "threads": 128, "rows": 1})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_order_of_rows_changes_no_bit_of_a_total(dtype: str, smoothing: float) -> None:
    """And rows that do not count, and numbers that are none, count as they do in PyTorch."""
    generator = torch.Generator().manual_seed(5)
    x = (torch.randn(9001, 520, generator=generator) * 8).to(getattr(torch, dtype))
    labels = torch.randint(0, 520, (9001,), generator=generator)
    labels[::7] = -100
    workload = first("cross_entropy", (9001, 520), dtype, label_smoothing=smoothing)
    for config in drawn_guesses(workload):
        (mean,) = run(workload, config, "cuda", x, labels)
        exact = F.cross_entropy(x.double(), labels, label_smoothing=smoothing)
        torch.testing.assert_close(mean.double(), exact, rtol=1e-6 if dtype == "float32" else 4e-3, atol=0)
        for seed in range(3):
            order = torch.randperm(9001, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(run(workload, config, "cuda", x[order], labels[order])[0], mean), config
        for row, value in ((1, torch.nan), (7, torch.nan), (2, -torch.inf)):
            other = x.clone()
            other[row, labels[row].clamp(min=0)] = value
            (result,) = run(workload, config, "cuda", other, labels)
            expected = F.cross_entropy(other.float(), labels, label_smoothing=smoothing)
            assert bool(result.isnan()) == bool(expected.isnan()), (row, value, config)
            assert bool(result.isinf()) == bool(expected.isinf()), (row, value, config)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_extreme_is_found_in_any_part(dtype: str) -> None:
    """At the ends of parts, in the last one, which is not full; NaN and infinities as PyTorch has them."""
    count = 6_000_011
    values = torch.randn(count, generator=torch.Generator().manual_seed(6)).to(getattr(torch, dtype))
    places = (0, 8191, 131_072, 3_000_001, count - 1)
    for place, value in itertools.product(places, (9.0, torch.inf, torch.nan)):
        x = values.clone()
        x[place] = value
        for name in ("amax", "argmax"):
            workload = first(name, (count,), dtype)
            for config in drawn_guesses(workload):
                (found,) = run(workload, config, "cuda", x)
                wanted = torch.tensor(place) if name == "argmax" else x[place]
                torch.testing.assert_close(found, wanted.to(found.dtype), rtol=0, atol=0, equal_nan=True)
