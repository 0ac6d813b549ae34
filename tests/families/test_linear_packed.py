"""Packed weights of the CUDA linear family without a GPU: spaces, kernels compiled, packing on the host."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from ksearch import backends
from ksearch.errors import UsageError
from ksearch.families.linear_tiles import SCHEMES, Tiles
from ksearch.plan import Plan
from ksearch.selftest.mutants import mutants
from tests.families.cuda_cases import TARGETS
from tests.families.host_pack import HostPack
from tests.families.linear_cases import SPLIT, Case, operands
from tests.families.split_emulation import (
    marked_features,
    marked_rows,
    scales_of_features,
    scales_of_rows,
    split,
)
from tests.families.test_linear_cuda import NAMED, problem

ARCHS = ("sm_90", "sm_80")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("name", "dims"), [*NAMED, ("linear_gelu", (200, 500, 516))], ids=str)
def test_a_space_has_what_splits_and_nothing_else(name: str, dims: tuple[int, ...], arch: str) -> None:
    made = Case(name, dims, target=TARGETS[arch], prepacked=True)
    assert set(made.schemes) == set(SPLIT)
    assert {config["strategy"] for config in made.configs} == {"direct" if arch == "sm_90" else "mma"}
    guesses = made.family.guesses(made.program, made.workload, made.target)
    assert guesses
    assert all(made.space.allows(guess) for guess in guesses)
    for config in made.sample(random.Random(name), 12):
        launch = made.family.launch(config, made.program, made.workload, made.target)
        tiles = Tiles.of(config, made.program, made.workload)
        terms, size = SCHEMES[str(config["scheme"])].terms, 4 if config["scheme"] == "tf32x3" else 2
        assert launch.pack is not None
        assert launch.pack.entry == "pack"
        assert launch.packed_bytes % 4 == 0
        assert launch.packed_bytes >= terms * size * dims[1] * dims[2]
        assert tiles.packed_rows % tiles.tile_m == 0
        assert tiles.packed_rows >= dims[2]
        assert launch.smem_bytes <= made.target.smem_bytes
        if arch == "sm_90":
            _, weight = launch.maps
            assert weight.pointer == len(made.program.inputs) + len(made.program.outputs) + 1
            assert weight.rows == terms * tiles.packed_rows


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("name", "dims", "dtype", "policy"),
    [
        ("linear_gelu", (8, 64, 64), "bfloat16", "strict"),
        ("linear_gelu", (8, 64, 64), "float32", "tf32"),
    ],
)
def test_what_is_not_split_is_refused(
    name: str, dims: tuple[int, ...], dtype: str, policy: str, arch: str
) -> None:
    with pytest.raises(UsageError, match=r"has no prepacked kernel on .*leave prepacked out"):
        Case(name, dims, dtype, policy, TARGETS[arch], prepacked=True)


@pytest.mark.parametrize("scheme", SPLIT)
@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_compile_and_fit(arch: str, scheme: str) -> None:
    """Of the largest tiles, which leave the fewest registers, one."""
    rng = random.Random(f"{arch} {scheme}")
    made = Case(*rng.choice(NAMED), target=TARGETS[arch], prepacked=True)
    mine = [config for config in made.configs if config["scheme"] == scheme]
    most = max(int(config["tile_n"]) for config in mine)
    assert problem(made, rng.choice([config for config in mine if config["tile_n"] == most])) is None


def test_faults_are_planted_in_kernels_that_compile() -> None:
    made = Case("linear_gelu", (128, 512, 256), prepacked=True)
    cuda = backends.get("cuda")
    plan = Plan(made.op, made.workload, made.target, cuda, made.family, made.program)
    config = plan.guesses[0]
    planted = [each for each in mutants(plan, config, plan.render(config)) if each.source is not None]
    names = {each.fault for each in planted}
    assert names >= {"zeros", "input overwritten", "sums in float16"}
    assert all(each.launch is not None and each.launch.pack is not None for each in planted)
    for text in {each.source.text: each.source for each in planted if each.source is not None}.values():
        cuda.compile(text)


@pytest.mark.parametrize("inner", [100, 99])
@pytest.mark.parametrize("scheme", SPLIT)
def test_packing_splits_a_weight_as_x_is_split(scheme: str, inner: int, tmp_path: Path) -> None:
    """Bit by bit the terms of the emulation, in one order for both, and zeros around them."""
    made = Case("linear_gelu", (5, inner, 70), prepacked=True)
    config = made.pick(random.Random(scheme), scheme=scheme)
    pack = HostPack(made, config, tmp_path)
    x, weight = operands(5, inner, 70, "wide", 3)
    weight[:, :20] *= 1e3
    weight[7] = 0.0
    weight[8, :64] = 0.0  # the first elements tell nothing, and the others are small
    weight[8, 64:] *= 1e-12
    x_terms, w_terms, x_scales, w_scales = pack(x, weight)
    table, tiles = SCHEMES[scheme], pack.tiles
    x_scale, w_scale = torch.ones(5), torch.ones(70)
    if table.scaled:
        x_scale, w_scale = scales_of_rows(x), scales_of_features(weight, tiles.block_k)
        marked = marked_features(weight, scheme)
        assert marked[8]
        assert not marked[7]
        assert torch.equal(w_scales[:70].isnan(), marked)
        assert torch.equal(w_scales[:70][~marked], 1 / w_scale[~marked])
        spoilt = marked_rows(x, scheme)
        assert torch.equal(x_scales.isnan(), spoilt)
    order = in_a_fragment(16, table.term)
    for terms, values, scale in ((x_terms, x, x_scale), (w_terms, weight, w_scale)):
        rows = len(values)
        wanted = split(torch.nn.functional.pad(values * scale[:, None], (0, tiles.padded - inner)), table)
        for found, right in zip(terms, wanted, strict=True):
            groups = right.view(rows, -1, 16)[:, :, order].reshape(rows, -1)
            assert torch.equal(found[:rows].view(torch.int32), groups.view(torch.int32))
            assert not found[rows:].any()


def in_a_fragment(count: int, term: str) -> list[int]:
    """Which element is at each place: a thread q of four holds 4 q to 4 q + 3, as products want operands.

    Of 16-bit terms it has places 2 q, 2 q + 1, 2 q + 8 and 2 q + 9, of TF32 q, q + 4, q + 8 and q + 12.
    """
    order = [0] * count
    for q in range(4):
        places = (q, q + 4, q + 8, q + 12) if term == "tf32" else (2 * q, 2 * q + 1, 2 * q + 8, 2 * q + 9)
        for i, place in enumerate(places):
            order[place] = 4 * q + i
    return order
