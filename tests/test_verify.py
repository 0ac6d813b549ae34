"""What no longer holds, and how it is told: the measurements are scripted, but for the last two tests."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ksearch import backends, env, verify
from ksearch.certificate import Certificate, Conditions
from ksearch.errors import UsageError
from ksearch.evaluate.messages import FinalEntry, Finals, Job, RegimeError
from ksearch.evaluate.worker import Order
from ksearch.export.bundle import write_bundle
from ksearch.launch import Launch
from ksearch.store import Store
from ksearch.types import Candidate, Outcome, Status, Target, Winner, digest
from ksearch.verdicts import Kind, State, Verified, exit_status
from tests.evaluate import kernels
from tests.export.exported import H200, kernel_of

CPU = backends.get("cpu").target(0)
SHAPE = (64, 256)
ROUNDS = 40
VERSIONS = {"ksearch": "0.1.0", "torch": "2.13.0"}
Run = Callable[..., tuple[int, str, str]]


def samples(median_us: float) -> list[float]:
    return [median_us * (1 + 0.01 * ((i * 7) % 11 - 5) / 5) for i in range(ROUNDS)]


class Script:
    """What the worker says: by binary its time and what is wrong with it, first on some rows, then on all."""

    def __init__(self) -> None:
        self.times_us: dict[str, float] = {}
        self.screened: dict[str, Outcome] = {}
        self.whole: dict[str, Outcome] = {}
        self.baseline_us, self.ceiling_us = 100.0, 40.0
        self.environment = dict(VERSIONS)
        self.conditions = (Conditions("before", load_average=0.1), Conditions("after", load_average=0.2))
        self.raced: list[list[str]] = []

    def __call__(self, job: Job) -> Script:
        self.job = job
        return self

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self) -> None: ...

    def screen(self, candidate: Candidate) -> Outcome:
        passed = Outcome(Status.PASSED, time_us=50.0)
        return self.screened.get(candidate.artifact.digest, passed)

    def finals(
        self, candidates: Sequence[Candidate], *, budget_s: float, enough: int, order: Order
    ) -> Finals:
        self.raced.append([each.artifact.digest for each in candidates])
        assert order(candidates, [[1.0]] * len(candidates)) == list(range(len(candidates)))
        entries = []
        for candidate in candidates:
            assert digest(Path(candidate.artifact.binary).read_bytes()) == candidate.artifact.digest
            laps = samples(self.times_us.get(candidate.artifact.digest, 50.0))
            passed = Outcome(Status.PASSED, time_us=laps[0], error=0.3)
            outcome = self.whole.get(candidate.artifact.digest, passed)
            entries.append(FinalEntry(candidate, outcome, laps, {"uniform": RegimeError(1e-7, 2e-7)}))
        base = samples(self.baseline_us)[::-1]
        ceiling = samples(self.ceiling_us)
        return Finals(entries, base, ceiling, self.environment, conditions=self.conditions)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    monkeypatch.setattr(verify, "Worker", made)
    return made


def keep(
    op: str = "softmax", target: Target = CPU, name: str = "one", db: Path | None = None, **changes: object
) -> Winner:
    """A kernel in force, certified at twice the speed of PyTorch; its binary is no binary."""
    kernel = kernel_of(op, SHAPE, "float32", target)
    binary = f"binary {name} of {op}".encode()
    certificate = Certificate(form=2, speedup_ci=[1.95, 2.05], source_digest=digest(kernel.text))
    winner = replace(
        kernel.winner, artifact=digest(binary), certificate=certificate.to_json(), created="2026-11-20"
    )
    winner = replace(winner, **changes)
    lost = winner.artifact is None
    with Store.open(db or env.database_path()) as store:
        store.promote(
            winner,
            source=None if lost else kernel.text,
            binary=None if lost else binary,
            environment=VERSIONS,
        )
    return winner


def verified(**more: object) -> list[Verified]:
    with Store.open(env.database_path(), readonly=True) as store:
        return verify.verify(store, store.winners(), **more)  # type: ignore[arg-type]


def only(**more: object) -> Verified:
    (found,) = verified(**more)
    return found


def kinds(found: Verified) -> list[Kind]:
    return [finding.kind for finding in found.findings]


# ---- findings -----------------------------------------------------------------------------------------


def test_what_is_as_it_was_holds(script: Script) -> None:
    winner = keep()
    found = only(seed=5)
    assert (found.state, found.findings) == (State.HOLDS, ())
    assert found.measured is not None
    assert (found.measured.time_us, found.measured.baseline_us) == (50.0, 100.0)
    assert found.measured.speedup_ci is not None
    assert 1.95 < found.measured.speedup_ci[0] <= 2.0 <= found.measured.speedup_ci[1]
    assert found.measured.errors == {"uniform": {"kernel": 1e-7, "pytorch": 2e-7}}
    assert script.job == Job("softmax", winner.workload, CPU, 5)


@pytest.mark.parametrize("when", ["screened", "whole"])
def test_a_wrong_result_breaks_it(script: Script, when: str) -> None:
    winner = keep()
    outcome = Outcome(Status.WRONG, message="error is 9 times the allowed")
    getattr(script, when)[winner.artifact] = outcome
    found = only()
    assert (found.state, kinds(found)) == (State.BROKEN, [Kind.WRONG])
    assert "error is 9 times the allowed" in found.findings[0].message
    assert found.measured is not None
    assert found.measured.speedup_ci is None


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE artifacts SET binary = x'00'", "the SHA-256 of the binary"),
        ("UPDATE artifacts SET source = 'int x;'", "its source is not the one that was compiled"),
        ("DELETE FROM artifacts", "its binary is missing"),
    ],
)
def test_what_does_not_match_its_digest_is_not_run(script: Script, statement: str, message: str) -> None:
    keep()
    with closing(sqlite3.connect(env.database_path())) as connection:
        connection.execute(statement)
        connection.commit()
    found = only()
    assert (found.state, kinds(found), found.measured) == (State.BROKEN, [Kind.DIGEST], None)
    assert message in found.findings[0].message
    assert script.raced == []


@pytest.mark.parametrize(
    ("time_us", "expected"),
    [
        (50.0, []),
        (53.0, [Kind.CERTIFIED]),
        (120.0, [Kind.PYTORCH, Kind.CERTIFIED]),
        (100.0, [Kind.UNSURE, Kind.CERTIFIED]),
        (10.0, [Kind.SUSPICIOUS]),
    ],
)
def test_speed_that_does_not_hold_is_told(script: Script, time_us: float, expected: list[Kind]) -> None:
    winner = keep()
    script.times_us[str(winner.artifact)] = time_us
    found = only()
    assert kinds(found) == expected
    assert found.state is (State.SLOWER if expected else State.HOLDS)


def test_a_former_winner_that_is_faster_is_regretted(script: Script) -> None:
    former, same, now = (keep(name=name) for name in ("former", "same", "now"))
    script.times_us[str(former.artifact)] = 45.0
    found = only()
    assert (found.state, kinds(found)) == (State.SLOWER, [Kind.REGRET])
    assert "1.111x to 1.111x as fast" in found.findings[0].message
    assert script.raced == [[now.artifact, same.artifact, former.artifact]]
    script.times_us[str(former.artifact)] = 49.5
    assert only().findings == (), "1 % is what another seed may find"


def test_another_device_of_the_same_kind_is_noted_and_its_speed_is_its_own(script: Script) -> None:
    keep(target=replace(CPU, device="Another CPU, 8 threads"))
    script.baseline_us = 60.0
    found = only()
    assert (found.state, kinds(found)) == (State.HOLDS, [Kind.DEVICE])
    assert f"Another CPU, 8 threads, and this is {CPU.device}" in found.findings[0].message


def test_what_is_for_other_devices_is_left(script: Script) -> None:
    keep(target=H200)
    keep(op="sigmoid", target=replace(CPU, arch="riscv64"))
    found = verified()
    assert [each.state for each in found] == [State.LEFT, State.LEFT]
    assert {each.findings[0].message.partition(",")[0].partition(" (")[0] for each in found} == {
        "it is for NVIDIA H200",
        f"it is for {CPU.device.partition(',')[0]}",
    }
    assert script.raced == []
    assert exit_status(found) == 5


def test_an_op_that_is_another_today_is_left(script: Script, tmp_path: Path) -> None:
    file = tmp_path / "my_ops.py"
    file.write_text("import ksearch\n@ksearch.op\ndef swish(x):\n    return x * x.sigmoid()\n")
    keep(op=f"{file}:swish")
    keep(op="sigmoid", workload=replace(kernel_of("sigmoid", SHAPE, "float32", CPU).workload, program="old"))
    with Store.open(env.database_path(), readonly=True) as store:
        swish = store.winners(op="swish")
        assert verify.verify(store, swish, op=f"{file}:swish")[0].state is State.HOLDS
    from ksearch.operators import registry

    registry._ops.pop("swish")
    found = {each.winner.workload.op: each for each in verified()}
    assert "an op of a file is named with it: FILE.py:swish" in found["swish"].findings[0].message
    assert "the definition of the op has changed since" in found["sigmoid"].findings[0].message
    assert {each.state for each in found.values()} == {State.LEFT}
    with pytest.raises(UsageError), Store.open(env.database_path(), readonly=True) as store:
        verify.verify(store, swish, op=f"{file}:no_such_op")


def test_other_versions_templates_and_a_busy_machine_are_noted(script: Script) -> None:
    winner = keep()
    keep(certificate={**winner.certificate, "templates": {"cpu/rowwise.cpp.j2": "0" * 64}})
    script.environment = {**VERSIONS, "torch": "3.0.0"}
    script.conditions = (Conditions("before", load_average=0.5), Conditions("after", load_average=99.0))
    found = only()
    assert found.state is State.HOLDS
    assert kinds(found) == [Kind.TEMPLATES, Kind.VERSIONS, Kind.CONDITIONS]
    told = {finding.kind: finding.message for finding in found.findings}
    assert "cpu/rowwise.cpp.j2" in told[Kind.TEMPLATES]
    assert told[Kind.VERSIONS] == "measured under torch 2.13.0, now 3.0.0"
    assert told[Kind.CONDITIONS] == f"a load of 99.0 on {CPU.units} threads"


def test_where_pytorch_won_it_is_timed(script: Script) -> None:
    keep(config=None, launch=None, artifact=None)
    found = only()
    assert (found.state, found.findings, script.raced) == (State.HOLDS, (), [[]])
    assert found.measured is not None
    assert found.measured.time_us == found.measured.baseline_us == 100.0


# ---- the command --------------------------------------------------------------------------------------


def test_the_exit_status_is_that_of_the_worst(script: Script, run: Run) -> None:
    one, other = keep(), keep(op="sigmoid")
    status, out, _ = run("verify")
    assert status == 0
    assert out.splitlines()[-1] == "2 winners: 2 holds"
    assert re.search(r"1\.9\d\dx to 2\.0\d\dx PyTorch \(certified 1\.950x to 2\.050x\)", out)
    script.times_us[str(one.artifact)] = 60.0
    assert run("verify")[0] == 4
    script.screened[str(other.artifact)] = Outcome(Status.CRASHED, message="SIGSEGV")
    status, out, _ = run("verify")
    assert status == 3
    assert "wrong: crashed: SIGSEGV" in out
    assert run("verify", "softmax")[0] == 4
    assert run("verify", "softmax", "--shape", "64x256", "--dtype", "float32")[0] == 4


def test_as_json_it_is_one_object(script: Script, run: Run) -> None:
    winner = keep()
    script.times_us[str(winner.artifact)] = 60.0
    status, out, _ = run("verify", "--json")
    found = json.loads(out)
    assert status == found["exit_status"] == 4
    assert (found["source"], found["states"]) == (str(env.database_path()), {"slower": 1})
    (row,) = found["winners"]
    assert row["state"] == "slower"
    assert [finding["kind"] for finding in row["findings"]] == ["slower than certified"]
    assert row["certified"]["speedup_ci"] == [1.95, 2.05]
    assert row["measured"]["speedup"] == pytest.approx(100 / 60)
    assert row["measured"]["conditions"][1]["when"] == "after"


def test_a_bundle_is_verified_without_a_database(script: Script, run: Run, tmp_path: Path) -> None:
    keep()
    bundle = tmp_path / "winners.ksb"
    with Store.open(env.database_path()) as store:
        write_bundle(bundle, store, store.winners())
    env.database_path().unlink()
    status, out, _ = run("verify", bundle, "--json")
    assert (status, json.loads(out)["source"]) == (0, str(bundle))
    assert run("verify", bundle, "softmax")[0] == 0
    status, _, err = run("verify", bundle, "gelu")
    assert (status, "no winner for gelu" in err) == (2, True)
    assert not env.database_path().exists()
    content = bytearray(bundle.read_bytes())
    content[40] ^= 1
    bundle.write_bytes(content)
    status, _, err = run("verify", bundle)
    assert status == 1
    assert "changed or cut short" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("a.ksb", "b.ksb"), "one bundle"),
        (("softmax", "gelu"), "one OP at most"),
        (("--shape", "4x4"), "for a named OP"),
        (("a.ksb", "--db", "x.db"), "A bundle or --db"),
        (("--key", "k"), "--key is for a bundle"),
    ],
)
def test_bad_arguments_are_one_line(run: Run, arguments: tuple[str, ...], expected: str) -> None:
    status, out, err = run("verify", *arguments)
    assert (status, out) == (2, "")
    assert expected in err


def test_without_a_database_it_says_how_to_get_one(run: Run) -> None:
    status, _, err = run("verify")
    assert (status, "no database at" in err) == (1, True)


# ---- for real -----------------------------------------------------------------------------------------


def put(body: str, folder: Path) -> Winner:
    candidate = kernels.build(body, SHAPE[1], folder)
    winner = keep()
    binary = Path(candidate.artifact.binary).read_bytes()
    winner = replace(
        winner, launch=Launch(threads=1), artifact=digest(binary), certificate={}, created="2026-11-21"
    )
    with Store.open(env.database_path()) as store:
        store.promote(winner, source="", binary=binary, environment={})
    return winner


def test_a_real_kernel_is_checked_in_the_worker_and_raced(tmp_path: Path) -> None:
    put(kernels.CPU_SOFTMAX, tmp_path)
    with Store.open(env.database_path(), readonly=True) as store:
        (found,) = verify.verify(store, store.winners(), race_s=0.2)
    assert found.state is not State.BROKEN
    assert found.measured is not None
    assert found.measured.time_us > 0 < found.measured.ceiling_us
    assert found.measured.error is not None
    assert found.measured.error <= 1.0
    assert found.measured.errors.keys() >= {"uniform", "normal"}


def test_a_real_kernel_that_is_wrong_is_found_out(tmp_path: Path) -> None:
    body, status, _ = kernels.CPU_WRONG["lost tail"]
    put(body, tmp_path)
    with Store.open(env.database_path(), readonly=True) as store:
        (found,) = verify.verify(store, store.winners(), race_s=0.2)
    assert (found.state, kinds(found)[0]) == (State.BROKEN, Kind.WRONG)
    assert found.findings[0].message.startswith(str(status))
