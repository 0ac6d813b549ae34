"""An op's schema, as PyTorch's dispatcher wants it written."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from ksearch.operators.signature import NONE

if TYPE_CHECKING:
    from ksearch.operators import Op
    from ksearch.types import Option

_TYPES = {bool: "bool", int: "int", float: "float", str: "str"}


def results(count: int) -> str:
    """What an op of that many outputs gives."""
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


def arguments(op: Op, *more: str) -> str:
    """What it takes: tensors by position, options by name; `more` behind them."""
    tensors = [
        f"Tensor? {item.name}=None" if NONE in op.choices.get(item.name, ()) else f"Tensor {item.name}"
        for item in op.inputs
    ]
    named = [_option(name, default) for name, default in op.keywords(op.options).items()]
    named += more
    return f"({', '.join([*tensors, '*', *named] if named else tensors)})"


def is_unwritten(default: Option) -> bool:
    """Whether a schema cannot write it: None stands for it."""
    return isinstance(default, float) and not math.isfinite(default)


def _option(name: str, default: Option) -> str:
    kind = _TYPES[type(default)]
    if is_unwritten(default):
        return f"{kind}? {name}=None"
    return f"{kind} {name}={json.dumps(default) if isinstance(default, str) else default}"
