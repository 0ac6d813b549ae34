"""Writing a winner's kernel as one source file: what kind is told by the file's name."""

from __future__ import annotations

from pathlib import Path

from ksearch import files
from ksearch.errors import UsageError
from ksearch.export.cpp import cpp_file
from ksearch.export.cuda import cuda_file
from ksearch.export.kernel import ExportedKernel
from ksearch.export.python import python_file
from ksearch.operators import Op
from ksearch.store import Store
from ksearch.types import Winner

_PLAIN = {"cuda": ".cu", "cpu": ".cpp"}


def source_text(kernel: ExportedKernel, suffix: str) -> str:
    """The file's text by its suffix: `.py`, `.cu` for a GPU's kernel, `.cpp` for a CPU's.

    Raises UsageError.
    """
    plain = _PLAIN[kernel.winner.target.backend]
    if suffix == ".py":
        return python_file(kernel)
    if suffix != plain:
        raise UsageError(
            f"a kernel for {kernel.winner.target.device} can be written as .py or {plain}, not as "
            f"{suffix or 'a file without a suffix'}"
        )
    return cuda_file(kernel) if plain == ".cu" else cpp_file(kernel)


def write_source(path: Path, store: Store, op: Op, winner: Winner) -> ExportedKernel:
    """Write the winner to `path`, over what is there. Raises UsageError where that cannot be, StoreError."""
    stored = None if winner.artifact is None else store.artifact(winner.artifact)
    kernel = ExportedKernel.of(op, winner, None if stored is None else stored.source)
    files.write_text(path, [source_text(kernel, path.suffix)])
    return kernel
