"""`ksearch.load_bundle`: a bundle as a place to load kernels from, instead of the database."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch

from ksearch import operators
from ksearch.errors import UnknownOp
from ksearch.runtime.bundle_file import BundleFile
from ksearch.runtime.bundle_in_use import set_used
from ksearch.runtime.dispatch import Dispatcher
from ksearch.runtime.loader import load
from ksearch.runtime.table import refresh
from ksearch.types import Option

if TYPE_CHECKING:
    from ksearch.operators import Op
    from ksearch.runtime.handle import Handle


class Bundle(BundleFile):
    """The winners of one file. As a context manager it is in use for the whole process: `ksearch.ops` and
    `ksearch.load` look into it, and not into the database."""

    def __init__(
        self, path: str | os.PathLike[str], key: str | os.PathLike[str] | bytes | None = None
    ) -> None:
        """As BundleFile."""
        super().__init__(path, key)
        self.ops = Ops(self)
        self._before: list[BundleFile | None] = []

    def load(
        self,
        op: str | Op,
        shape: str | Sequence[int],
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        policy: str = "strict",
        prepacked: torch.Tensor | None = None,
        **options: Option,
    ) -> Handle:
        """`ksearch.load` from this file: PyTorch where it has no winner.

        Raises BundleError where the winner's part of the file was changed.
        """
        return load(op, shape, dtype, device, self, policy, prepacked, **options)

    def __enter__(self) -> Self:
        self._before.append(set_used(self))
        refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        set_used(self._before.pop())
        refresh()


class Ops:
    """Ops as functions, as `ksearch.ops` is: what was changed runs PyTorch, and the log says so."""

    def __init__(self, bundle: BundleFile) -> None:
        self._bundle = bundle
        self._known: dict[str, Dispatcher] = {}

    def __getattr__(self, name: str) -> Dispatcher:
        if name.startswith("__"):  # Python's own questions
            raise AttributeError(f"a bundle has no op {name!r}")
        try:
            op = operators.get(name)
        except UnknownOp as error:
            raise AttributeError(str(error)) from None
        known = self._known.get(op.name)
        if known is None or known.op is not op:
            known = self._known[op.name] = Dispatcher(op, self._bundle)
        return known


def load_bundle(path: str | os.PathLike[str], key: str | os.PathLike[str] | bytes | None = None) -> Bundle:
    """The bundle at `path`; with `key` (a file, or its bytes) only where it was signed with that.

    Raises BundleError where it is no bundle of this format, changed, cut short, or not signed so; UsageError
    where the key cannot be read.
    """
    return Bundle(path, key)


def use(bundle: BundleFile | None) -> None:
    """From now on `ksearch.ops` and `ksearch.load` look into this bundle; None: into the database again."""
    set_used(bundle)
    refresh()
