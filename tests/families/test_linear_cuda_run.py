"""Fused linears, run: errors beside PyTorch's own, tails, ranges that splitting spoils, streams, a deadlock.

In one process but for the worker's tests: a kernel that faults fails those after it too.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ksearch import artifacts, backends
from ksearch.evaluate.buffers import Guarded
from ksearch.evaluate.messages import Job
from ksearch.evaluate.worker import Worker
from ksearch.families.linear_tiles import SCHEMES, Tiles
from ksearch.operators.program import as_tuple
from ksearch.types import Artifact, Candidate, Config, Status, Target
from tests.families.linear_cases import EXACT, SPLIT, Case, Runner, guarded, rms, sums_of_magnitudes
from tests.families.split_emulation import depth, marked_features, marked_rows

pytestmark = pytest.mark.gpu

_MOST = 24
"""Configs of a case, each of another region."""


def device() -> Target:
    return backends.get("cuda").target(0)


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.cuda.synchronize()
    torch.set_float32_matmul_precision(before)


def build(case: Case, configs: Sequence[Config]) -> list[Artifact]:
    """Eight at a time: NVRTC lets go of the GIL."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda c: artifacts.build(backends.get("cuda"), case.source(c)), configs))


def reference(case: Case, tensors: Sequence[Tensor], *, wide: bool = False) -> list[Tensor]:
    """PyTorch's answer, one value a row as a column; in float64 where `wide`."""
    shapes = case.op.input_shapes(case.workload.shape, dict(case.workload.options), case.workload.inner)
    given = [tensor.view(shape) for tensor, shape in zip(tensors, shapes, strict=True)]
    if wide:
        given = [tensor.double() for tensor in given]
    results = as_tuple(case.op.reference(*given, **dict(case.workload.options)))
    return [each.reshape(case.workload.rows, -1) for each in results]


def complaints(
    case: Case, inputs: list[Guarded], got: Sequence[Tensor], scheme: str, *, slack: float = 0.0
) -> list[str]:
    """Outputs whose error against float64 is beyond twice PyTorch's (rms) or four times (maximum).

    Where PyTorch's own is next to nothing, in short sums, the last bits of the dtype and of a split count;
    `slack`: as a share of the result.
    """
    values = [each.values for each in inputs]
    if case.workload.policy == "tf32":
        torch.set_float32_matmul_precision("high")
    own = reference(case, values)
    torch.set_float32_matmul_precision("highest")
    exact = reference(case, values, wide=True)
    names = [item.name for item in case.program.inputs]
    assert case.program.linear is not None
    left, right = (values[names.index(str(name))] for name in case.program.linear.args)
    bits = {"float32": 23, "float16": 11, "bfloat16": 8}[case.workload.dtype]
    split = {"bf16x3": 16, "tf32": 11}.get(scheme, 22)
    scale = rms(sums_of_magnitudes(left, right)) / case.workload.inner**0.5
    found = []
    for number, (mine, theirs, right_one) in enumerate(zip(got, own, exact, strict=True)):
        floor = (2.0**-bits + slack) * rms(right_one) + 2.0**-split * scale
        floor *= 1 + 4 / right_one.numel() ** 0.5  # how far off PyTorch is in a few numbers is luck
        errors, owns = mine.double() - right_one, theirs.double() - right_one
        for what, most, allowed in (
            ("rms", rms(errors), 2 * rms(owns) + floor),
            ("max", errors.abs().max().item(), 4 * owns.abs().max().item() + 8 * floor),
        ):
            if not most <= allowed:
                found.append(f"output {number}: {what} {most:.3g}, allowed {allowed:.3g}")
    return found


def cut_off(case: Case, config: Config) -> float:
    """What the tensor cores' sums lose, as a share of the result: up to half of a last place an instruction.

    In float32 a sum of 512 elements in one thread is off by less (tests/families/test_split_schemes.py), so
    only of long ones it is told whether they are as good as PyTorch's.
    """
    if config["strategy"] == "library":
        return 0.0
    scheme = SCHEMES[str(config["scheme"])]
    span = min(int(config["promote"]), case.workload.inner)
    return 0.5 * 2.0**-23 * len(scheme.products) * span / depth(scheme)


