"""The ops by name, as functions of tensors: one Dispatcher for each, made when it is first asked for.

Apart from the Dispatcher, because this is of the process: what is in the table outlives each call, and is
forgotten in one go.
"""

from __future__ import annotations

from ksearch import operators
from ksearch.runtime import launcher, layer
from ksearch.runtime.dispatch import Dispatcher
from ksearch.runtime.loader import forget_kernels
from ksearch.runtime.notice import forget

_dispatchers: dict[str, Dispatcher] = {}


def dispatcher(name: str) -> Dispatcher:
    """The one of that op, which keeps its cache until the op is defined anew. Raises UnknownOp."""
    found = _dispatchers.get(name)
    if found is not None and operators.is_registered(found.op):
        return found
    op = operators.get(name)
    found = _dispatchers.get(op.name)
    if found is not None and found.op is op:  # asked for by an alias
        return found
    if found is not None:  # the op was defined anew
        _dispatchers.pop(op.name, None)
    # In one step: threads that are the first together must not load a kernel each.
    return _dispatchers.setdefault(op.name, Dispatcher(op))


def refresh() -> None:
    """Forget what was looked up, so that winners added since are found, and may be reported on again.

    Handles that `load` returned stay as they are.
    """
    launcher.forget()
    layer.forget()
    for each in list(_dispatchers.values()):
        each.clear()
    forget_kernels()
    forget()
