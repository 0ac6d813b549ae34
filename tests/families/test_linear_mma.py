"""The fused linear of mma.sync: its space and kernels without a GPU; its values on any GPU, sm_90 too."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from ksearch import backends
from ksearch.errors import CompileError
from ksearch.families.linear_tiles import SCHEMES
from ksearch.types import Config, Target
from tests.families.cuda_cases import TARGETS
from tests.families.linear_cases import EXACT, SPLIT, Case, Runner, guarded
from tests.families.split_emulation import marked_features
from tests.families.test_linear_cuda_run import (
    COLS,
    INNER,
    ODD_FEATURES,
    ODD_ROWS,
    ROWS,
    build,
    check,
    close,
    device,
    odd_features,
    odd_rows,
)  # fmt: skip

MACHINES = {
    "sm_80": TARGETS["sm_80"],
    "sm_89": Target("cuda", "sm_89", "L40", units=142, memory_bytes=48 << 30, smem_bytes=101376),
    "sm_100": Target("cuda", "sm_100", "B200", units=148, memory_bytes=180 << 30, smem_bytes=232448),
    "sm_120": Target("cuda", "sm_120", "RTX 5090", units=170, memory_bytes=32 << 30, smem_bytes=101376),
}
WORKLOADS = (
    ("linear_sigmoid_scale_residual", (1024, 8192, 8192), "float32", "strict"),
    ("linear_sigmoid_sum", (128, 32768, 32768), "float32", "strict"),
    ("linear_sigmoid_sum", (200, 500, 516), "float32", "tf32"),
    ("linear_sigmoid_scale_residual", (8, 4096, 11008), "bfloat16", "strict"),
    ("linear", (1, 8, 1), "float16", "strict"),
)


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_tensor_cores(case: Case) -> list[Config]:
    return [config for config in case.configs if config["strategy"] == "mma"]


# ---- without a GPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize(("name", "dims", "dtype", "policy"), WORKLOADS, ids=str)
def test_the_space(name: str, dims: tuple[int, ...], dtype: str, policy: str, target: Target) -> None:
    case = Case(name, dims, dtype, policy, target)
    found = on_tensor_cores(case)
    wanted = {"strict": set(SPLIT), "tf32": {"tf32"}}[policy] if dtype == "float32" else {dtype}
    assert {str(config["scheme"]) for config in found} == wanted
    assert {c["strategy"] for c in case.configs} - {"mma", "direct"} == {"library"}
    guesses = case.family.guesses(case.program, case.workload, target)
    assert guesses[0]["strategy"] == "mma"
    assert all(case.space.allows(guess) for guess in guesses)
    for config in (*guesses, *random.Random(dims[0]).sample(found, 50)):
        launch = case.family.launch(config, case.program, case.workload, target)
        assert launch.smem_bytes <= target.smem_bytes
        assert launch.maps == ()
    for config in found:
        splits = SCHEMES[str(config["scheme"])].terms > 0
        assert (config["promote"] != 0) == splits, "tensor cores' sums are cut off, not rounded"


def test_where_it_is_not_offered() -> None:
    """sm_90 has something better."""
    assert not on_tensor_cores(Case("linear", (64, 64, 64), target=TARGETS["sm_90"]))
    for inner, dtype in ((33, "float32"), (516, "float16"), (1, "float32")):
        case = Case("linear", (64, inner, 64), dtype, target=TARGETS["sm_80"])
        strategies = {config["strategy"] for config in case.configs}
        assert strategies == {"mma", "library", *(("direct",) if dtype == "float32" else ())}


def problem(case: Case, config: Config) -> str | None:
    try:
        compiled = backends.get("cuda").compile(case.source(config))
    except CompileError as error:
        return f"{case}: {error}: {config}"
    splits = SCHEMES[str(config["scheme"])].terms > 0
    spills = re.search(r"function 'ksearch_kernel'(?:.*\n)*?.* (\d+) bytes spill stores", compiled.log)
    assert spills, compiled.log
    smem_bytes = case.family.launch(config, case.program, case.workload, case.target).smem_bytes
    # Up to 32 words of what an epilogue needs wait there while the sums are formed.
    is_fine = int(spills[1]) <= (128 if splits else 0) and smem_bytes <= case.target.smem_bytes
    return None if is_fine else f"{case}: {spills[1]} bytes spilled: {config}"


@pytest.mark.parametrize("place", range(len(MACHINES)))
def test_a_sample_compiles_and_keeps_its_registers(place: int) -> None:
    """Every scheme, and as many sums in a thread as there are anywhere."""
    target, rng = list(MACHINES.values())[place], random.Random(place)
    todo: list[tuple[Case, Config]] = []
    for number, workload in enumerate(WORKLOADS):
        case = Case(*workload, target)
        for scheme in case.schemes:
            mine = [config for config in on_tensor_cores(case) if config["scheme"] == scheme]
            if not mine or (scheme in ("bf16x3", "tf32x3") and (number + place) % 2):
                continue
            sums = max(_sums(config) for config in mine)
            todo.append((case, rng.choice([config for config in mine if _sums(config) == sums])))
            todo.append((case, rng.choice(mine)))
    with ThreadPoolExecutor(2) as pool:  # NVRTC lets go of the GIL
        assert [found for found in pool.map(lambda item: problem(*item), todo) if found] == []


def _sums(config: Config) -> int:
    warps = int(config["warps_m"]) * int(config["warps_n"])
    return int(config["tile_m"]) * int(config["tile_n"]) // warps // 32


# ---- on a GPU -----------------------------------------------------------------------------------------


def here(name: str, dims: tuple[int, ...], dtype: str = "float32", policy: str = "strict") -> Case:
    """The configs of an sm_80 of this GPU's size, rendered for the GPU that is here."""
    case = Case(name, dims, dtype, policy, device())
    older = replace(case.target, arch="sm_80")
    case.space = case.family.space(case.program, case.workload, older)
    case.configs = [dict(c) for c in case.space if c["strategy"] == "mma" and c["math"] != "fast"]
    return case


