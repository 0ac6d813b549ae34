"""Ops as plain functions: `ksearch.ops.softmax(x)` runs the best that is known for this very tensor.

Every op that is registered is here by its name, the user's own as well; none is a stored attribute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ksearch import operators, torch_ops
from ksearch.errors import UnknownOp
from ksearch.runtime import dispatcher

if TYPE_CHECKING:
    from ksearch.runtime import Dispatcher

torch_ops.install()


def __getattr__(name: str) -> Dispatcher:
    if name.startswith("__"):  # Python's own questions, such as __path__
        raise AttributeError(f"module 'ksearch.ops' has no attribute {name!r}")
    try:
        return dispatcher(name)
    except UnknownOp as error:
        raise AttributeError(str(error)) from None


def __dir__() -> list[str]:
    return sorted(operators.names())