def check(
    case: Case, configs: Sequence[Config], kinds: Sequence[str], *, strictly: bool = False
) -> list[str]:
    problems = []
    for config, artifact in zip(configs, build(case, configs), strict=True):
        runner = Runner(case, config, artifact)
        for seed, kind in enumerate(kinds):
            inputs = guarded(case, kind, seed)
            slack = 0.0 if strictly else cut_off(case, config)
            wrong = complaints(case, inputs, runner(inputs), str(config["scheme"]), slack=slack)
            problems += [f"{case} {kind}: {each}: {config}" for each in wrong]
            assert not any(bool(each.damaged()) for each in inputs), config
        runner.unload()
    return problems


STRICT = (
    *((1, 4, 1), (1, 8, 300), (3, 33, 17), (8, 4096, 1000), (24, 72, 136), (130, 1028, 260)),
    *((200, 500, 516), (257, 96, 1), (65, 1, 33), (77, 4095, 201), (1000, 70, 1)),
)
HALF = (
    (1, 8, 1),
    (8, 4096, 1000),
    (24, 72, 136),
    (130, 1032, 260),
    (200, 504, 516),
    (37, 4096, 264),
    (3, 33, 17),
    (130, 1026, 261),
)
PROBLEMS = (
    *(("linear", dims, "float32", "strict") for dims in STRICT),
    *(
        ("linear", dims, "float32", "tf32")
        for dims in ((1, 4, 1), (24, 72, 136), (130, 1028, 260), (130, 1027, 261))
    ),
    *(("linear", dims, dtype, "strict") for dtype in ("float16", "bfloat16") for dims in HALF),
    *(
        (name, dims, dtype, "strict")
        for name in ("linear_sigmoid_scale_residual", "linear_sigmoid_sum", "linear_gated", "linear_extremes")
        for dims, dtype in (
            *(((200, 500, 516), "float32"), ((1, 64, 130), "float32"), ((37, 4096, 264), "bfloat16")),
            *(((200, 501, 516), "float32"), ((37, 1002, 264), "bfloat16")),
            ((130, 1032, 261), "float16"),
        )
    ),
)


@pytest.mark.parametrize(("name", "dims", "dtype", "policy"), PROBLEMS, ids=str)
def test_errors_are_of_the_size_of_pytorchs(
    name: str, dims: tuple[int, ...], dtype: str, policy: str
) -> None:
    case, rng = Case(name, dims, dtype, policy, device()), random.Random(f"{name} {dims} {dtype}")
    configs = case.sample(rng, _MOST)
    for scheme in case.schemes:  # each is there, whatever the draw
        if scheme not in [config["scheme"] for config in configs if config["strategy"] == "direct"]:
            configs.append(case.pick(rng, strategy="direct", scheme=scheme))
    exact = [{**config, "math": "exact"} for config in configs]
    assert check(case, exact, ["uniform", "normal"]) == []


@pytest.mark.parametrize("dims", [(300, 264, 390), (20, 264, 390)], ids=str)
@pytest.mark.parametrize(
    ("scheme", "dtype", "policy"),
    [
        *((scheme, "float32", "strict") for scheme in SPLIT),
        *[("tf32", "float32", "tf32"), ("float16", "float16", "strict"), ("bfloat16", "bfloat16", "strict")],
    ],
)
def test_every_tile_is_right(scheme: str, dtype: str, policy: str, dims: tuple[int, ...]) -> None:
    """All heights, with and without clusters, both schedules, both depths of the pipeline."""
    case, rng = Case("linear", dims, dtype, policy, device()), random.Random(scheme)
    mine = [c for c in case.configs if c["scheme"] == scheme and c["strategy"] == "direct"]
    configs: list[Config] = []
    for axis in (
        "tile_n",
        "schedule",
        "consumers",
        "blocks_m",
        "stages",
        "cluster",
        "promote",
        "pending",
        "order",
        "keep_in_l2",
    ):
        values = dict.fromkeys(config[axis] for config in mine)
        configs += [rng.choice([config for config in mine if config[axis] == value]) for value in values]
    heights = {8, 16, 24} if dims[0] == 20 else {32, 64, 96, 128}
    assert {config["tile_n"] for config in configs} >= heights
    assert check(case, configs, ["uniform"]) == []