def picks(case: Case, scheme: str, *wishes: Config) -> list[Config]:
    rng = random.Random(f"{case} {scheme}")
    return [case.pick(rng, scheme=scheme, **wish) for wish in wishes]


STRICT = ((1, 4, 1), (1, 8, 300), (8, 4096, 1000), (24, 72, 136), (130, 1028, 260), (200, 500, 516))
HALF = ((1, 8, 1), (8, 4096, 1000), (24, 72, 136), (200, 504, 516), (37, 4096, 264))
PROBLEMS = (
    *(("linear", dims, "float32", "strict") for dims in STRICT),
    *(("linear", dims, "float32", "tf32") for dims in ((1, 4, 1), (24, 72, 136), (130, 1028, 260))),
    *(("linear", dims, dtype, "strict") for dtype in ("float16", "bfloat16") for dims in HALF),
    *(
        (name, dims, dtype, policy)
        for name in ("linear_sigmoid_scale_residual", "linear_sigmoid_sum", "linear_logsumexp")
        for dims, dtype, policy in (
            *(((200, 500, 516), "float32", "strict"), ((1, 64, 130), "float32", "strict")),
            *(((130, 1028, 261), "float32", "tf32"), ((37, 4096, 264), "bfloat16", "strict")),
        )
    ),
)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "dims", "dtype", "policy"), PROBLEMS, ids=str)
def test_errors_are_of_the_size_of_pytorchs(
    name: str, dims: tuple[int, ...], dtype: str, policy: str
) -> None:
    case = here(name, dims, dtype, policy)
    configs = [config for scheme in case.schemes for config in picks(case, scheme, {}, {}, {})]
    assert configs
    assert check(case, configs, ["uniform", "normal"]) == []


@pytest.mark.gpu
@pytest.mark.parametrize("dims", [(300, 264, 390), (20, 264, 390)], ids=str)
@pytest.mark.parametrize(
    ("scheme", "dtype", "policy"),
    [
        *((scheme, "float32", "strict") for scheme in SPLIT),
        *[("tf32", "float32", "tf32"), ("float16", "float16", "strict"), ("bfloat16", "bfloat16", "strict")],
    ],
)
def test_every_tile_is_right(scheme: str, dtype: str, policy: str, dims: tuple[int, ...]) -> None:
    """Each value of each parameter; more tiles than fit on the GPU at once are in the next test."""
    case = here("linear", dims, dtype, policy)
    mine = [config for config in case.configs if config["scheme"] == scheme]
    wishes = [
        {axis: value}
        for axis in ("tile_m", "tile_n", "warps_m", "warps_n", "steps", "stages", "order")
        for value in dict.fromkeys(config[axis] for config in mine)
    ]
    assert len(wishes) >= 14
    assert check(case, picks(case, scheme, *wishes), ["uniform"]) == []


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", EXACT)
def test_long_sums_and_many_tiles_are_as_exact_as_pytorchs(scheme: str) -> None:
    """1024 tiles: a block goes from one to the next without waiting for its copies to end."""
    case = here("linear", (1024, 4096, 4096))
    wishes = [{"tile_m": 64, "tile_n": 64, "order": order} for order in ("batch", "feature")]
    assert check(case, picks(case, scheme, *wishes), ["uniform", "saturating"], strictly=True) == []


