from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from ksearch.errors import StoreError
from ksearch.launch import Launch
from ksearch.store import Store
from ksearch.types import Artifact, Outcome, Status, Target, Winner, Workload, digest

WORKLOAD = Workload(
    op="rmsnorm",
    shape=(3, 5, 4096),
    dtype="bfloat16",
    options=(("approximate", "tanh"), ("causal", True), ("eps", 1e-6), ("groups", 1), ("scale", 1.0)),
    program="0123abcd",
    layout="contiguous",
    policy="relaxed",
    regime="warm",
)
TARGET = Target(
    backend="cuda",
    arch="sm_90",
    device="NVIDIA H200",
    index=3,
    units=132,
    memory_bytes=150_000_000_000,
    smem_bytes=232448,
    cache_bytes=62_914_560,
)
BINARY = b"\x7fELF\0binary\xff"
ENVIRONMENT = {"ksearch": "0.1.0", "torch": "2.13.0"}


def winner(
    workload: Workload = WORKLOAD, target: Target = TARGET, binary: bytes = BINARY, **changes
) -> Winner:
    facts = {
        "config": {"block": 256, "exp": "fast", "cache": True},
        "launch": Launch(block=256, cluster=2, smem_bytes=1024, persistent=True, alignment=16),
        "artifact": digest(binary),
        "time_us": 10.0,
        "baseline_us": 25.0,
        "ceiling_us": 9.0,
        "certificate": {"samples": [10.0, 10.1], "confidence": [2.4, 2.6], "seed": None},
        "created": "2026-01-02T03:04:05+00:00",
    }
    return Winner(workload=workload, target=target, **{**facts, **changes})


def promote(store: Store, promoted: Winner, binary: bytes = BINARY, log: str = "") -> None:
    kernel = promoted.artifact is not None
    store.promote(
        promoted,
        source="int main;" if kernel else None,
        binary=binary if kernel else None,
        log=log,
        environment=ENVIRONMENT,
    )


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "results" / "ksearch.db") as opened:
        yield opened


def record(store: Store, number: int, config: dict, outcome: Outcome | None = None, **where) -> None:
    place = {"workload": WORKLOAD, "target": TARGET, "study": "first", "artifact": None, **where}
    store.record(
        number=number, config=config, outcome=outcome or Outcome(Status.WRONG, message="bad"), **place
    )


def test_an_evaluation_comes_back_as_recorded(store):
    passed = Outcome(Status.PASSED, time_us=3.25, spread_us=0.125, repeats=40, error=0.5)
    artifact = Artifact("key", "/folder", "/folder/k.so", "abc", registers=40, spill_bytes=8, compile_s=0.75)
    config = {"block": 256, "exp": "fast", "cache": True}
    record(store, 7, config, passed, artifact=artifact)
    failed = Outcome(Status.COMPILE_ERROR, message="softmax.cu.j2:12: expected ';'")
    record(store, 8, {"block": 512, "exp": "fast", "cache": False}, failed)
    first, second = store.evaluations(WORKLOAD, TARGET)
    assert (first.study, first.number, first.config, first.outcome) == ("first", 7, config, passed)
    assert type(first.config["cache"]) is bool
    assert (first.artifact_key, first.artifact_digest) == ("key", "abc")
    assert (first.registers, first.spill_bytes, first.compile_s) == (40, 8, 0.75)
    assert first.created.endswith("+00:00")
    assert second.outcome == failed
    assert second.artifact_key is None


def test_a_workload_with_a_linear_comes_back_and_is_found_by_its_key(store):
    linear = Workload("linear", (2, 3, 8), options=(("bias", "row"),), program="p", policy="tf32", inner=16)
    plain = Workload("linear", (2, 3, 8), options=(("bias", "row"),), program="q")
    others = [replace(linear, inner=32), replace(linear, policy="strict"), plain]
    for number, workload in enumerate([linear, *others]):
        promote(store, winner(workload, time_us=1.0 + number))
    assert [store.find(each, TARGET).time_us for each in (linear, *others)] == [1.0, 2.0, 3.0, 4.0]
    assert store.find(linear, TARGET).workload == linear
    assert sorted(w.workload.inner for w in store.winners(op="linear")) == [0, 16, 16, 32]
    assert [w.workload.inner for w in store.neighbours(linear, TARGET)] == [32]


def test_the_same_config_is_kept_once_per_study_whatever_its_order(store):
    record(store, 0, {"a": 1, "b": 2})
    record(store, 1, {"b": 2, "a": 1}, Outcome(Status.PASSED, time_us=1.0))
    record(store, 0, {"a": 1, "b": 2}, study="second")
    kept = [(e.study, e.number, e.outcome.status) for e in store.evaluations(WORKLOAD, TARGET)]
    assert kept == [("first", 1, Status.PASSED), ("second", 0, Status.WRONG)]