@pytest.mark.parametrize("kind", ["uniform", "normal", "saturating", "wide"])
@pytest.mark.parametrize("scheme", EXACT)
def test_long_sums_of_any_size_are_as_exact_as_pytorchs(scheme: str, kind: str) -> None:
    case, rng = Case("linear", (130, 8192, 384), target=device()), random.Random(1)
    after = (128, 256) if scheme == "fp16x3" else (128,)  # the others' more sums are cut off more often
    configs = [case.pick(rng, strategy="direct", scheme=scheme, promote=promote) for promote in after]
    assert check(case, configs, [kind], strictly=True) == []


def test_products_of_bfloat16_pairs_are_told_from_exact_ones() -> None:
    """What the bounds above are worth."""
    case = Case("linear", (130, 512, 384), target=device())
    config = case.pick(random.Random(1), strategy="direct", scheme="bf16x3")
    runner, inputs = Runner(case, config), guarded(case, "uniform", 0)
    assert complaints(case, inputs, runner(inputs), "fp16x3")
    assert not complaints(case, inputs, runner(inputs), "bf16x3")
    runner.unload()


@pytest.mark.parametrize("name", ["linear", "linear_sigmoid_sum"])
def test_nothing_is_written_beside_the_scratch(name: str) -> None:
    """21 tiles of rows by 3 of features: those that a cluster of 2 has beyond them have no place in it."""
    case, rng = Case(name, (672, 64, 300), target=device()), random.Random(2)
    for scheme in SPLIT:
        config = case.pick(rng, strategy="direct", scheme=scheme, tile_n=32, consumers=2, cluster=2)
        runner, inputs = Runner(case, config), guarded(case, "uniform", 0)
        (once,), _ = runner.with_scratch(inputs)
        (usual,) = runner(inputs)
        assert torch.equal(once, usual), config
        runner.unload()


# ---- what splitting cannot do ------------------------------------------------------------------------

ROWS, INNER, COLS = 200, 512, 516
ODD_ROWS = {3: "inf", 70: "nan", 131: "both", 140: "largest", 150: "spike", 199: "zeros"}


def odd_rows(x: Tensor) -> None:
    for row, what in ODD_ROWS.items():
        if what == "zeros":
            x[row] = 0.0
        elif what == "both":
            x[row, 9], x[row, 400] = torch.inf, -torch.inf
        else:
            x[row, 7] = {"inf": torch.inf, "nan": torch.nan, "largest": 3e38, "spike": 1e30}[what]


ODD_FEATURES = (5, 140, 270, 300, 401, 470, 515)


def odd_features(weight: Tensor) -> None:
    """A spike past the first elements, inf, NaN, one large first element, and nothing in the first block."""
    weight[5, 100] = 1e30
    weight[140, 511] = -torch.inf
    weight[270, 0] = torch.nan
    weight[300, 1:] *= 1e-30
    weight[300, 0] = 1.0
    weight[401] *= 1e-30
    weight[401, :64] = 0.0
    weight[470, :64] = 0.0
    weight[515] = 0.0


def picks(scheme: str) -> tuple[Case, list[Config]]:
    case, rng = Case("linear", (ROWS, INNER, COLS), target=device()), random.Random(scheme)
    wishes = [{"cluster": 1, "consumers": 2}, {"cluster": 2, "tile_n": 64}, {"consumers": 1, "tile_n": 128}]
    return case, [case.pick(rng, strategy="direct", scheme=scheme, **wish) for wish in wishes]


