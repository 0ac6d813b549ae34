"""Who wins, and with what evidence; the worker's races are scripted, the rest is real."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ksearch import artifacts, operators, promotion
from ksearch.backends.base import Compiled
from ksearch.certificate import FORM, Certificate, Conditions, Sanitized
from ksearch.errors import KsearchError, SelftestError
from ksearch.evaluate.messages import FinalEntry, Finals, RegimeError
from ksearch.evaluate.pool import Build
from ksearch.evaluate.worker import Order
from ksearch.families.base import Space
from ksearch.launch import Launch
from ksearch.operators import Op
from ksearch.promotion import FINALISTS, promote
from ksearch.search import Study
from ksearch.stopping import Ended
from ksearch.store import Store
from ksearch.types import (
    Artifact,
    Candidate,
    Config,
    Outcome,
    Source,
    Status,
    Target,
    Winner,
    Workload,
    digest,
)

WORKLOAD = Workload("softmax", (64, 256))
TARGET = Target("cpu", "x86_64", "Test CPU", units=2)
SPACE = Space({"n": tuple(range(20))}, lambda config: True)
ROUNDS = 30


class Compiler:
    name, extension, exclusive = "cpu", "so", True

    def compiler_id(self) -> str:
        return "cc 1"

    def compile(self, source: Source) -> Compiled:
        return Compiled(f"binary of {source.text}".encode(), "the log", registers=40)


@dataclass
class Plan:
    workload: Workload = WORKLOAD
    target: Target = TARGET
    way_errors: dict[str, float] = field(default_factory=dict)
    barred_ways: dict[str, str] = field(default_factory=dict)
    launches: dict[int, Launch] = field(default_factory=dict)
    backend: Compiler = field(default_factory=Compiler)

    @property
    def op(self) -> Op:
        return operators.get(self.workload.op)

    def way(self, config: Config) -> str:
        return "fp16x3/256" if self.way_errors else ""

    def render(self, config: Config) -> Source:
        return Source(text=f"// n = {config['n']}", backend="cpu", arch="x86_64")

    def candidate(self, config: Config, artifact: Artifact) -> Candidate:
        launch = self.launches.get(int(config["n"]), Launch(threads=2))
        return Candidate(dict(config), launch, artifact)


@dataclass
class Pool:
    """Compiles at once, but for the sources that do not compile any more."""

    broken: set[int] = field(default_factory=set)
    builds: list[Build] = field(default_factory=list)

    def submit(self, tag: int, source: Source) -> None:
        if tag in self.broken:
            self.builds.append(Build(tag, status=Status.COMPILE_ERROR, message="no"))
        else:
            self.builds.append(Build(tag, artifacts.build(Compiler(), source)))  # type: ignore[arg-type]

    def completed(self, wait_for_all: bool = False) -> list[Build]:
        builds, self.builds = self.builds, []
        return builds


def samples(median_us: float, spread: float = 0.01) -> list[float]:
    """Rounds of a quiet machine: within one percent of the median."""
    return [median_us * (1 + spread * ((i * 7) % 11 - 5) / 5) for i in range(ROUNDS)]


@dataclass
class Worker:
    """Candidate `n` takes times_us[n], else 100 + n us; `fails` names what the full check finds."""

    times_us: dict[int, float] = field(default_factory=dict)
    fails: dict[int, Status] = field(default_factory=dict)
    baseline_us: float = 200.0
    ceiling_us: float = 80.0
    spread: float = 0.01
    copy_us: list[float] = field(default_factory=list)
    races: list[list[int]] = field(default_factory=list)
    orders: list[list[int]] = field(default_factory=list)
    unchecked: set[int] = field(default_factory=set)

    def finals(
        self,
        candidates: Sequence[Candidate],
        *,
        budget_s: float,
        enough: int | None = None,
        order: Order | None = None,
    ) -> Finals:
        self.races.append([int(c.config["n"]) for c in candidates])
        entries = []
        laps = [
            samples(self.times_us.get(int(c.config["n"]), 100.0 + int(c.config["n"]))) for c in candidates
        ]
        assert order is not None
        places = order(candidates, laps)
        self.orders.append([int(candidates[place].config["n"]) for place in places])
        for candidate in candidates:
            n = int(candidate.config["n"])
            if n in self.fails:
                outcome = Outcome(self.fails[n], message="only whole it shows")
                entries.append(FinalEntry(candidate, outcome, [], {}))
                continue
            time_us = self.times_us.get(n, 100.0 + n)
            outcome = Outcome(Status.PASSED, time_us, 0.5, ROUNDS, 0.4)
            errors = {"uniform": RegimeError(1e-7, 2e-7)}
            laps_us = samples(time_us, self.spread)
            entries.append(FinalEntry(candidate, outcome, laps_us, errors, n not in self.unchecked))
        baseline = samples(self.baseline_us, self.spread)[::-1]
        conditions = (Conditions("before", temperature_c=40), Conditions("after", temperature_c=60))
        ceiling = samples(self.ceiling_us)
        return Finals(entries, baseline, ceiling, {"torch": "2.13.0"}, self.copy_us, conditions)


@pytest.fixture(autouse=True)
def required(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs of winners that a kill table was asked for; tests/selftest tries real ones."""
    asked: list[Config] = []

    def require(_plan: Plan, _worker: Worker, _pool: Pool, _store: Store, winner: Config) -> None:
        asked.append(winner)

    monkeypatch.setattr(promotion, "require_kills", require)
    return asked


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "k.db") as store:
        yield store


