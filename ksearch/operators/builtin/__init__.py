"""The ops that come with ksearch; each is what a user would write."""

from __future__ import annotations

from ksearch.operators.builtin import (
    backward,
    channels,
    linear,
    losses,
    pointwise,
    reductions,
    rowwise,
    scans,
)

__all__ = ["backward", "channels", "linear", "losses", "pointwise", "reductions", "rowwise", "scans"]
