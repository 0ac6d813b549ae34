"""`torch.ops.ksearch`: an op is registered with PyTorch when it is first asked for there."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import _OpNamespace

from ksearch.errors import UnknownOp


class _Namespace(_OpNamespace):
    __module__ = _OpNamespace.__module__  # by which PyTorch names the ops, and pickles graphs

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # Python's own questions, such as __path__
                raise
            from ksearch.runtime import dispatcher, library  # `import ksearch` itself needs none of it

            if library.is_registering():
                raise
            try:
                known = dispatcher(name).op.name  # of an alias, the op itself
            except UnknownOp as error:
                raise AttributeError(str(error)) from None
            if known in vars(self):  # registered just now: another object would go the dispatcher's way
                return vars(self)[known]
            return super().__getattr__(known)


def install() -> None:
    """Put it in the place of PyTorch's own, which knows what is registered already."""
    for name in ("ksearch", "ksearch_graph"):
        found = vars(torch.ops).get(name)
        if not isinstance(found, _Namespace):
            setattr(torch.ops, name, _Namespace(name))
