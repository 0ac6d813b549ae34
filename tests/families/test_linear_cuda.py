"""The CUDA linear family without a GPU: its spaces, and a kernel of every region compiled.

A fused kernel lives by what ptxas makes of it: a product that is waited for at once ("serialized"), or sums
in local memory, cost more than any tile gains.
"""

from __future__ import annotations

import functools
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ksearch import backends
from ksearch.errors import CompileError, UsageError
from ksearch.families.linear_tiles import SCHEMES
from ksearch.types import Config
from tests.families.cuda_cases import TARGETS
from tests.families.linear_cases import Case

_SPILLS = 160
"""Bytes that a kernel which splits may spill: they are in the cold branches, and cost 3 % of the time."""
_WARNING = re.compile(r".*\bC75\d\d\b.*|.*wgmma.*(?:serializ|inject).*")
NAMED = (
    ("linear_sigmoid_scale_residual", (1024, 8192, 8192)),
    ("linear_sigmoid_sum", (128, 32768, 32768)),
)
KINDS = (
    ("float32", "strict"),
    ("float32", "tf32"),
    ("float16", "strict"),
    ("bfloat16", "strict"),
)
ODD = (
    *((200, 500, 516), (3, 33, 17), (8, 4096, 11008), (1, 1, 1), (1, 8192, 1)),
    *((130, 1026, 260), (77, 4095, 1001)),
)


@functools.cache
def case(name: str, dims: tuple[int, ...], dtype: str, policy: str, arch: str) -> Case:
    return Case(name, dims, dtype, policy, TARGETS[arch])


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize(("dtype", "policy"), KINDS)
@pytest.mark.parametrize(("name", "dims"), [*NAMED, *(("linear_gelu", dims) for dims in ODD)], ids=str)
def test_guesses_are_points_of_a_space_that_is_walked_quickly(
    name: str, dims: tuple[int, ...], dtype: str, policy: str, arch: str
) -> None:
    began = time.process_time()
    made = case(name, dims, dtype, policy, arch)
    assert time.process_time() - began < 5
    guesses = made.family.guesses(made.program, made.workload, made.target)
    assert guesses
    assert all(made.space.allows(guess) for guess in guesses)
    assert len({str(guess) for guess in guesses}) == len(guesses)
    assert guesses[-1]["strategy"] == "library", "PyTorch's product and one kernel is always tried"
    assert len({str(config) for config in made.configs}) == len(made.configs)
    if dtype == "float32":
        assert policy == "tf32" or "simt" in made.schemes, "whatever the shape"
    if arch == "sm_90":
        expected = {
            "strict": {"fp16x3", "bf16x6", "tf32x3"} if dtype == "float32" else {dtype},
            "tf32": {"tf32"},
        }
        assert expected[policy] <= set(made.schemes), "whatever rows begin at"


