"""ksearch: an automated search for fast kernels.

Importing it is cheap: torch, optuna and the rest are loaded when a name that needs them is used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "op": "ksearch.operators",
    "Launch": "ksearch.launch",
    "Workload": "ksearch.types",
    "Winner": "ksearch.types",
    "KsearchError": "ksearch.errors",
    "TemplateOp": "ksearch.operators",
    "capture": "ksearch.runtime.capture",
    "load": "ksearch.runtime",
    "load_bundle": "ksearch.runtime.bundle",
    "patch": "ksearch.patching",
    "use": "ksearch.runtime.bundle",
    "tune": "ksearch.tuner",
}
__all__ = [*sorted(_HOME), "nn", "ops"]  # noqa: PLE0604  (all are strings)

if TYPE_CHECKING:
    from ksearch import nn, ops
    from ksearch.errors import KsearchError
    from ksearch.launch import Launch
    from ksearch.operators import TemplateOp, op
    from ksearch.patching import patch
    from ksearch.runtime import load
    from ksearch.runtime.bundle import load_bundle, use
    from ksearch.runtime.capture import capture
    from ksearch.tuner import tune
    from ksearch.types import Winner, Workload


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("nn", "ops"):
        return importlib.import_module(f"ksearch.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'ksearch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def _install() -> None:
    import importlib

    importlib.import_module("ksearch.torch_ops").install()


if "torch" in sys.modules:  # else when ksearch.ops is first used: importing ksearch must not import torch
    _install()