def three(scheme: str) -> tuple[Case, list[Config]]:
    """Two steps a buffer: the first 64 elements of a row tell its scale, as those of sm_90 do."""
    case = here("linear", (ROWS, INNER, COLS))
    wishes = ({"steps": 2}, {"steps": 2, "tile_m": 128, "warps_n": 2}, {"steps": 2, "tile_n": 64})
    return case, picks(case, scheme, *wishes)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", SPLIT)
def test_odd_rows_of_x_are_right_and_cost_the_others_nothing(scheme: str) -> None:
    case, configs = three(scheme)
    for config, artifact in zip(configs, build(case, configs), strict=True):
        runner, inputs = Runner(case, config, artifact), guarded(case, "uniform", 4)
        (clean,) = runner(inputs)
        odd_rows(inputs[0].values)
        (got,) = runner(inputs)
        assert close(got, inputs).all(), config
        same = torch.ones(ROWS, dtype=torch.bool, device="cuda")
        same[list(ODD_ROWS)] = False
        assert torch.equal(got[same], clean[same]), config
        _, scratch = runner.with_scratch(inputs)
        rows, tiles = runner.marks(scratch)
        x = inputs[0].values
        must = (~x.isfinite() | (x.abs() >= 2.0**127)).any(1)
        assert rows[must].all(), config
        assert not rows[same].any(), config
        assert not tiles.any(), "no tile was computed again as a whole"
        runner.unload()


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", SPLIT)
def test_odd_features_are_right_and_cost_other_tiles_nothing(scheme: str) -> None:
    case, configs = three(scheme)
    for config, artifact in zip(configs, build(case, configs), strict=True):
        runner, inputs = Runner(case, config, artifact), guarded(case, "uniform", 5)
        (clean,) = runner(inputs)
        weight = inputs[1].values
        odd_features(weight)
        (got,) = runner(inputs)
        assert close(got, inputs).all(), config
        _, scratch = runner.with_scratch(inputs)
        rows, tiles = runner.marks(scratch)
        tile_m = int(config["tile_m"])
        marked = marked_features(weight.cpu(), scheme)
        wanted = torch.stack([part.any() for part in marked.split(tile_m)])
        assert not rows.any()
        assert torch.equal(tiles.cpu(), wanted[:, None].expand(tiles.shape)), config
        same = ~wanted.repeat_interleave(tile_m)[:COLS]
        same[list(ODD_FEATURES)] = False
        assert torch.equal(got[:, same.cuda()], clean[:, same.cuda()]), config
        runner.unload()


@pytest.mark.gpu
def test_infinities_and_nan_of_narrow_operands_are_pytorchs() -> None:
    """CUDA's own NaN has all bits set: rounding it up as a number is would lose it."""
    for dtype, policy in (("float32", "tf32"), ("float16", "strict"), ("bfloat16", "strict")):
        case = here("linear", (ROWS, INNER, COLS), dtype, policy)
        runner = Runner(case, case.pick(random.Random(dtype)))
        inputs = guarded(case, "uniform", 6)
        x, weight = inputs[0].values, inputs[1].values
        x[3, 7], x[70, 100], x[131, 500] = torch.inf, torch.nan, -torch.inf
        weight[5, 3], weight[300, 40] = torch.nan, torch.inf
        if dtype == "float32":
            x.view(torch.int32)[9, 9], weight.view(torch.int32)[10, 10] = 0x7FFFFFFF, -1
        (got,) = runner(inputs)
        own = torch.nn.functional.linear(x, weight, inputs[2].values.view(-1))
        assert torch.equal(got.isnan(), own.isnan()), dtype
        assert torch.equal(got.isposinf(), own.isposinf()), dtype
        assert torch.equal(got.isneginf(), own.isneginf()), dtype
        runner.unload()
