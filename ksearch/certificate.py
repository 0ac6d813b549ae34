"""A winner's certificate: what was measured, how sure it is, and under which conditions. Typed, and as JSON.

`Winner.certificate` is the JSON; `Certificate.read` gives it types. The names of the JSON are those of the
fields; what is not known is left out, so that certificates of older versions read as ones that know less.
The versions of driver, CUDA, torch, compiler and ksearch lie beside it (`Store.environment`), because many
winners share them. docs/certificates.md tells what each part says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ksearch.errors import StoreError
from ksearch.types import ConfigValue, Target

FORM = 2
"""Of the JSON. Form 1 had no number, and knew neither the tie, the conditions, the runner-up's samples, nor
the digests of templates and source."""

_BUSY = 1.5
"""Load by threads of a CPU that has other work to do than the kernel's, whose threads count, too."""


@dataclass(frozen=True, slots=True)
class Finalist:
    """One of those that cannot be told apart from the fastest, with what the tie is broken by."""

    config: dict[str, ConfigValue]
    time_us: float
    """Median."""
    registers: int
    """Of a thread; 0 on a CPU."""
    smem_bytes: int
    """Of a block, static and dynamic."""
    mechanisms: int
    """Things beyond a plain grid that its launch needs: clusters, splits, persistent grids, workspaces,
    scratch, tensor maps, further kernels."""


@dataclass(frozen=True, slots=True)
class Tie:
    """The finalists that the samples cannot tell apart: the 95 % interval of their times' ratio holds 1."""

    members: tuple[Finalist, ...]
    """The chosen one first, then the others by time."""
    broken_by: str
    """`registers`, `shared memory`, `simplicity` or `time`; empty where there was nothing to break."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The state of the device at one moment; None or empty is not known (the CPU has no such counters)."""

    when: str
    """`before` the first round of the final comparison, or `after` its last."""
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: int | None = None
    throttled_by: str | None = None
    """What slowed the clocks down; `nothing`."""
    other_processes: int | None = None
    """On the device, besides the one that measured."""
    load_average: float | None = None
    """Of the host over the last minute: processes that want a core."""


@dataclass(frozen=True, slots=True)
class Sanitized:
    """What compute-sanitizer said of the winner."""

    version: str
    rows: int
    """That the kernel was run on."""
    found: dict[str, str]
    """For each tool `no errors`, or `not finished within ...`; what had errors is no winner."""


@dataclass(frozen=True, slots=True)
class Packing:
    """What it takes to pack a weight once, which is in no sample of a prepacked kernel."""

    time_us: float
    """Median."""
    size_bytes: int
    """Of the packed weight, which lies in memory beside the weight."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is known of a winner. Where PyTorch won, the kernel's parts are those of the fastest finalist.

    Samples are in microseconds; sample i of each list was taken in round i, so that they pair up. Intervals
    are of 95 %, bootstrapped over the pairs.
    """

    form: int = 1
    seed: int | None = None
    """Of inputs, search and bootstrap."""

    # The final comparison
    samples_us: list[float] | None = None
    """Of the kernel."""
    baseline_samples_us: list[float] | None = None
    """Of PyTorch."""
    ceiling_samples_us: list[float] | None = None
    runner_up_samples_us: list[float] | None = None
    spread_us: float | None = None
    """Half the distance between the quartiles of the kernel's samples; the same for the next two."""
    baseline_spread_us: float | None = None
    ceiling_spread_us: float | None = None
    speedup_ci: list[float] | None = None
    """Interval of PyTorch's time by the kernel's."""
    over_runner_up_ci: list[float] | None = None
    """Interval of the runner-up's time by the kernel's."""
    of_ceiling_ci: list[float] | None = None
    """Interval of the ceiling's time by the kernel's: 1 is at the ceiling."""
    regret: float | None = None
    """By how much another finalist may be faster at most, with 95 % confidence: 0.004 is 0.4 %."""
    fastest_config: dict[str, ConfigValue] | None = None
    """Of the kernel, which is kept where PyTorch won, too."""
    runner_up_config: dict[str, ConfigValue] | None = None
    tie: Tie | None = None
    alarm: str | None = None
    """What a person should look into."""

    # Its results
    error: float | None = None
    """Largest, as a multiple of what is allowed."""
    errors: dict[str, dict[str, float]] | None = None
    """For each regime of values the largest error, relative to its row's largest value: `kernel` and
    `pytorch`."""
    products: str | None = None
    """How a linear's products are taken."""
    product_errors: dict[str, float] | None = None
    """For each way that was admitted its largest error, as a multiple of what is allowed."""
    barred_products: dict[str, str] | None = None
    """The ways that were not, and why."""
    sanitizer: Sanitized | None = None

    # What it is
    packing: Packing | None = None
    registers: int | None = None
    spill_bytes: int | None = None
    smem_bytes: int | None = None
    source_key: str | None = None
    """Folder of the artifact in the cache of the machine that it was found on."""
    source_digest: str | None = None
    """SHA-256 of the source text."""
    templates: dict[str, str] | None = None
    """For each template file that the source is made of, its SHA-256."""

    # The circumstances
    conditions: tuple[Conditions, ...] | None = None
    study: str | None = None
    trials: int | None = None
    failures: dict[str, int] | None = None
    """Failed candidates by status."""
    ended: str | None = None
    """Why the search ended."""
    near: list[list[float]] | None = None
    """Pairs of a number of rows and the speed-up over PyTorch there."""

    def to_json(self) -> dict[str, Any]:
        """What is known, by name; as it reads back from a file, lists for tuples."""
        known: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in known.items() if value is not None}

    @classmethod
    def read(cls, known: Mapping[str, Any]) -> Certificate:
        """From JSON of any form; names that this version does not know are left out.

        Raises StoreError where a part is not what its name says.
        """
        parts = {each.name: known[each.name] for each in fields(cls) if known.get(each.name) is not None}
        try:
            if "tie" in parts:
                members = tuple(Finalist(**each) for each in parts["tie"]["members"])
                parts["tie"] = Tie(members, str(parts["tie"]["broken_by"]))
            if "conditions" in parts:
                parts["conditions"] = tuple(Conditions(**each) for each in parts["conditions"])
            if "sanitizer" in parts:
                parts["sanitizer"] = Sanitized(**parts["sanitizer"])
            if "packing" in parts:
                parts["packing"] = Packing(**parts["packing"])
        except (TypeError, KeyError) as error:
            raise StoreError(f"a certificate does not read ({error}); tune that workload again") from error
        return cls(**parts)

    @property
    def rounds(self) -> int:
        """Of the final comparison."""
        return len(self.baseline_samples_us or ())


def disturbances(found: Sequence[Conditions], target: Target) -> list[str]:
    """What makes times that were measured under these conditions say little."""
    others = max((each.other_processes or 0 for each in found), default=0)
    reasons = [f"{others} other process{'es' * (others > 1)} on the device"] if others else []
    reasons += [
        f"slowed down by {each.throttled_by}" for each in found if each.throttled_by not in (None, "nothing")
    ]
    load = max((each.load_average or 0.0 for each in found), default=0.0)
    if target.backend == "cpu" and load > _BUSY * target.units:
        reasons.append(f"a load of {load:.1f} on {target.units} threads")
    return list(dict.fromkeys(reasons))  # before and after may be slowed down by the same
