from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import optuna
import pytest

from ksearch import families, operators, search
from ksearch.errors import UsageError
from ksearch.families.base import Rule, Space
from ksearch.search import SAMPLERS, Study, Trial
from ksearch.types import Config, ConfigValue, Outcome, Status, Target

H100 = Target("cuda", "sm_90", "H100", units=132, memory_bytes=80 << 30, smem_bytes=232448)
SMALL = Space(
    axes={"block": (32, 64, 128, 256), "vec": (1, 2, 4), "mode": ("a", "b"), "wide": (False, True)},
    is_valid=lambda c: int(c["block"]) * int(c["vec"]) <= 256 and not (c["wide"] and c["vec"] == 1),
    free={"load": ("x", "y")},
)


@functools.cache
def softmax_space(shape: tuple[int, ...] = (64, 8192)) -> Space:
    """Enumerated once, which takes 0.1 s and more, and not by each of forty studies."""
    op = operators.get("softmax")
    space = families.find(op, "cuda").space(op.program(), op.workload(shape), H100)
    configs = list(space)

    class Listed(Space):
        def __iter__(self) -> Iterator[dict[str, ConfigValue]]:
            return iter(configs)

    return Listed(space.axes, space.is_valid, space.free, space.matters, space.rules)


def passed(time_us: float) -> Outcome:
    return Outcome(Status.PASSED, time_us=time_us)


def frozen(config: Config) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(config.items()))


def run(study: Study, objective: Callable[[Config], Outcome], trials: int, ahead: int = 1) -> list[Trial]:
    """Ask, with `ahead` of them in flight, and tell; what was asked, in that order."""
    asked: list[Trial] = []
    waiting: list[Trial] = []
    while True:
        while len(waiting) < ahead and len(asked) < trials and (trial := study.ask()) is not None:
            asked.append(trial)
            waiting.append(trial)
        if not waiting:
            return asked
        study.tell(waiting[0], objective(waiting[0].config))
        del waiting[0]


# ---- what is proposed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("ahead", [1, 8])
def test_every_valid_config_is_asked_once_and_no_other(sampler: str, ahead: int) -> None:
    study = Study(SMALL, sampler=sampler, seed=3)
    asked = run(study, lambda c: passed(float(int(c["block"]))), 10_000, ahead)
    valid = {frozen(config) for config in SMALL}
    assert len(asked) == len(valid) == study.size
    assert {frozen(trial.config) for trial in asked} == valid
    assert study.ask() is None
    assert [trial.number for trial in asked] == list(range(len(asked)))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_real_space_is_never_left_and_nothing_is_tried_twice(sampler: str) -> None:
    space = softmax_space()
    study = Study(space, sampler=sampler, seed=1, trials=200)
    asked = run(study, lambda c: passed(float(int(c["threads"]))), 200, ahead=16)
    assert len({frozen(trial.config) for trial in asked}) == 200
    assert all(space.allows(trial.config) for trial in asked)
    assert all(list(trial.config) == list(space.values) for trial in asked)


def test_values_keep_their_types() -> None:
    for trial in run(Study(SMALL), lambda c: passed(1.0), 10_000):
        assert [type(trial.config[n]) for n in ("block", "mode", "wide")] == [int, str, bool]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_budget_that_covers_the_space_is_exhaustive(sampler: str) -> None:
    size = Study(SMALL).size
    study = Study(SMALL, sampler=sampler, trials=size)
    assert len({frozen(t.config) for t in run(study, lambda c: passed(1.0), size)}) == size


def test_seeds_repeat_and_differ() -> None:
    def configs(sampler: str, seed: int) -> list[Config]:
        study = Study(softmax_space((64, 256)), sampler=sampler, seed=seed, trials=40)
        return [t.config for t in run(study, lambda c: passed(float(int(c["threads"]))), 40)]

    for sampler in ("tpe", "random"):
        assert configs(sampler, 1) == configs(sampler, 1) != configs(sampler, 2)


