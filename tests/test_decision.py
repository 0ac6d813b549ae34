"""Ties, how they are broken, and what is not believed: arithmetic on samples that are made up."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from ksearch import operators
from ksearch.decision import Entrant, beyond_belief, decide, needed_share, preference, regret
from ksearch.launch import Launch, TensorMap
from ksearch.types import Artifact, Candidate


def samples(median_us: float, seed: int = 0, spread: float = 0.01, count: int = 60) -> list[float]:
    generator = random.Random(seed)
    return [median_us * (1 + spread * generator.gauss(0, 1)) for _ in range(count)]


def entrant(
    time_us: float, *, registers: int = 40, seed: int = 0, launch: Launch | None = None, may_win: bool = True
) -> Entrant:
    artifact = Artifact("k", "f", "b", "d", registers=registers, smem_bytes=16)
    config = {"n": seed}
    return Entrant(Candidate(config, launch or Launch(), artifact), samples(time_us, seed), may_win)


def test_what_is_surely_slower_is_of_no_tie() -> None:
    first, tie = decide([entrant(110, seed=1), entrant(100, seed=2, registers=99)], 0)
    assert first == 1
    assert [each.config for each in tie.members] == [{"n": 2}]
    assert tie.broken_by == ""


@pytest.mark.parametrize(
    ("one", "other", "broken_by"),
    [
        ({"registers": 64}, {"registers": 32}, "registers"),
        ({"launch": Launch(smem_bytes=4096)}, {"launch": Launch(smem_bytes=1024)}, "shared memory"),
        ({"launch": Launch(cluster=2, persistent=True)}, {"launch": Launch(persistent=True)}, "simplicity"),
        ({"launch": Launch(after=(Launch(),))}, {}, "simplicity"),
        ({"launch": Launch(maps=(TensorMap(0, "float32", 1, 1, 1, 1),))}, {}, "simplicity"),
    ],
    ids=["registers", "shared memory", "cluster", "second kernel", "tensor map"],
)
def test_a_tie_goes_to_the_cheaper_one(one: dict[str, Any], other: dict[str, Any], broken_by: str) -> None:
    place, tie = decide([entrant(100.0, seed=1, **one), entrant(100.1, seed=2, **other)], 0)
    assert (place, tie.broken_by) == (1, broken_by)
    assert [each.config["n"] for each in tie.members] == [2, 1], "the chosen one first"


def test_equal_costs_go_to_the_faster_one() -> None:
    place, tie = decide([entrant(100.2, seed=1), entrant(100.0, seed=2), entrant(100.1, seed=3)], 0)
    fastest = min(tie.members, key=lambda each: each.time_us)
    assert (tie.members[0], tie.broken_by) == (fastest, "time")
    assert {1: 0, 2: 1, 3: 2}[fastest.config["n"]] == place


def test_for_fewer_registers_nobody_gives_up_two_percent() -> None:
    """Noise of 10 % over 60 rounds cannot tell 3 % apart, and still the faster one is taken."""
    noisy = [
        Entrant(entrant(100, registers=registers).candidate, samples(time_us, seed, spread=0.1))
        for seed, time_us, registers in ((1, 100.0, 200), (5, 103.0, 16))
    ]
    place, tie = decide(noisy, 0)
    assert len(tie.members) == 2
    assert (place, tie.broken_by) == (0, "time")


def test_one_that_was_not_checked_is_of_the_tie_and_does_not_win() -> None:
    place, tie = decide([entrant(100, seed=1), entrant(100.1, seed=2, registers=8, may_win=False)], 0)
    assert place == 0
    assert [each.registers for each in tie.members] == [40, 8]


def test_the_order_of_checking_begins_with_the_one_to_prefer() -> None:
    entrants = [entrant(120, seed=1), entrant(100, seed=2), entrant(100.1, seed=3, registers=8)]
    candidates, laps = [each.candidate for each in entrants], [each.samples_us for each in entrants]
    assert preference(candidates, laps, 0) == [2, 1, 0]
    assert preference([], [], 0) == []


def test_the_regret_is_what_another_may_be_faster_by() -> None:
    chosen = samples(100, 1)
    assert regret(chosen, [], 0) == 0.0
    assert regret(chosen, [samples(110, 2)], 0) == 0.0
    assert 0.0 < regret(chosen, [samples(110, 2), samples(100, 3)], 0) < 0.01
    assert 0.04 < regret(chosen, [samples(95, 3)], 0) < 0.07


def believed(
    time_us: float, *, copy_us: float, baseline_us: float = 1e6, backend: str = "cuda", share: float = 1.0
) -> str:
    return beyond_belief(
        samples(time_us, 1),
        samples(copy_us, 2),
        samples(baseline_us, 3),
        backend=backend,
        share=share,
        seed=0,
    )


def test_much_faster_than_a_copy_is_not_believed() -> None:
    assert "1.99 times the speed at which" in believed(100, copy_us=200)
    assert believed(100, copy_us=120) == ""
    assert believed(100, copy_us=150)
    assert believed(100, copy_us=150, backend="cpu") == "", "streaming stores spare a CPU a third of a copy"
    assert believed(100, copy_us=180, backend="cpu")


def test_a_few_microseconds_are_what_a_start_costs() -> None:
    assert believed(2.0, copy_us=4.0) == ""
    assert believed(2.0, copy_us=40.0)


def test_what_pytorch_itself_beats_is_no_bound() -> None:
    assert believed(100, copy_us=200, baseline_us=110) == ""
    assert believed(100, copy_us=200, baseline_us=190)


def test_what_need_not_be_read_does_not_count() -> None:
    assert believed(100, copy_us=200)
    assert believed(100, copy_us=200, share=0.6) == ""


def test_noise_alone_is_no_suspicion() -> None:
    wild = [70.0 if i % 3 else 300.0 for i in range(60)]
    text = beyond_belief([100.0] * 60, wild, [1e6] * 60, backend="cuda", share=1.0, seed=0)
    assert text == "", "two thirds of the copies were slower than the kernel"


def test_the_share_of_the_bytes_that_must_move(tmp_path: Path) -> None:
    for name in ("softmax", "add_rmsnorm", "swiglu", "layernorm"):
        op = operators.get(name)
        assert needed_share(op, op.workload((64, 256))) == 1.0
    op = operators.get("linear_relu")
    assert needed_share(op, op.workload((64, 128, 256))) == 1.0
    file = tmp_path / "ops.py"
    file.write_text("import ksearch\n@ksearch.op\ndef first_of(x, y):\n    return x * 2\n")
    op = operators.resolve(f"{file}:first_of")
    assert needed_share(op, op.workload((64, 256))) == pytest.approx(2 / 3)
    own = operators.resolve(f"{Path(__file__).parents[1] / 'docs/examples/running_sum.py'}:running_sum")
    assert needed_share(own, own.workload((64, 256))) == pytest.approx(1 / 2), "only its result is sure"
