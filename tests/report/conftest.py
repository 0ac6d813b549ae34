"""One winner and one baseline, as the store gives them back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ksearch.launch import Launch
from ksearch.types import Target, Winner, Workload


@pytest.fixture
def winner() -> Winner:
    return Winner(
        workload=Workload("softmax", (2048, 4096), options=(("scale", 0.5),)),
        target=Target("cpu", "x86_64-avx512", "Some CPU [2 threads]", units=2),
        config={"simd": 64, "unroll": 4, "store": "stream", "online": True},
        launch=Launch(threads=2, alignment=4),
        artifact="ab" * 32,
        time_us=1240.25,
        baseline_us=1880.0,
        ceiling_us=1066.0,
        certificate={"speedup_ci": [1.47, 1.55], "samples_us": [1.0] * 40, "torch": "2.13.0"},
        created="2026-11-20T12:00:00Z",
    )


@pytest.fixture
def baseline(winner: Winner) -> Winner:
    """The same workload where PyTorch won."""
    return replace(winner, config=None, launch=None, artifact=None, time_us=1880.0, certificate={})
