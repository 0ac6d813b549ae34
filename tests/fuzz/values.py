"""Strategies: values as files from elsewhere may hold them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

ODD = [
    "", "..", "../../x", "/etc/passwd", "a/b", "x; rm -rf /", "$(id)", "`id`", "{{ 7 * 7 }}", "\0", "\n",
    "\x1b[2J", "'; DROP TABLE winners; --", "softmax", "my_ops.py:f", "__import__('os')", "nan", "inf", "0",
    "-1", "1e999", "9" * 400, "9" * 5000, "\ud800", "é", "[" * 3000, "x" * 5000, "float32", "4x8",
    "4,8", "cpu/x/y", "gz==",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2**31, 2**63, 2**64, 10**400, 0.0, -0.5, 1e308, float("inf"), float("nan"), True, False, None,
]  # fmt: skip

texts = st.one_of(st.sampled_from(ODD), st.text(max_size=20))
scalars = st.one_of(st.sampled_from(NUMBERS), texts, st.integers(), st.floats())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def examples(count: int) -> settings:
    """The same examples in every run."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
