"""What was exported, imported and merged, as dictionaries for `--json` and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksearch.report import text
from ksearch.report.rows import place_row, workload_row
from ksearch.store.union import confirmed_speedup

if TYPE_CHECKING:
    from ksearch.export.bundle import Written
    from ksearch.export.kernel import ExportedKernel
    from ksearch.store import Added, Conflict


def bundle_row(written: Written) -> dict[str, Any]:
    return {
        "bundle": str(written.path),
        "winners": written.winners,
        "kernels": written.kernels,
        "size_bytes": written.size_bytes,
        "sha256": written.sha256,
        "signed": written.signed,
    }


def bundle_line(written: Written) -> str:
    signed = ", signed" if written.signed else ""
    return (
        f"{written.path}: {text.many(written.winners, 'winner')}, {text.many(written.kernels, 'kernel')}, "
        f"{text.size(written.size_bytes)}{signed}, sha256 {written.sha256}"
    )


def source_row(path: Path, kernel: ExportedKernel) -> dict[str, Any]:
    return {"source": str(path), **place_row(kernel.workload, kernel.winner.target)}


def source_line(path: Path, kernel: ExportedKernel) -> str:
    return f"{path}: {kernel.workload} for {kernel.winner.target.device}"


def added_row(added: Added) -> dict[str, Any]:
    """What one side of a union brought."""
    return {
        "source": added.source,
        "winners": added.winners,
        "history": added.history,
        "known": added.known,
        "trials": added.trials,
        "conflicts": [_conflict_row(conflict) for conflict in added.conflicts],
    }


def added_lines(added: Added) -> Iterator[str]:
    winners, trials = text.many(added.winners, "winner"), text.many(added.trials, "trial")
    yield (
        f"{added.source}: {winners} in force now, {added.history:,} kept as history, "
        f"{added.known:,} known before; {trials}; {text.many(len(added.conflicts), 'conflict')}"
    )
    for conflict in added.conflicts:
        verb = "took" if conflict.taken else "kept"
        kept, dropped = confirmed_speedup(conflict.kept), confirmed_speedup(conflict.dropped)
        where = f"{conflict.kept.workload} on {conflict.kept.target.device}"
        yield f"  {where}: {verb} the one that is surely {kept:.2f}x PyTorch, not {dropped:.2f}x"


def _conflict_row(conflict: Conflict) -> dict[str, Any]:
    kept, dropped = conflict.kept, conflict.dropped
    return {
        **workload_row(kept.workload),
        "device": kept.target.device,
        "kept": "source" if conflict.taken else "db",
        "kept_confirmed_speedup": confirmed_speedup(kept),
        "dropped_confirmed_speedup": confirmed_speedup(dropped),
        "kept_created": kept.created,
        "dropped_created": dropped.created,
    }