def screened(count: int = 10, first: int = 0) -> Study:
    """A study whose trial n was screened at 100 + n us; the first one asked is config `first`."""
    study = Study(SPACE, sampler="exhaustive", guesses=[{"n": n} for n in (first, *range(20))])
    for _ in range(count):
        trial = study.ask()
        assert trial is not None
        study.tell(trial, Outcome(Status.PASSED, time_us=100.0 + int(trial.config["n"])))
    return study


@dataclass
class Checker:
    """Stands in for compute-sanitizer, which finds an error in the candidates `bad`."""

    bad: set[int]

    def check(self, candidate: Candidate) -> tuple[Sanitized, str]:
        error = "memcheck: error: Invalid write" if candidate.config["n"] in self.bad else ""
        return Sanitized("9.9", 64, {"memcheck": f"no errors in {candidate.config['n']}"}), error


def decide(
    study: Study,
    worker: Worker,
    store: Store,
    pool: Pool | None = None,
    plan: Plan | None = None,
    sanitizer: Checker | None = None,
) -> Winner:
    winner = promote(
        plan or Plan(),  # type: ignore[arg-type]
        "a study",
        study,
        worker,  # type: ignore[arg-type]
        pool or Pool(),  # type: ignore[arg-type]
        store,
        seed=1,
        budget_s=1.0,
        ended=Ended.NO_GAIN,
        sanitizer=sanitizer,  # type: ignore[arg-type]
    )
    found = store.find(WORKLOAD, TARGET)
    assert found is not None
    assert (found.config, found.time_us, found.artifact) == (winner.config, winner.time_us, winner.artifact)
    return found


def test_the_fastest_of_the_final_wins_not_the_fastest_of_the_search(store: Store) -> None:
    worker = Worker(times_us={4: 90.0})
    winner = decide(screened(), worker, store)
    assert worker.races == [list(range(FINALISTS))]
    assert (winner.status, winner.config) == ("winner", {"n": 4})
    assert winner.time_us == pytest.approx(90, rel=0.01)
    assert winner.baseline_us == pytest.approx(200, rel=0.01)
    assert winner.ceiling_us == pytest.approx(80, rel=0.01)
    assert winner.launch == Launch(threads=2)
    assert winner.artifact is not None
    stored = store.artifact(winner.artifact)
    assert stored is not None
    assert (stored.source, stored.binary, stored.log) == ("// n = 4", b"binary of // n = 4", "the log")
    assert store.environment(WORKLOAD, TARGET) == {"torch": "2.13.0", "compiler": "cc 1"}