def close(got: Tensor, inputs: list[Guarded]) -> Tensor:
    """For each element: PyTorch's where that is not finite, else within 2^-15 of its products' size."""
    x, weight, bias = (each.values for each in inputs)
    own = torch.nn.functional.linear(x, weight, bias.view(-1))
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double().view(-1))
    size = sums_of_magnitudes(x, weight) + bias.double().abs()
    near = (got.double() - exact).abs() <= 2.0**-15 * size
    same = (got == own) | (got.isnan() & own.isnan())
    return torch.where(own.isfinite(), near, same)


@pytest.mark.parametrize("scheme", SPLIT)
def test_odd_rows_of_x_are_right_and_cost_the_others_nothing(scheme: str) -> None:
    case, configs = picks(scheme)
    for config, artifact in zip(configs, build(case, configs), strict=True):
        runner, inputs = Runner(case, config, artifact), guarded(case, "uniform", 4)
        (clean,) = runner(inputs)
        odd_rows(inputs[0].values)
        (got,) = runner(inputs)
        assert close(got, inputs).all(), config
        same = torch.ones(ROWS, dtype=torch.bool, device="cuda")
        same[list(ODD_ROWS)] = False
        assert torch.equal(got[same], clean[same]), config
        (again,), scratch = runner.with_scratch(inputs)
        rows, tiles = runner.marks(scratch)
        assert torch.equal(rows.cpu(), marked_rows(inputs[0].values.cpu(), scheme)), config
        assert not tiles.any(), "no tile was computed again as a whole"
        assert again.isnan().equal(got.isnan())
        runner.unload()


@pytest.mark.parametrize("scheme", SPLIT)
def test_odd_features_are_right_and_cost_other_tiles_nothing(scheme: str) -> None:
    case, configs = picks(scheme)
    for config, artifact in zip(configs, build(case, configs), strict=True):
        runner, inputs = Runner(case, config, artifact), guarded(case, "uniform", 5)
        (clean,) = runner(inputs)
        weight = inputs[1].values
        odd_features(weight)
        (got,) = runner(inputs)
        bad = (~close(got, inputs)).nonzero()
        assert not len(bad), f"{len(bad)} elements, the first {bad[0].tolist()}: {config}"
        _, scratch = runner.with_scratch(inputs)
        rows, tiles = runner.marks(scratch)
        tile_m = Tiles.of(config, case.program, case.workload).tile_m
        marked = marked_features(weight.cpu(), scheme)
        wanted = torch.stack([part.any() for part in marked.split(tile_m)])
        assert not rows.any()
        assert torch.equal(tiles.cpu(), wanted[:, None].expand(tiles.shape)), config
        assert not wanted.all(), "the rest comes from the fast path"
        same = ~wanted.repeat_interleave(tile_m)[:COLS]
        same[list(ODD_FEATURES)] = False
        assert torch.equal(got[:, same.cuda()], clean[:, same.cuda()]), config
        runner.unload()


@pytest.mark.parametrize("scheme", SPLIT)
def test_huge_times_tiny_is_what_the_scaled_product_is(scheme: str) -> None:
    """Powers of two change no bit of a product, and nothing is left to the slow path."""
    case, configs = picks(scheme)
    for config, artifact in zip(configs, build(case, configs), strict=True):
        runner, inputs = Runner(case, config, artifact), guarded(case, "uniform", 6)
        (clean,) = runner(inputs)
        for power in (40, -40, 90, -90):
            inputs[0].values.mul_(2.0**power)
            inputs[1].values.mul_(2.0**-power)
            (got,), scratch = runner.with_scratch(inputs)
            assert torch.equal(got, clean), (power, config)
            assert not any(each.any() for each in runner.marks(scratch)), (power, config)
            inputs[0].values.mul_(2.0**-power)
            inputs[1].values.mul_(2.0**power)
        runner.unload()


