"""What PyTorch's functions mean in terms of a graph: one table, filled by the modules of this folder."""

from __future__ import annotations

from ksearch.operators.lowering import (
    activations,
    arithmetic,
    derivatives,
    linear,
    losses,
    masks,
    reductions,
    scans,
    tensors,
)
from ksearch.operators.lowering.table import lower, supported

__all__ = [
    "activations",
    "arithmetic",
    "derivatives",
    "linear",
    "losses",
    "lower",
    "masks",
    "reductions",
    "scans",
    "supported",
    "tensors",
]
