from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from ksearch.certificate import Certificate, Conditions, Finalist, Packing, Sanitized, Tie
from ksearch.errors import StoreError

WHOLE = Certificate(
    form=2,
    seed=7,
    samples_us=[1.0, 1.5],
    baseline_samples_us=[2.0, 2.5],
    speedup_ci=[1.6, 2.0],
    tie=Tie((Finalist({"n": 1}, 1.25, 32, 0, 1), Finalist({"n": 2}, 1.26, 40, 0, 0)), "registers"),
    conditions=(Conditions("before"), Conditions("after", 1980, 2619, 41, 350, "nothing", 0, 0.5)),
    sanitizer=Sanitized("2026.4", 64, {"memcheck": "no errors"}),
    failures={},
    near=[[2, 1.5]],
)


def test_json_and_back_is_the_same() -> None:
    text = json.dumps(WHOLE.to_json())
    assert Certificate.read(json.loads(text)) == WHOLE
    assert json.loads(text)["failures"] == {}, "known to be empty is not unknown"
    assert "alarm" not in json.loads(text)


def test_an_older_certificate_knows_less() -> None:
    known = Certificate.read({"speedup_ci": [1.4, 1.6], "samples_us": [1.0] * 40, "torch": "2.13.0"})
    assert (known.form, known.speedup_ci, known.tie, known.conditions) == (1, [1.4, 1.6], None, None)
    assert known.rounds == 0
    assert Certificate.read({}) == Certificate()


@pytest.mark.parametrize(
    "altered",
    [
        {"tie": {"broken_by": "time"}},
        {"tie": [1]},
        {"tie": {"members": [{"config": {}}], "broken_by": ""}},
        {"conditions": [{"when": "before", "mood": "good"}]},
        {"conditions": 3},
        {"sanitizer": {"version": "1"}},
    ],
)
def test_what_does_not_read_is_one_error(altered: dict[str, object]) -> None:
    with pytest.raises(StoreError, match=r"a certificate does not read \(.*\); tune that workload again"):
        Certificate.read(altered)


def test_every_part_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs/certificates.md").read_text()
    for kind in (Certificate, Conditions, Finalist, Packing, Sanitized, Tie):
        missing = [each.name for each in fields(kind) if f"`{each.name}`" not in text]
        assert missing == [], kind
