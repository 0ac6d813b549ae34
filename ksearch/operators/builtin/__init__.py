"""The ops that come with ksearch; each is what a user would write."""

from __future__ import annotations

from ksearch.operators.builtin import pointwise, rowwise

__all__ = ["pointwise", "rowwise"]