@pytest.mark.parametrize("scheme", SPLIT)
def test_a_product_past_the_largest_float_is_infinite_as_pytorchs(scheme: str) -> None:
    case, configs = picks(scheme)
    for config, artifact in zip(configs, build(case, configs), strict=True):
        runner, inputs = Runner(case, config, artifact), guarded(case, "uniform", 7)
        inputs[0].values[5] = 1e20
        inputs[1].values[17] = 1e30
        (got,) = runner(inputs)
        assert got[5, 17] == torch.inf
        assert close(got, inputs).all(), config
        runner.unload()


def test_rows_of_one_value_survive_odd_operands() -> None:
    case, rng = Case("linear_sigmoid_sum", (ROWS, INNER, COLS), target=device()), random.Random(8)
    for scheme in EXACT:
        runner = Runner(case, case.pick(rng, strategy="direct", scheme=scheme))
        inputs = guarded(case, "uniform", 8)
        odd_rows(inputs[0].values)
        weight = inputs[1].values
        weight[5, 100], weight[300, 1:] = 1e30, 0.0
        (got,) = runner(inputs)
        wanted = reference(case, [each.values for each in inputs])[0]
        wide = reference(case, [each.values for each in inputs], wide=True)[0]
        assert torch.equal(got.isnan(), wanted.isnan())
        fine = ~wanted.isnan()
        torch.testing.assert_close(got[fine].double(), wide[fine], rtol=1e-5, atol=1e-4)
        runner.unload()


# ---- streams, graphs, threads ------------------------------------------------------------------------

WAYS = {
    "split": ("linear_sigmoid_sum", {"strategy": "direct", "scheme": "fp16x3", "cluster": 2}),
    "plain": ("linear_sigmoid_sum", {"strategy": "direct", "scheme": "simt"}),
    "library": ("linear_sigmoid_sum", {"strategy": "library"}),
}


@pytest.fixture(params=WAYS)
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    name, wish = WAYS[request.param]
    case = Case(name, (512, 1024, 1032), target=device())
    made = Runner(case, case.pick(random.Random(9), **wish))
    yield made
    made.unload()


def sets(runner: Runner, count: int) -> list[tuple[list[Guarded], list[Guarded], list[Tensor]]]:
    """Inputs, outputs to fill, and what must be there."""
    made = []
    for seed in range(count):
        inputs = guarded(runner.case, "normal", seed)
        made.append((inputs, runner.outputs(), [each.clone() for each in runner(inputs)]))
    torch.cuda.synchronize()
    return made


def are_right(sets: Sequence[tuple[list[Guarded], list[Guarded], list[Tensor]]]) -> bool:
    torch.cuda.synchronize()
    return all(
        torch.equal(output.values, right)
        for _, outputs, rights in sets
        for output, right in zip(outputs, rights, strict=True)
    )


def test_streams_do_not_disturb_one_another(runner: Runner) -> None:
    streams, made = [torch.cuda.Stream() for _ in range(3)], sets(runner, 3)
    for _ in range(20):
        for stream, (inputs, outputs, _) in zip(streams, made, strict=True):
            with torch.cuda.stream(stream):
                outputs[0].poison(0)
                runner.start(inputs, outputs)
    assert are_right(made)