def test_guesses_come_first_moved_to_the_nearest_valid_config() -> None:
    good = {"block": 64, "vec": 4, "mode": "b", "wide": True, "load": "y"}
    near = {"block": 256, "vec": 2, "mode": "a", "wide": True, "load": "x"}  # block * vec is too large
    far = {"block": 1024, "vec": 1, "mode": "a", "wide": False, "load": "x"}  # no such block
    other = {"block": 100, "vec": 2, "mode": "c", "wide": False}  # from another version of the space
    study = Study(SMALL, guesses=[good, near, good, far, other])
    asked = [trial for _ in range(5) if (trial := study.ask()) is not None]
    assert asked[0].config == good
    # one step of block and one of vec cost a third and a half; giving up `wide` would cost a whole one
    assert asked[1].config == {**near, "block": 128}
    assert asked[2].config != good
    assert sum(asked[2].config[name] != value for name, value in good.items()) == 1
    assert asked[3].config == {**far, "block": 256}
    assert asked[4].config["vec"] == 2
    assert asked[4].config["block"] in (64, 128)


def test_the_guesses_of_a_family_are_the_first_trials() -> None:
    op = operators.get("softmax")
    family, workload = families.find(op, "cuda"), op.workload((4096, 393216))
    space = family.space(op.program(), workload, H100)
    guesses = family.guesses(op.program(), workload, H100)
    asked = run(Study(space, guesses=guesses), lambda c: passed(1.0), len(guesses))
    for trial, guess in zip(asked, guesses, strict=True):
        changed = [name for name in guess if guess[name] != trial.config[name]]
        assert len(changed) <= 2, (trial.config, guess)


# ---- what is learnt -----------------------------------------------------------------------------------


def synthetic(config: Config) -> Outcome:
    """Smooth, with one best region, as kernels are: the logarithms of the sizes, and the kinds."""
    away = abs(math.log2(int(config["threads"])) - 8) + 0.7 * abs(math.log2(int(config["vec"])) - 2)
    away += 0.5 * abs(int(config["min_blocks"]) - 2) + 0.3 * abs(math.log2(int(config["cluster"])) - 1)
    away += {"registers": 0.0, "shared": 1.0, "global": 3.0}[str(config["storage"])]
    away += 0.5 * int(config["prefetch"]) + (config["load"] != "nc") * 0.3 + (config["store"] != "cs") * 0.3
    return passed(100.0 + 20.0 * away)


def test_tpe_finds_more_than_chance() -> None:
    """Medians of five seeds: TPE's best is some 30 us over the best possible 100 us less than chance's."""
    space = softmax_space()

    def best(sampler: str) -> float:
        found = []
        for seed in range(5):
            study = Study(space, sampler=sampler, seed=seed, trials=120)
            run(study, synthetic, 120, ahead=4)
            found.append(study.best_us or math.inf)
        return statistics.median(found)

    tpe, chance = best("tpe"), best("random")
    assert tpe - 100 < 0.75 * (chance - 100)


