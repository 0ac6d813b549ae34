"""Ways of taking products are tried on the bare linear; pool and worker are scripted, the rest is real."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from ksearch import admission, backends, families
from ksearch.evaluate.pool import Build
from ksearch.operators import get
from ksearch.plan import Plan
from ksearch.types import Artifact, Candidate, Outcome, Source, Status, Target

H200 = Target("cuda", "sm_90", "NVIDIA H200", units=132, memory_bytes=143 << 30, smem_bytes=232448)
ARTIFACT = Artifact("key", "/nowhere", "/nowhere/kernel.cubin", "digest")


def make_plan(op: str = "linear_sigmoid_sum", dtype: str = "float32", policy: str = "strict") -> Plan:
    found = get(op)
    workload = found.workload((128, 8192, 2048), dtype, policy=policy)
    program = found.program(**dict(workload.options))
    family = families.find(found, "cuda", **dict(workload.options))
    return Plan(found, workload, H200, backends.get("cuda"), family, program)


@dataclass
class Pool:
    """Compiles all but what `broken` names."""

    broken: set[str] = field(default_factory=set)
    sources: dict[str, Source] = field(default_factory=dict)

    def submit(self, tag: str, source: Source) -> None:
        self.sources[tag] = source

    def completed(self, wait_for_all: bool = False) -> list[Build]:
        assert wait_for_all
        return [
            Build(way, status=Status.COMPILE_ERROR, message="no such instruction")
            if way in self.broken
            else Build(way, ARTIFACT)
            for way in self.sources
        ]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the worker is asked about: the job, then the candidates. It finds bf16x3 wrong."""
    asked: list[Any] = []

    class Worker:
        def __init__(self, job: Any) -> None:
            asked.append(job)

        def __enter__(self) -> Worker:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def start(self) -> None:
            pass

        def screen(self, candidate: Candidate) -> Outcome:
            asked.append(candidate)
            if candidate.config["scheme"] == "bf16x3":
                return Outcome(Status.WRONG, error=2.5, message="error is 2.50 times the allowed")
            return Outcome(Status.PASSED, time_us=10.0, error=0.5)

    monkeypatch.setattr(admission, "Worker", Worker)
    return asked


def test_what_is_too_far_off_on_the_bare_linear_is_not_searched(seen: list[Any]) -> None:
    plan = make_plan()
    assert any(config["scheme"] == "bf16x3" for config in plan.space)
    admitted = admission.admit(plan, Pool(), seed=3)  # type: ignore[arg-type]
    assert {way.partition("/")[0] for way in admitted.barred_ways} == {"bf16x3"}
    assert set(admitted.way_errors) >= {"fp16x3/128", "fp16x3/256", "bf16x6/128", "tf32x3/256"}
    assert all("2.50 times" in message for message in admitted.barred_ways.values())
    left = {config["scheme"] for config in admitted.space if config["strategy"] == "direct"}
    assert left == {"fp16x3", "bf16x6", "tf32x3", "simt"}
    assert all(admitted.space.allows(config) for config in admitted.guesses)


def test_it_is_tried_on_the_linear_alone_of_the_same_shape(seen: list[Any]) -> None:
    pool = Pool()
    admission.admit(make_plan(), pool, seed=3)  # type: ignore[arg-type]
    job, *candidates = seen
    assert (job.workload.op, job.workload.shape_text, job.seed) == ("linear", "128x8192x2048", 3)
    assert len(candidates) == len(pool.sources) == 12  # four schemes, promoted after 64, 128 or 256


def test_a_way_that_does_not_compile_is_barred(seen: list[Any]) -> None:
    admitted = admission.admit(make_plan(), Pool({"tf32x3/128"}), seed=0)  # type: ignore[arg-type]
    assert admitted.barred_ways["tf32x3/128"] == "no such instruction"


@pytest.mark.parametrize(
    ("op", "dtype", "policy"),
    [
        ("linear", "float32", "strict"),
        ("linear_sigmoid_sum", "bfloat16", "strict"),
        ("linear_relu", "float32", "tf32"),
    ],
)
def test_nothing_is_tried_where_there_is_one_way(seen: list[Any], op: str, dtype: str, policy: str) -> None:
    """The bare linear is checked by its own search; 16-bit and TF32 products are PyTorch's own."""
    plan = make_plan(op, dtype, policy)
    assert admission.admit(plan, Pool(), seed=0) is plan  # type: ignore[arg-type]
    assert seen == []


def test_other_families_have_no_ways(seen: list[Any]) -> None:
    op = get("softmax")
    workload = op.workload((64, 128))
    plan = Plan(op, workload, H200, backends.get("cuda"), families.find(op, "cuda"), op.program())
    assert admission.admit(plan, Pool(), seed=0) is plan  # type: ignore[arg-type]
