"""ksearch: an automated search for fast kernels.

Importing it is cheap: torch, optuna and the rest are loaded when a name that needs them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "op": "ksearch.operators",
    "Launch": "ksearch.types",
    "Workload": "ksearch.types",
    "Winner": "ksearch.types",
    "KsearchError": "ksearch.errors",
    "TemplateOp": "ksearch.operators",
    "load": "ksearch.runtime",
    "tune": "ksearch.tuner",
}
__all__ = [*sorted(_HOME), "ops"]  # noqa: PLE0604  (all are strings)

if TYPE_CHECKING:
    from ksearch import ops
    from ksearch.errors import KsearchError
    from ksearch.operators import TemplateOp, op
    from ksearch.runtime import load
    from ksearch.tuner import tune
    from ksearch.types import Launch, Winner, Workload


def __getattr__(name: str) -> Any:
    import importlib

    if name == "ops":
        return importlib.import_module("ksearch.ops")
    if name not in _HOME:
        raise AttributeError(f"module 'ksearch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
