from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from ksearch.report import text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3276.4, "3,276"), (1000.0, "1,000"), (731.25, "731.2"), (73.14, "73.14"), (0.5, "0.50"), (None, "-")],
)
def test_time(value: float | None, expected: str) -> None:
    assert text.time_us(value) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0.0 KB"), (15_999, "16.0 KB"), (999_999, "1000.0 KB"), (22_400_000, "22.4 MB")],
)
def test_size(count: int, expected: str) -> None:
    assert text.size(count) == expected


def test_one_is_not_many() -> None:
    assert [text.many(count, "kind") for count in (0, 1, 2000)] == ["0 kinds", "1 kind", "2,000 kinds"]


def test_what_is_not_finite_is_a_dash() -> None:
    assert text.time_us(math.nan) == text.times(math.inf) == text.percent(math.nan) == "-"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, "0.0 s"), (48.31, "48.3 s"), (59.99, "1:00"), (60, "1:00"), (725, "12:05"), (3725, "1:02:05")],
)
def test_duration(seconds: float, expected: str) -> None:
    assert text.duration(seconds) == expected


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        ("2026-11-20T12:00:00Z", "0 min"),
        ("2026-11-20T11:01:00+00:00", "59 min"),
        ("2026-11-18T14:00:00.123456", "46 h"),
        ("2026-11-08T00:00:00Z", "12 d"),
        ("2026-11-21T00:00:00Z", "0 min"),
        ("", "-"),
    ],
)
def test_an_age_has_one_unit(created: str, expected: str) -> None:
    assert text.age(created, datetime(2026, 11, 20, 12, tzinfo=UTC)) == expected


def test_counts_name_the_most_frequent_first_and_leave_zeros_out() -> None:
    assert text.counts({"wrong": 1, "timeout": 3, "crashed": 0}) == "3 timeout, 1 wrong"


def test_a_config_is_its_names_and_values() -> None:
    assert text.config({"block": 256, "online": True}) == "block=256 online=True"
    assert text.config(None) == "PyTorch"
