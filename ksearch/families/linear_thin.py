"""Fused linears of few rows in float32: dot products at the speed at which the weight is read.

Tensor cores have nothing to do there, and splitting the weight costs more than its products. A strategy of
the linear family on every GPU; the axes are there only where it is.
"""

from __future__ import annotations

from ksearch.families.base import Rule
from ksearch.families.cuda import MAX_REGISTERS
from ksearch.types import Config, ConfigValue, Workload

THIN = "thin"
SCHEME = "simt"
"""How it takes products: in plain float32 arithmetic."""
_MOST_ROWS = 8
_OTHERS = 40
"""Registers beside sums and operands."""


def is_thin(workload: Workload) -> bool:
    """Whether the strategy is among those of the workload. Of 16-bit weights tensor cores reach the same
    speed: 1x4096x14336 bfloat16 takes 35.5 us, and reading as much 35."""
    return workload.rows <= _MOST_ROWS and workload.dtype == "float32" and not workload.is_prepacked


def axes(workload: Workload) -> dict[str, tuple[ConfigValue, ...]]:
    """Rows of the weight for each warp, warps of a block, vectors of each row that are under way."""
    if not is_thin(workload):
        return {}
    return {"features": (4, 2, 1, 8), "warps": (4, 8, 2), "unroll": (2, 4, 1)}


def rules(workload: Workload, others: dict[str, tuple[ConfigValue, ...]]) -> tuple[Rule, ...]:
    """What holds between the axes here and `others`, those of the other strategies."""
    mine = axes(workload)
    if not mine:
        return ()
    plain = {name: values[0] for name, values in (others | mine).items()} | {"scheme": SCHEME}
    theirs = [name for name in others if name != "strategy"]

    def leaves(config: Config, names: tuple[str, ...]) -> bool:
        return all(config[name] == plain[name] for name in names)

    def has_registers(config: Config) -> bool:
        """A lane ends up with one result; a vector of 16 bytes takes 4 registers."""
        features, unroll = int(config["features"]), int(config["unroll"])
        kept = 4 * unroll * (features + workload.rows) + features * workload.rows
        return features * workload.rows <= 32 and kept + _OTHERS <= MAX_REGISTERS

    return (
        Rule(("strategy", *theirs), lambda c: c["strategy"] != THIN or leaves(c, tuple(theirs))),
        Rule(("strategy", *mine), lambda c: c["strategy"] == THIN or leaves(c, tuple(mine))),
        Rule(("strategy", *mine), lambda c: c["strategy"] != THIN or has_registers(c)),
    )


def guesses(plain: dict[str, ConfigValue], workload: Workload) -> list[dict[str, ConfigValue]]:
    """Points of the space, most in flight first; `plain`: every axis at its first value."""
    if not is_thin(workload):
        return []
    features = [n for n in (4, 2, 1) if n * workload.rows <= 16]
    return [
        {
            **plain,
            "strategy": THIN,
            "scheme": SCHEME,
            "features": features[0],
            "warps": warps,
            "unroll": unroll,
        }
        for warps, unroll in ((4, 2), (8, 2), (4, 4), (4, 1))
    ]


def vector(workload: Workload) -> int:
    """Elements that are read at a time: rows begin at multiples of as many."""
    return next(n for n in (4, 2, 1) if workload.inner % n == 0)