def test_a_later_check_of_the_same_binary_keeps_what_is_known_of_it(store):
    artifact = Artifact("key", "/folder", "/folder/k.so", "abc", registers=40, spill_bytes=8, compile_s=0.75)
    record(store, 0, {"a": 1}, Outcome(Status.PASSED, time_us=1.0), artifact=artifact)
    record(store, 0, {"a": 1}, Outcome(Status.NONDETERMINISTIC))
    (kept,) = store.evaluations(WORKLOAD, TARGET)
    assert kept.outcome == Outcome(Status.NONDETERMINISTIC)
    assert (kept.artifact_key, kept.artifact_digest) == ("key", "abc")
    assert (kept.registers, kept.spill_bytes, kept.compile_s) == (40, 8, 0.75)


def test_evaluations_are_those_of_the_workload_and_the_kind_of_target(store):
    other_workload = Workload("rmsnorm", (3, 5, 4096))
    twin = Target("cuda", "sm_90", "NVIDIA H200", index=1)
    stranger = Target("cuda", "sm_80", "NVIDIA A100")
    for number, where in enumerate(
        [{}, {"workload": other_workload}, {"target": twin}, {"target": stranger}]
    ):
        record(store, number, {"a": 1}, **where)
    assert [e.number for e in store.evaluations(WORKLOAD, TARGET)] == [0, 2]
    assert [e.number for e in store.evaluations(WORKLOAD, stranger)] == [3]


@pytest.mark.parametrize("shape", [(), (7,), (1, 1), (4096, 393216)])
def test_workload_target_and_winner_come_back_exactly(store, shape):
    promoted = winner(Workload(**{**{f: getattr(WORKLOAD, f) for f in WORKLOAD.__slots__}, "shape": shape}))
    promote(store, promoted)
    found = store.find(promoted.workload, TARGET)
    assert found == promoted
    assert repr(found) == repr(promoted), "equal, but 1 became 1.0 or True"
    assert found.workload.key == promoted.workload.key


def test_a_workload_that_differs_in_anything_is_another(store):
    promote(store, winner())
    for field, value in {
        "dtype": "float16",
        "options": (),
        "policy": "strict",
        "program": "",
        "shape": (15, 4096),
    }.items():
        changed = Workload(**{**{f: getattr(WORKLOAD, f) for f in WORKLOAD.__slots__}, field: value})
        assert store.find(changed, TARGET) is None, field
    assert store.find(WORKLOAD, Target("cuda", "sm_90", "NVIDIA H100")) is None


def test_a_newer_winner_takes_over_and_the_older_stays_as_history(store):
    first, second, third = (winner(time_us=t, created=f"2026-01-0{t:.0f}") for t in (3, 2, 1))
    for each in (first, second):
        promote(store, each)
    promote(store, third, log="registers: 12")
    assert store.find(WORKLOAD, TARGET) == third
    assert store.winners() == [third]
    assert store.history(WORKLOAD, TARGET) == [first, second, third]


def test_two_equal_gpus_of_a_host_share_one_winner(store):
    promote(store, winner())
    promote(store, winner(target=Target("cuda", "sm_90", "NVIDIA H200", index=1), time_us=9.5))
    assert [w.time_us for w in store.winners()] == [9.5]


def test_where_pytorch_won_there_is_no_config_and_no_artifact(store):
    promoted = winner(config=None, launch=None, artifact=None, time_us=25.0)
    promote(store, promoted)
    found = store.find(WORKLOAD, TARGET)
    assert found == promoted
    assert found.status == "baseline"


def test_the_database_is_complete_in_itself(store):
    promote(store, winner(), log="ptxas info: 12 registers")
    stored = store.artifact(digest(BINARY))
    assert (stored.source, stored.binary, stored.log) == ("int main;", BINARY, "ptxas info: 12 registers")
    assert store.artifact("0" * 64) is None
    assert store.environment(WORKLOAD, TARGET) == ENVIRONMENT


def test_created_is_set_where_it_is_missing(store):
    promote(store, winner(created=""))
    assert store.find(WORKLOAD, TARGET).created.startswith("20")


@pytest.mark.parametrize(
    ("promoted", "source", "binary", "words"),
    [
        (winner(), "text", b"another", "not the one that was measured"),
        (winner(), None, BINARY, "both source and binary"),
        (winner(), None, None, "both source and binary"),
        (winner(config=None, launch=None, artifact=None), "text", BINARY, "both source and binary"),
    ],
)
def test_a_winner_without_its_own_binary_is_refused(store, promoted, source, binary, words):
    with pytest.raises(StoreError, match=words):
        store.promote(promoted, source=source, binary=binary, environment={})
    assert store.winners() == []


