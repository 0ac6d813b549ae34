from __future__ import annotations

from dataclasses import replace

from ksearch.certificate import Certificate, Conditions, Finalist, Sanitized, Tie
from ksearch.report import certificate
from ksearch.types import Target, Winner

WHOLE = Certificate(
    form=2,
    seed=7,
    samples_us=[12.0] * 60,
    baseline_samples_us=[18.0] * 60,
    ceiling_samples_us=[11.0] * 60,
    spread_us=0.1,
    baseline_spread_us=0.2,
    speedup_ci=[1.49, 1.51],
    of_ceiling_ci=[0.91, 0.925],
    over_runner_up_ci=[0.999, 1.004],
    runner_up_config={"vec": 4},
    regret=0.0012,
    tie=Tie((Finalist({"vec": 8}, 12.0, 32, 0, 0), Finalist({"vec": 4}, 12.01, 40, 0, 0)), "registers"),
    error=0.31,
    errors={"uniform": {"kernel": 1.2e-7, "pytorch": 1.1e-7}},
    sanitizer=Sanitized("2026.4", 512, {"memcheck": "no errors", "racecheck": "no errors"}),
    registers=32,
    spill_bytes=0,
    smem_bytes=16384,
    source_digest="ab" * 32,
    templates={"cuda/rowwise.cu.j2": "cd" * 32},
    conditions=(Conditions("after", 1980, 2619, 41, 350, "power cap", 1, 0.5),),
    near=[[256, 1.4], [512, 1.5]],
)
GPU = Target("cuda", "sm_90", "NVIDIA H200")


def test_a_person_reads_how_sure_it_is(winner: Winner) -> None:
    known = replace(winner, target=GPU, certificate=WHOLE.to_json())
    said = dict(certificate.lines(known, {"torch": "2.13.0", "arch": "sm_90", "ksearch": "0.1.0"}))
    assert said == {
        "samples": "kernel 12.00 ± 0.10 us, PyTorch 18.00 ± 0.20 us, ceiling 11.00 us: "
        "medians of 60 paired rounds",
        "of ceiling": "91.0 to 92.5 %, with 95 % confidence",
        "runner-up": "0.999x to 1.004x its speed, with 95 % confidence: vec=4",
        "tie": "2 finalists cannot be told apart; broken by registers: 32 against 40",
        "regret": "another finalist is at most 0.1 % faster, with 95 % confidence",
        "errors": "uniform 1.2e-07 (PyTorch 1.1e-07); the largest is 0.31 of what is allowed",
        "sanitizer": "memcheck no errors, racecheck no errors (compute-sanitizer 2026.4, 512 rows)",
        "other rows": "1.40x at 256, 1.50x at 512",
        "kernel": "32 registers, 16,384 bytes of shared memory, nothing spilled",
        "conditions": "after 1,980 MHz, memory 2,619 MHz, 41 °C, 350 W, slowed down by power cap, "
        "1 other process, load 0.50",
        "measured under": "ksearch 0.1.0, torch 2.13.0, arch sm_90",
        "digests": "binary abababababab, source abababababab, cuda/rowwise.cu.j2 cdcdcdcdcdcd",
        "seed": "7",
    }


def test_of_an_older_certificate_there_is_less_to_say(winner: Winner) -> None:
    assert [name for name, _ in certificate.lines(winner, {})] == ["digests"]
    assert certificate.lines(replace(winner, artifact=None, certificate={}), {}) == []


def test_a_tie_broken_by_something_else_says_by_what(winner: Winner) -> None:
    def tie(criterion: str) -> str:
        known = replace(
            WHOLE, tie=Tie((Finalist({}, 12.0, 32, 0, 1), Finalist({}, 12.01, 32, 64, 2)), criterion)
        )
        return dict(certificate.lines(replace(winner, certificate=known.to_json()), {}))["tie"]

    assert tie("shared memory").endswith("broken by shared memory: 0 bytes against 64 bytes")
    assert tie("simplicity").endswith("broken by simplicity: 1 mechanisms against 2 mechanisms")
    assert tie("time").endswith("broken by time: 12.00 us against 12.01 us")