def test_a_winner_needs_a_check_that_finds_planted_faults(
    store: Store, required: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decide(screened(), Worker(times_us={4: 90.0}), store).status == "winner"
    assert required == [{"n": 4}]
    assert decide(screened(), Worker(baseline_us=50.0), store).status == "baseline"
    assert len(required) == 1, "PyTorch needs none"

    def refuse(*_: object) -> None:
        raise SelftestError("the check lets 1 of 20 planted faults pass")

    monkeypatch.setattr(promotion, "require_kills", refuse)
    with pytest.raises(SelftestError, match="lets 1 of 20"):
        decide(screened(), Worker(times_us={4: 90.0}), store)
    found = store.find(WORKLOAD, TARGET)
    assert found is not None
    assert found.status == "baseline", "what was in force stays so"


def test_the_certificate_holds_the_evidence(store: Store) -> None:
    evidence = decide(screened(), Worker(times_us={4: 90.0}), store).certificate
    low, high = evidence["speedup_ci"]
    assert low < 200 / 90 < high
    assert high - low < 0.1
    assert evidence["fastest_config"] == {"n": 4}
    assert evidence["runner_up_config"] == {"n": 0}
    assert evidence["over_runner_up_ci"] == pytest.approx([100 / 90, 100 / 90])
    assert [len(evidence[f"{who}samples_us"]) for who in ("", "baseline_", "ceiling_")] == [ROUNDS] * 3
    assert evidence["errors"] == {"uniform": {"kernel": 1e-7, "pytorch": 2e-7}}
    assert (evidence["registers"], evidence["error"]) == (40, 0.4)
    assert (evidence["study"], evidence["trials"], evidence["failures"]) == ("a study", 10, {})
    assert evidence["ended"] == "no more to gain"
    assert "alarm" not in evidence
    known = Certificate.read(evidence)
    assert known.to_json() == evidence
    assert (known.form, known.seed, known.rounds) == (FORM, 1, ROUNDS)
    assert known.runner_up_samples_us == samples(100.0)
    assert known.of_ceiling_ci == pytest.approx([80 / 90, 80 / 90])
    assert known.regret == 0.0
    assert known.tie is not None
    assert [each.config for each in known.tie.members] == [{"n": 4}]
    assert known.source_digest == digest("// n = 4")
    assert [(each.when, each.temperature_c) for each in known.conditions or ()] == [
        ("before", 40),
        ("after", 60),
    ]


def test_the_certificate_says_how_products_were_taken(store: Store) -> None:
    plan = Plan(way_errors={"fp16x3/256": 0.4}, barred_ways={"bf16x3/256": "error is 2.50 times the allowed"})
    evidence = decide(screened(), Worker(), store, plan=plan).certificate
    assert (evidence["products"], evidence["product_errors"]) == ("fp16x3/256", {"fp16x3/256": 0.4})
    assert evidence["barred_products"] == {"bf16x3/256": "error is 2.50 times the allowed"}
    assert "products" not in decide(screened(), Worker(), store).certificate


def test_the_familys_first_guess_is_a_finalist_however_it_was_screened(store: Store) -> None:
    worker = Worker()
    decide(screened(12, first=11), worker, store)
    assert worker.races == [[*range(FINALISTS), 11]]


@pytest.mark.parametrize(
    ("baseline_us", "spread"), [(90.0, 0.01), (100.0, 0.01), (101.0, 0.5)], ids=["slower", "equal", "unsure"]
)
def test_what_does_not_surely_beat_pytorch_is_not_promoted(
    store: Store, baseline_us: float, spread: float
) -> None:
    winner = decide(screened(), Worker(baseline_us=baseline_us, spread=spread), store)
    assert (winner.status, winner.config, winner.launch, winner.artifact) == ("baseline", None, None, None)
    assert winner.time_us == winner.baseline_us
    assert winner.speedup == 1.0
    assert winner.certificate["fastest_config"] == {"n": 0}, "the evidence is kept all the same"
    assert winner.certificate["speedup_ci"][0] <= 1.0


def test_a_finalist_that_fails_the_full_check_is_recorded_and_does_not_win(store: Store) -> None:
    study = screened()
    worker = Worker(fails={0: Status.WRONG, 1: Status.CRASHED})
    winner = decide(study, worker, store)
    assert winner.config == {"n": 2}
    assert len(worker.races) == 1
    assert study.failures() == winner.certificate["failures"] == {"wrong": 1, "crashed": 1}
    recorded = {e.config["n"]: e.outcome for e in store.evaluations(WORKLOAD, TARGET)}
    assert {n: outcome.status for n, outcome in recorded.items()} == {0: Status.WRONG, 1: Status.CRASHED}
    assert recorded[0].message == "only whole it shows"


def test_where_all_finalists_fail_the_next_best_race(store: Store) -> None:
    worker = Worker(fails=dict.fromkeys(range(FINALISTS), Status.WRONG))
    assert decide(screened(), worker, store).config == {"n": FINALISTS}
    assert worker.races == [list(range(FINALISTS)), list(range(FINALISTS, 10))]


def test_where_all_fail_pytorch_is_the_record(store: Store) -> None:
    study = screened()
    winner = decide(study, Worker(fails=dict.fromkeys(range(20), Status.WRONG)), store)
    assert winner.status == "baseline"
    assert study.failures() == {"wrong": 10}
    assert study.best_us is None


def test_where_nothing_was_tried_pytorch_is_the_record(store: Store) -> None:
    worker = Worker()
    assert decide(Study(SPACE), worker, store).status == "baseline"
    assert worker.races == [[]]


def test_faster_than_the_ceiling_is_an_alarm(store: Store) -> None:
    winner = decide(screened(), Worker(times_us={3: 64.0}), store)
    assert "1.25 times the speed of the ceiling" in winner.certificate["alarm"]
    assert winner.status == "winner"


def test_what_is_beyond_belief_is_recorded_and_does_not_win(store: Store) -> None:
    study = screened()
    winner = decide(study, Worker(times_us={3: 20.0}), store)
    assert winner.config == {"n": 0}
    assert "alarm" not in winner.certificate
    assert study.failures() == {"suspicious": 1}
    (recorded,) = store.evaluations(WORKLOAD, TARGET)
    assert (recorded.config, recorded.outcome.status) == ({"n": 3}, Status.SUSPICIOUS)
    assert "4.00 times the speed at which the bytes that it must move" in recorded.outcome.message


def test_where_all_are_beyond_belief_pytorch_is_the_record(store: Store) -> None:
    worker = Worker(times_us={n: 20.0 + n / 10 for n in range(20)})
    assert decide(screened(), worker, store).status == "baseline"
    assert len(worker.races) == 2


def test_a_tie_goes_to_the_simpler_kernel_and_the_certificate_says_so(store: Store) -> None:
    worker = Worker(times_us={0: 90.0, 1: 90.0}, spread=0.02)
    plan = Plan(launches={0: Launch(threads=2, smem_bytes=64)})
    winner = decide(screened(), worker, store, plan=plan)
    assert winner.config == {"n": 1}
    assert worker.orders[0][:2] == [1, 0], "the one to prefer is checked first"
    known = Certificate.read(winner.certificate)
    assert known.tie is not None
    assert known.tie.broken_by == "shared memory"
    assert [(each.config, each.smem_bytes) for each in known.tie.members] == [({"n": 1}, 0), ({"n": 0}, 64)]
    assert known.runner_up_config == {"n": 0}


def test_one_that_was_not_checked_does_not_win(store: Store) -> None:
    worker = Worker(times_us={0: 90.0, 1: 90.0}, spread=0.02, unchecked={1})
    winner = decide(screened(), worker, store, plan=Plan(launches={0: Launch(threads=2, smem_bytes=64)}))
    assert winner.config == {"n": 0}
    assert [each["config"] for each in winner.certificate["tie"]["members"]] == [{"n": 0}, {"n": 1}]


def test_what_the_sanitizer_finds_an_error_in_does_not_race(store: Store) -> None:
    study, worker = screened(), Worker()
    winner = decide(study, worker, store, sanitizer=Checker({0, 2}))
    assert worker.races == [[1, 3, 4, 5]]
    assert winner.config == {"n": 1}
    assert winner.certificate["sanitizer"] == {
        "version": "9.9",
        "rows": 64,
        "found": {"memcheck": "no errors in 1"},
    }
    assert study.failures() == {"unsafe": 2}
    outcomes = [each.outcome for each in store.evaluations(WORKLOAD, TARGET)]
    assert {each.message for each in outcomes} == {"memcheck: error: Invalid write"}


def test_where_the_sanitizer_likes_none_the_next_best_race(store: Store) -> None:
    worker = Worker()
    winner = decide(screened(), worker, store, sanitizer=Checker(set(range(FINALISTS))))
    assert worker.races == [[], list(range(FINALISTS, 10))]
    assert winner.config == {"n": FINALISTS}


def test_what_compiled_before_and_does_not_now_is_an_error(store: Store) -> None:
    with pytest.raises(KsearchError, match="trial 2 compiled before and does not now"):
        decide(screened(), Worker(), store, Pool(broken={2}))
    assert store.find(WORKLOAD, TARGET) is None


def test_a_linears_ceiling_is_no_wall(store: Store) -> None:
    """It is PyTorch's product, which a kernel may beat: 1.43 times its speed is no alarm, and 1.60 is; only
    the copy of its bytes is a wall."""
    plan = Plan(Workload("linear", (64, 256), inner=32))
    for time_us, is_alarm in ((56.0, False), (50.0, True), (30.0, True)):
        finals = Worker(times_us={3: time_us}, copy_us=samples(30.0))
        winner = promote(
            plan,  # type: ignore[arg-type]
            "a study",
            screened(),
            finals,  # type: ignore[arg-type]
            Pool(),  # type: ignore[arg-type]
            store,
            seed=1,
            budget_s=1.0,
            ended=Ended.NO_GAIN,
        )
        assert ("alarm" in winner.certificate) is is_alarm
        assert winner.config == {"n": 3}