def test_winners_are_filtered_and_ordered(store):
    gpu, cpu = TARGET, Target("cpu", "x86_64-avx2", "Xeon 2 threads")
    for op, shape, dtype, target in [
        ("softmax", (8, 128), "float32", gpu),
        ("softmax", (8, 64), "float32", gpu),
        ("softmax", (8, 64), "float16", cpu),
        ("sigmoid", (8, 64), "float32", cpu),
    ]:
        promote(store, winner(Workload(op, shape, dtype), target))

    def seen(**filters):
        return [(w.workload.op, w.workload.cols, w.target.backend) for w in store.winners(**filters)]

    assert seen() == [
        ("sigmoid", 64, "cpu"),
        ("softmax", 64, "cpu"),
        ("softmax", 64, "cuda"),
        ("softmax", 128, "cuda"),
    ]
    assert seen(op="sigmoid") == [("sigmoid", 64, "cpu")]
    assert seen(dtype="float16") == [("softmax", 64, "cpu")]
    assert (
        seen(device="cuda")
        == seen(device="NVIDIA H200")
        == [("softmax", 64, "cuda"), ("softmax", 128, "cuda")]
    )
    assert seen(op="softmax", device="tpu") == []


def test_neighbours_are_the_nearest_kernels_of_the_same_computation(store):
    def at(*shape, op="softmax", dtype="float32", program="p"):
        return Workload(op, shape, dtype, program=program)

    for workload in [at(4096, 1024), at(64, 4096), at(4096, 4096), at(4096, 65536), at(1000, 5000)]:
        promote(store, winner(workload))
    promote(store, winner(at(4096, 4097), config=None, launch=None, artifact=None))
    promote(store, winner(at(4096, 4099), Target("cuda", "sm_80", "NVIDIA A100")))
    for other in [at(4096, 4098, op="sigmoid"), at(4096, 4098, dtype="float16"), at(4096, 4098, program="q")]:
        promote(store, winner(other))
    found = [w.workload.shape for w in store.neighbours(at(4096, 4100), TARGET, limit=4)]
    assert found == [(4096, 4096), (64, 4096), (1000, 5000), (4096, 1024)]
    assert [w.workload.shape for w in store.neighbours(at(4096, 4096), TARGET, limit=1)] == [(64, 4096)]


def test_a_killed_process_loses_nothing_it_recorded(tmp_path):
    path = tmp_path / "k.db"
    code = f"""
import sys
from ksearch.store import Store
from ksearch.types import Outcome, Status, Target, Workload
store = Store.open({str(path)!r})
workload, target, wrong = Workload("w", (1, 2)), Target("cpu", "a", "d"), Outcome(Status.WRONG)
for number in range(10**6):
    store.record(workload, target, "s", number, {{"n": number}}, wrong)
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == 30:
                process.send_signal(signal.SIGKILL)
                break
        rest = [int(line) for line in process.stdout if line.endswith("\n")]
    said = max(rest, default=30)
    with Store.open(path) as store:
        numbers = [e.number for e in store.evaluations(Workload("w", (1, 2)), Target("cpu", "a", "d"))]
    assert numbers[: said + 1] == list(range(said + 1))
    assert len(numbers) <= said + 2, "nothing that was never recorded"


def test_recording_is_cheap(store):
    began = time.perf_counter()
    for number in range(100):
        record(store, number, {"n": number})
    assert (time.perf_counter() - began) / 100 < 0.02, "1.1 ms was measured; ten times that is a defect"


def test_readers_see_whole_winners_while_a_writer_writes(store):
    """Another process's view: own connections, read-only."""
    done, seen, failures = threading.Event(), [], []
    promote(store, winner(time_us=1000.0, baseline_us=1000.0))

    def read() -> None:
        with Store.open(store.path, readonly=True) as reader:
            while not done.is_set():
                found = reader.find(WORKLOAD, TARGET)
                if found is None or found.time_us != found.baseline_us:
                    failures.append(found)
                seen.append(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(40):
        promote(store, winner(time_us=float(number + 1), baseline_us=float(number + 1)))
    done.set()
    for reader in readers:
        reader.join()
    assert seen
    assert failures == []


def test_two_writers_wait_for_each_other(store):
    def write(study: str) -> None:
        with Store.open(store.path) as mine:
            for number in range(25):
                record(mine, number, {"n": number}, study=study)

    writers = [threading.Thread(target=write, args=(name,)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(store.evaluations(WORKLOAD, TARGET)) == 50


def test_one_store_serves_several_threads(store):
    threads = [threading.Thread(target=record, args=(store, n, {"n": n})) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(e.number for e in store.evaluations(WORKLOAD, TARGET)) == list(range(16))


def test_importing_the_store_needs_neither_torch_nor_optuna():
    code = "import sys, ksearch.store; print({'torch', 'optuna', 'jinja2'} & set(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert out.stdout.strip() == "set()"
