"""The ops that come with ksearch; each is what a user would write."""

from __future__ import annotations

from ksearch.operators.builtin import backward, linear, pointwise, rowwise

__all__ = ["backward", "linear", "pointwise", "rowwise"]