@pytest.mark.parametrize(("dtype", "policy"), KINDS)
@pytest.mark.parametrize(("name", "dims"), [*NAMED, *(("linear_gelu", dims) for dims in ODD)], ids=str)
def test_every_tile_has_a_block_and_its_place_in_the_scratch(
    name: str, dims: tuple[int, ...], dtype: str, policy: str
) -> None:
    made = case(name, dims, dtype, policy, "sm_90")
    for config in made.sample(random.Random(f"{name} {dims} {dtype}")):
        if config["strategy"] == "library":
            continue
        launch = made.family.launch(config, made.program, made.workload, made.target)
        facts = made.family.variables(config, made.program, made.workload, made.target)
        features, rows = -(-dims[2] // facts["tile_m"]), -(-dims[0] // facts["tile_n"])
        assert launch.grid(dims[0]) >= features * rows
        assert launch.scratch_bytes % 256 == 0
        width = len(facts["stage"].reductions) if facts["stage"] else 0
        assert facts["offset_partials"] + 4 * width * dims[0] * features <= launch.scratch_bytes
        if facts["terms"]:
            assert facts["offset_flags"] + 4 * features * rows <= facts["offset_partials"]
            assert facts["offset_scales"] + 4 * dims[0] <= facts["offset_flags"]
        assert launch.smem_bytes <= made.target.smem_bytes
        tensor = config["scheme"] != "simt"
        is_aligned = not tensor or dims[1] * made.workload.itemsize % 16 == 0
        wanted = {"align": not is_aligned, "prepare": facts["terms"]}
        assert [step.entry for step in launch.before] == [name for name, has in wanted.items() if has]
        if not is_aligned:
            ends = (facts["offset_w"], launch.scratch_bytes)
            begins = (facts["offset_x"], facts["offset_w"])
            sizes = ((0 if facts["terms"] else dims[0]), dims[2])
            for begin, end, lines in zip(begins, ends, sizes, strict=True):
                assert begin + lines * facts["padded"] * made.workload.itemsize <= end


def problem(made: Case, config: Config, *, most_stack: int | None = None) -> str | None:
    """What is wrong with one compiled config, in a line; `most_stack`: bytes of local memory it may have."""
    try:
        compiled = backends.get("cuda").compile(made.source(config))
    except CompileError as error:
        return f"{made}: {error}: {config}"
    launch = made.family.launch(config, made.program, made.workload, made.target)
    scheme = SCHEMES.get(str(config["scheme"]))
    splits = config["strategy"] != "library" and scheme is not None and scheme.terms > 0
    parts = compiled.smem_bytes, launch.smem_bytes
    # A fused kernel has none but the launch's: what is static is that of the steps beside it.
    smem_bytes = sum(parts) if config["strategy"] == "library" else max(parts)
    warnings = _WARNING.findall(compiled.log)
    found = {
        f"spills {compiled.spill_bytes} bytes": compiled.spill_bytes > (_SPILLS if splits else 0),
        f"{compiled.registers} registers for {launch.block} threads": compiled.registers * launch.block
        > 65536,
        "no registers reported": compiled.registers == 0,
        f"{smem_bytes} bytes of shared memory": smem_bytes > made.target.smem_bytes,
        f"{warnings[:1]}": bool(warnings),
    }
    if most_stack is not None:
        frames = re.findall(r"entry function 'ksearch_kernel'[\s\S]*?(\d+) bytes stack frame", compiled.log)
        found |= {f"keeps {frames} bytes in local memory": not frames or int(frames[0]) > most_stack}
    wrong = [text for text, is_so in found.items() if is_so]
    return f"{made}: {', '.join(wrong)}: {config}" if wrong else None


CASES = (
    *((*each, *kind, "sm_90", 6) for each in NAMED for kind in KINDS),
    *(("linear_gated", (200, 500, 516), *kind, "sm_90", 6) for kind in KINDS[:2]),
    *(("linear_extremes", (200, 504, 516), *kind, "sm_90", 6) for kind in (KINDS[0], KINDS[3])),
    ("linear_gated", (1024, 256, 516), *KINDS[3], "sm_90", 8),  # of loops this short ptxas unrolls all
    *(("linear", dims, *KINDS[index % 4], "sm_90", 2) for index, dims in enumerate(ODD)),
    *((*each, *kind, "sm_80", 4) for each in NAMED for kind in KINDS),
)


@pytest.mark.parametrize(("name", "dims", "dtype", "policy", "arch", "most"), CASES, ids=str)
def test_regions_compile_and_fit(
    name: str, dims: tuple[int, ...], dtype: str, policy: str, arch: str, most: int
) -> None:
    """Of all regions as many as time allows; another seed tries others."""
    made, rng = case(name, dims, dtype, policy, arch), random.Random(f"{name} {dims} {dtype} {policy} {arch}")
    configs = made.sample(rng, most)
    with ThreadPoolExecutor(2) as pool:  # NVRTC lets go of the GIL
        problems = [found for found in pool.map(lambda config: problem(made, config), configs) if found]
    assert problems == [], f"{len(problems)} of {len(configs)}"


TURNS = (
    ("linear_gelu", "bfloat16", "strict"),
    ("linear_sigmoid_sum", "float16", "strict"),
    ("linear_sigmoid_scale_residual", "float32", "tf32"),
    ("linear_gelu", "float32", "strict"),
)


@pytest.mark.parametrize(("name", "dtype", "policy"), TURNS, ids=str)
def test_no_sums_of_warpgroups_that_take_turns_leave_registers(name: str, dtype: str, policy: str) -> None:
    """Of all tile sizes: an array in local memory is no spill, and costs as much. What is split is packed."""
    rng, is_packed = random.Random(f"{name} {dtype}"), (dtype, policy) == ("float32", "strict")
    made = Case(name, (4096, 512, 1024), dtype, policy, prepacked=is_packed)
    mine = [config for config in made.configs if config["schedule"] == "pingpong"]
    picked: dict[tuple[object, ...], Config] = {}
    for config in rng.sample(mine, len(mine)):
        picked.setdefault((config["tile_n"], config["blocks_m"]), config)
    with ThreadPoolExecutor(2) as pool:
        most = _SPILLS if is_packed else 0
        found = pool.map(lambda config: problem(made, config, most_stack=most), picked.values())
        assert [each for each in found if each] == []


@pytest.mark.parametrize(("dtype", "policy"), KINDS)
def test_taking_turns_is_among_the_guesses_where_blocks_have_several_tiles(dtype: str, policy: str) -> None:
    few, many = (64, 512, 512), (65536, 512, 512)
    for dims, has_turns in ((few, False), (many, (dtype, policy) != ("float32", "strict"))):
        made = case("linear_gelu", dims, dtype, policy, "sm_90")
        guesses = made.family.guesses(made.program, made.workload, made.target)
        assert any(guess["schedule"] == "pingpong" for guess in guesses) is has_turns
        assert guesses[0]["schedule"] == "cooperative"


def test_a_config_from_before_there_were_schedules_is_the_kernel_that_it_was() -> None:
    made = case("linear_gelu", (4096, 4096, 4096), "bfloat16", "strict", "sm_90")
    config = made.pick(random.Random(1), strategy="direct", schedule="cooperative", cluster=2)
    older = {name: value for name, value in config.items() if name != "schedule"}
    assert made.source(older).text == made.source(config).text
    launches = [made.family.launch(c, made.program, made.workload, made.target) for c in (older, config)]
    assert launches[0] == launches[1]


def test_a_preset_that_is_there_no_more_is_told() -> None:
    made = case("linear_gelu", (4096, 4096, 4096), "bfloat16", "strict", "sm_90")
    config = {**made.pick(random.Random(1), strategy="library"), "library": 99}
    with pytest.raises(UsageError, match="library=99 is none of the"):
        made.source(config)


def test_warnings_of_the_compiler_are_seen() -> None:
    said = (
        "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to"
    )
    assert _WARNING.findall(said)
    assert not _WARNING.findall("ptxas info    : Used 168 registers, used 4 barriers")