def test_the_model_finds_what_tpe_leaves_lying(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 60 trials they are 4 and 7 us over the best possible 100 us in the mean."""

    def left_us(turn: int) -> float:
        monkeypatch.setattr(search, "_TURN", turn)
        found = []
        for seed in range(5):
            study = Study(space, seed=seed)
            run(study, synthetic, 60, ahead=8)
            found.append((study.best_us or math.inf) - 100)
        return statistics.mean(found)

    space = softmax_space()
    assert left_us(search._TURN) < left_us(1)


def test_failures_teach_the_sampler() -> None:
    """Half of the space fails; a sampler that ignored it would go on failing at half of its trials."""

    def objective(config: Config) -> Outcome:
        if config["storage"] == "global":
            return Outcome(Status.WRONG, message="no")
        return synthetic(config)

    space = softmax_space()
    share = sum(config["storage"] == "global" for config in space) / sum(1 for _ in space)
    assert share > 0.5
    late = []
    for seed in range(3):
        asked = run(Study(space, seed=seed, trials=120), objective, 120)
        late += [trial.config["storage"] == "global" for trial in asked[60:]]
    assert sum(late) / len(late) < 0.5 * share


def test_it_counts_and_ranks_what_it_was_told() -> None:
    study = Study(SMALL)
    trials = [trial for _ in range(5) if (trial := study.ask()) is not None]
    outcomes = [
        passed(3.0),
        Outcome(Status.WRONG, message="first"),
        passed(2.0),
        Outcome(Status.WRONG, message="second"),
    ]
    assert (study.best_us, study.done, study.best(3)) == (None, 0, [])
    for trial, outcome in zip(trials, outcomes, strict=False):
        study.tell(trial, outcome)
    assert (study.best_us, study.done) == (2.0, 4)
    assert study.best(5) == [trials[2], trials[0]]
    assert study.failures() == {"wrong": 2}
    assert study.first_failures() == {"wrong": "first"}


def test_equal_machine_code_is_measured_once() -> None:
    study = Study(SMALL)
    first, second, third = (study.ask() for _ in range(3))
    assert first is not None and second is not None and third is not None  # noqa: PT018
    assert study.twin(first, "code a") is None
    study.tell(first, passed(5.0))
    assert study.twin(second, "code b") is None
    assert study.twin(third, "code a") == passed(5.0)


# ---- going on from an earlier run ---------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_replayed_trials_are_not_asked_again(sampler: str) -> None:
    first = Study(SMALL, sampler=sampler, seed=1)
    earlier = run(first, lambda c: passed(float(int(c["block"]))), 20)
    second = Study(SMALL, sampler=sampler, seed=1, guesses=[earlier[3].config])
    for trial in earlier:
        assert trial.outcome is not None
        assert second.replay(trial.config, trial.outcome)
    assert (second.done, second.best_us) == (20, first.best_us)
    assert not second.replay(earlier[0].config, passed(1.0)), "once is enough"
    later = run(second, lambda c: passed(1.0), 10_000)
    assert len(later) == second.size - 20
    assert not {frozen(t.config) for t in later} & {frozen(t.config) for t in earlier}


def test_new_trials_count_on_from_the_highest_number_of_an_earlier_run() -> None:
    """A run that was interrupted had asked for more than it was told, in another order."""
    study = Study(SMALL, seed=1)
    configs = [{**c} for c in list(SMALL)[:3]]
    for config, number in zip(configs, (0, 2, 7), strict=True):
        assert study.replay(config, passed(1.0), number)
    assert study.trial(7).config == configs[2]
    assert [trial.number for trial in (study.ask(), study.ask()) if trial is not None] == [8, 9]


@pytest.mark.parametrize(
    "change", [{"vec": 8}, {"block": 256, "vec": 4}, {"mode": None}], ids=["value", "validity", "axis"]
)
def test_what_is_no_longer_in_the_space_is_not_replayed(change: dict[str, object]) -> None:
    config = {"block": 64, "vec": 4, "mode": "b", "wide": True, "load": "y"}
    changed = {name: value for name, value in {**config, **change}.items() if value is not None}
    study = Study(SMALL)
    assert not study.replay(changed, passed(1.0))  # type: ignore[arg-type]
    assert study.done == 0


def test_a_replayed_study_knows_what_the_first_one_learnt() -> None:
    space = softmax_space()
    first = Study(space, seed=0, trials=120)
    earlier = run(first, synthetic, 60)
    second = Study(space, seed=5, trials=120)
    for trial in earlier:
        assert trial.outcome is not None
        second.replay(trial.config, trial.outcome)
    fresh = [t.outcome.time_us for t in run(second, synthetic, 30) if t.outcome and t.outcome.time_us]
    begun = [t.outcome.time_us for t in earlier[:30] if t.outcome and t.outcome.time_us]
    assert statistics.median(fresh) - 100 < 0.75 * (statistics.median(begun) - 100)


# ---- Optuna's own tables ------------------------------------------------------------------------------


def mirrored(path: Path, name: str = "a study") -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        return optuna.load_study(study_name=name, storage=storage).get_trials()
    finally:
        storage.engine.dispose()


def some_fail(config: Config) -> Outcome:
    if config["mode"] == "a":
        return Outcome(Status.WRONG, message="mode a is wrong")
    return passed(float(int(config["block"]) + int(config["vec"])))


def test_the_mirror_is_what_optuna_reads_and_can_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "k.db"
    study = Study(SMALL, seed=2)
    told = run(study, some_fail, 30)
    unanswered = study.ask()
    assert unanswered is not None
    for _ in range(2):
        study.mirror(f"sqlite:///{path}", "a study")
        trials = mirrored(path)
        assert len(trials) == 30
    assert [trial.params for trial in trials] == [trial.config for trial in told]
    for trial, mine in zip(trials, told, strict=True):
        assert mine.outcome is not None
        assert trial.state.name == ("COMPLETE" if mine.outcome.time_us else "PRUNED")
        assert trial.value == mine.outcome.time_us
        assert trial.user_attrs["status"] == mine.outcome.status.value
        assert trial.user_attrs["message"] == mine.outcome.message
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    assert optuna.load_study(study_name="a study", storage=storage).best_value == study.best_us
    storage.engine.dispose()


def test_a_resumed_study_adds_to_its_mirror_what_is_new(tmp_path: Path) -> None:
    """The first run ended with candidates asked and not told, so trials have other numbers in the second."""
    path = tmp_path / "k.db"
    first = Study(SMALL, seed=2)
    asked = [trial for _ in range(12) if (trial := first.ask()) is not None]
    told = [asked[i] for i in (1, 0, 4, 3, 9, 11)]
    for trial in told:
        first.tell(trial, some_fail(trial.config))
    first.mirror(f"sqlite:///{path}", "a study")
    second = Study(SMALL, seed=3)
    for trial in told:
        second.replay(trial.config, some_fail(trial.config))
    later = run(second, some_fail, 10)
    second.mirror(f"sqlite:///{path}", "a study")
    expected = sorted(frozen(trial.config) for trial in [*told, *later])
    assert sorted(frozen(trial.params) for trial in mirrored(path)) == expected


def test_a_changed_rule_does_not_break_the_mirror(tmp_path: Path) -> None:
    """Fewer values are in use; Optuna refuses another set of choices under the same name of a study."""
    path = tmp_path / "k.db"
    stricter = Space(SMALL.axes, lambda c: SMALL.is_valid(c) and c["vec"] != 4, SMALL.free)
    for space, trials in ((SMALL, 5), (stricter, 10)):
        study = Study(space, seed=1)
        run(study, some_fail, trials)
        study.mirror(f"sqlite:///{path}", "a study")
    assert len(mirrored(path)) >= 10


# ---- bad input ----------------------------------------------------------------------------------------


def test_an_unknown_sampler_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="no sampler 'grid': use tpe, random, exhaustive"):
        Study(SMALL, sampler="grid")


@pytest.mark.parametrize("axes", [{"block": (1, 2)}, {"block": ()}], ids=["no valid", "no values"])
def test_an_empty_space_is_refused(axes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError, match="no config of the family's space is valid"):
        Study(Space(axes, lambda c: False))


def test_a_space_of_one_point_has_one_trial() -> None:
    study = Study(Space({"block": (64,), "mode": ("a",)}, lambda c: True), trials=50)
    assert [t.config for t in run(study, lambda c: passed(1.0), 50)] == [{"block": 64, "mode": "a"}]


def test_free_axes_combine_with_every_valid_point() -> None:
    heads = [
        dict(zip(SMALL.axes, values, strict=True))
        for values in product(*SMALL.axes.values())
        if SMALL.is_valid(dict(zip(SMALL.axes, values, strict=True)))
    ]
    assert [frozen(c) for c in SMALL] == [frozen({**h, "load": v}) for h in heads for v in ("x", "y")]


def test_rules_leave_out_what_they_rule_out_and_nothing_else() -> None:
    """Whatever the order of their parameters, and beside `is_valid`."""
    axes = {"a": (1, 2, 3), "b": ("x", "y"), "c": (1, 2, 3)}
    rules = (
        Rule(("a", "c"), lambda c: int(c["a"]) + int(c["c"]) <= 4),
        Rule(("b",), lambda c: c["b"] == "y"),
        Rule(("b", "a"), lambda c: c["a"] != 2),
    )
    space = Space(axes, lambda c: c["c"] != 2, rules=rules)
    everything = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    expected = [{"a": a, "b": "y", "c": c} for a, c in ((1, 1), (1, 3), (3, 1))]
    assert list(space) == expected
    assert [config for config in everything if space.allows(config)] == expected
    assert not space.allows({"a": 0, "b": "y", "c": 1})
