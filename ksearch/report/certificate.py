"""A certificate as the lines that a person reads: how sure it is, and what could make it less so."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from ksearch.certificate import Certificate, Conditions, Finalist
from ksearch.report import text
from ksearch.types import Winner

_FIRST = ("ksearch", "torch", "cuda", "driver", "compiler")
_SHORT = 12
"""Digits of a digest that a person compares; `--json` has all."""


def lines(winner: Winner, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of a name and what there is to say; of an older certificate fewer of them.

    Raises StoreError where the certificate does not read.
    """
    known = Certificate.read(winner.certificate)
    found = [
        ("samples", _samples(known)),
        ("of ceiling", _percent_range(known.of_ceiling_ci)),
        ("runner-up", _runner_up(known)),
        ("tie", _tie(known)),
        ("regret", _regret(known)),
        ("errors", "; ".join(_errors(known))),
        ("products", _products(known)),
        ("sanitizer", _sanitizer(known)),
        ("other rows", _near(known)),
        ("packing", _packing(known)),
        ("kernel", _kernel(winner, known)),
        ("conditions", "; ".join(map(_condition, known.conditions or ()))),
        ("measured under", ", ".join(f"{name} {value}" for name, value in _ordered(environment))),
        ("digests", ", ".join(_digests(winner, known))),
        ("seed", "" if known.seed is None else str(known.seed)),
    ]
    return [(name, said) for name, said in found if said]


def _samples(known: Certificate) -> str:
    named = (
        ("kernel", known.samples_us, known.spread_us),
        ("PyTorch", known.baseline_samples_us, known.baseline_spread_us),
        ("ceiling", known.ceiling_samples_us, known.ceiling_spread_us),
    )
    said = [_median(name, samples, spread_us) for name, samples, spread_us in named if samples]
    return f"{', '.join(said)}: medians of {known.rounds} paired rounds" if known.rounds else ""


def _median(name: str, samples_us: Sequence[float], spread_us: float | None) -> str:
    spread = "" if spread_us is None else f" ± {text.time_us(spread_us)}"
    return f"{name} {text.time_us(statistics.median(samples_us))}{spread} us"


def _percent_range(interval: Sequence[float] | None) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f} %, with 95 % confidence"


def _runner_up(known: Certificate) -> str:
    if known.over_runner_up_ci is None:
        return ""
    low, high = known.over_runner_up_ci
    which = "" if known.runner_up_config is None else f": {text.config(known.runner_up_config)}"
    return f"{low:.3f}x to {high:.3f}x its speed, with 95 % confidence{which}"


def _tie(known: Certificate) -> str:
    if known.tie is None:
        return ""
    count = len(known.tie.members)
    if count == 1:
        return "none: every other finalist is surely slower"
    facts = " against ".join(_deciding(each, known.tie.broken_by) for each in known.tie.members)
    return f"{count} finalists cannot be told apart; broken by {known.tie.broken_by}: {facts}"


def _deciding(finalist: Finalist, criterion: str) -> str:
    said = {
        "registers": str(finalist.registers),
        "shared memory": f"{finalist.smem_bytes:,} bytes",
        "simplicity": f"{finalist.mechanisms} mechanisms",
    }
    return said.get(criterion) or f"{text.time_us(finalist.time_us)} us"


def _regret(known: Certificate) -> str:
    if known.regret is None:
        return ""
    if known.regret == 0.0:
        return "none: no other finalist is faster, with 95 % confidence"
    return f"another finalist is at most {100 * known.regret:.1f} % faster, with 95 % confidence"


def _errors(known: Certificate) -> Iterator[str]:
    if known.errors:
        pairs = ((regime, found["kernel"], found["pytorch"]) for regime, found in known.errors.items())
        yield ", ".join(f"{regime} {kernel:.2g} (PyTorch {own:.2g})" for regime, kernel, own in pairs)
    if known.error is not None:
        yield f"the largest is {known.error:.2f} of what is allowed"


def _products(known: Certificate) -> str:
    if known.products is None:
        return ""
    barred = ", ".join(known.barred_products or ())
    return known.products + (f"; not admitted: {barred}" if barred else "")


def _sanitizer(known: Certificate) -> str:
    if known.sanitizer is None:
        return ""
    found = ", ".join(f"{tool} {said}" for tool, said in known.sanitizer.found.items())
    return f"{found} (compute-sanitizer {known.sanitizer.version}, {known.sanitizer.rows:,} rows)"


def _near(known: Certificate) -> str:
    pairs = known.near or []
    if len(pairs) < 2:  # its own number of rows alone
        return ""
    return ", ".join(f"{text.times(speedup)} at {rows:,.0f}" for rows, speedup in pairs)


def _packing(known: Certificate) -> str:
    if known.packing is None:
        return ""
    took, size = text.time_us(known.packing.time_us), text.size(known.packing.size_bytes)
    return f"the weight once, in {took} us that no sample counts, into {size} more"


def _kernel(winner: Winner, known: Certificate) -> str:
    if winner.target.backend == "cpu" or known.registers is None:
        return ""
    spills = f"{known.spill_bytes:,} bytes spilled" if known.spill_bytes else "nothing spilled"
    smem = "" if known.smem_bytes is None else f"{known.smem_bytes:,} bytes of shared memory, "
    return f"{known.registers} registers, {smem}{spills}"


def _condition(found: Conditions) -> str:
    said = [
        *([f"{found.sm_clock_mhz:,} MHz"] if found.sm_clock_mhz is not None else []),
        *([f"memory {found.memory_clock_mhz:,} MHz"] if found.memory_clock_mhz is not None else []),
        *([f"{found.temperature_c} °C"] if found.temperature_c is not None else []),
        *([f"{found.power_w} W"] if found.power_w is not None else []),
        *([f"slowed down by {found.throttled_by}"] if found.throttled_by is not None else []),
        *([_others(found.other_processes)] if found.other_processes is not None else []),
        *([f"load {found.load_average:.2f}"] if found.load_average is not None else []),
    ]
    return f"{found.when} {', '.join(said)}"


def _others(count: int) -> str:
    return f"{count} other process{'' if count == 1 else 'es'}"


def _ordered(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """What changes results or times most first, then the rest by name."""
    names = [*(name for name in _FIRST if name in environment), *sorted(environment.keys() - set(_FIRST))]
    return [(name, environment[name]) for name in names]


def _digests(winner: Winner, known: Certificate) -> Iterator[str]:
    if winner.artifact is not None:
        yield f"binary {winner.artifact[:_SHORT]}"
    if known.source_digest is not None:
        yield f"source {known.source_digest[:_SHORT]}"
    for name, digest in (known.templates or {}).items():
        yield f"{name} {digest[:_SHORT]}"