def test_a_graph_runs_again_on_what_the_inputs_hold_then(runner: Runner) -> None:
    (inputs, outputs, right), (others, _, wanted) = sets(runner, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            runner.start(inputs, outputs)
    graph.replay()
    assert are_right([(inputs, outputs, right)])
    for mine, other in zip(inputs, others, strict=True):
        mine.values.copy_(other.values)
    outputs[0].poison(0)
    junk = [
        torch.full((1 << 22,), torch.nan, device="cuda") for _ in range(8)
    ]  # what the allocator gives others
    graph.replay()
    assert are_right([(inputs, outputs, wanted)])
    del junk


def test_threads_may_start_one_kernel_at_the_same_time(runner: Runner) -> None:
    made, errors = sets(runner, 2), []

    def work(inputs: list[Guarded], outputs: list[Guarded]) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(200):  # of which each may have scratch at another address
                    runner.start(inputs, outputs)
        except Exception as error:  # noqa: BLE001  (told to the thread that asserts)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(inputs, outputs)) for inputs, outputs, _ in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert are_right(made)


# ---- in the worker -----------------------------------------------------------------------------------


def candidates(case: Case, configs: Sequence[Config]) -> list[Candidate]:
    return [
        Candidate(dict(c), case.family.launch(c, case.program, case.workload, case.target), artifact)
        for c, artifact in zip(configs, build(case, configs), strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "dims", "dtype", "policy"),
    [
        ("linear_sigmoid_scale_residual", (256, 2048, 1536), "float32", "strict"),
        ("linear_sigmoid_scale_residual", (256, 2048, 1536), "float32", "tf32"),
        ("linear_sigmoid_scale_residual", (256, 2048, 1536), "bfloat16", "strict"),
        ("linear_sigmoid_sum", (128, 4096, 4096), "float32", "strict"),
        ("linear_sigmoid_sum", (128, 4096, 4096), "float16", "strict"),
        ("linear_extremes", (77, 1028, 1003), "float32", "strict"),
        ("linear_gelu", (3, 33, 17), "float32", "strict"),
        ("linear_gelu", (1, 1, 1), "float32", "strict"),
        ("linear_logsumexp", (40, 520, 700), "float32", "strict"),
    ],
)
def test_the_check_passes_what_is_exact(name: str, dims: tuple[int, ...], dtype: str, policy: str) -> None:
    """Special values, guards and equal bits from two runs, as a search has it.

    Pairs of bfloat16 are not exact; of short sums TF32's are not quite, which are cut off every 8 products.
    """
    case = Case(name, dims, dtype, policy, device())
    configs = case.sample(random.Random(f"{name} {dtype}"), 20)
    with Worker(Job(case.op.location, case.workload, case.target)) as worker:
        ready = worker.start()
        assert ready.baseline_us > 0 < ready.ceiling_us
        outcomes = [(c.config, worker.screen(c)) for c in candidates(case, configs)]
        assert worker.respawns == 0
    wrong = [(c, o.status.value, o.message) for c, o in outcomes if o.status is not Status.PASSED]
    refused = ("bf16x3", "tf32x3")
    assert [
        each for each in wrong if each[0]["scheme"] not in refused or each[0]["strategy"] == "library"
    ] == []
    assert {status for _, status, _ in wrong} <= {"wrong"}


def test_a_kernel_that_waits_for_ever_costs_one_candidate() -> None:
    """A barrier that is told to expect more bytes than are ever copied."""
    case = Case("linear_sigmoid_sum", (128, 1024, 1032), target=device())
    config = case.pick(random.Random(3), strategy="direct", scheme="fp16x3", cluster=2)
    expect = "ks::barrier_expect(barrier, {});"
    costs_one_candidate(case, config, expect.format("STAGE_BYTES"), expect.format("STAGE_BYTES + 16"))


def costs_one_candidate(case: Case, config: Config, sound: str, broken: str) -> None:
    """That a kernel which is stuck with `broken` in place of `sound` is killed, and the next one measured."""
    source = case.source(config)
    assert source.text.count(sound) == 1
    stuck = replace(source, text=source.text.replace(sound, broken))
    (right,) = candidates(case, [config])
    hanging = replace(right, artifact=artifacts.build(backends.get("cuda"), stuck))
    with Worker(Job(case.op.location, case.workload, case.target), timeout_s=4.0) as worker:
        worker.start()
        outcome = worker.screen(hanging)
        assert outcome.status is Status.TIMEOUT, outcome
        assert worker.screen(right).status is Status.PASSED
        assert worker.respawns == 1
