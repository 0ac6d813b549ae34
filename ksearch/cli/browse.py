"""`ksearch list`, `show`, `trials`, `ops`: what is in the database, and what can be tuned."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ksearch import env
from ksearch.cli.parameters import db_option, json_flag, of_one_workload
from ksearch.cli.printing import print_json, print_rich
from ksearch.errors import UsageError

if TYPE_CHECKING:
    from ksearch.store import Store
    from ksearch.types import Winner, Workload

# Imports inside the functions: SQLAlchemy and rich take 0.3 s, which `--help` need not pay.


@click.command("list")
@click.option("--op", help="Only this op.")
@click.option("--dtype", help="Only this dtype.")
@click.option("--device", help="Only cpu, cuda, or part of a device's name.")
@json_flag
@db_option
def list_(op: str | None, dtype: str | None, device: str | None, as_json: bool, db: Path | None) -> None:
    """List the winners in the database."""
    from ksearch.operators import canonical
    from ksearch.report import rows, tables
    from ksearch.store import Store

    path = db or env.database_path()
    found: list[Winner] = []
    op = op and canonical(op)
    if db is not None or path.exists():  # the default one, before anything was tuned, is just empty
        with Store.open(path, create=False, readonly=True) as store:
            found = [w for w in store.winners(op=op, dtype=dtype) if _is_on(w, device)]
    if as_json:
        print_json([rows.winner_row(winner, str(path)) for winner in found])
    elif found:
        print_rich(tables.winners(found))
    else:
        print(f"ksearch: no winners in {path}; to get one: ksearch tune OP --shape NxM", file=sys.stderr)


@click.command()
@of_one_workload
@click.option("--source", "with_source", is_flag=True, help="Print the kernel's source text, and only that.")
@json_flag
@db_option
def show(
    op: str,
    shape: str,
    dtype: str | None,
    policy: str | None,
    options: tuple[tuple[str, str], ...],
    device: str | None,
    with_source: bool,
    as_json: bool,
    db: Path | None,
) -> None:
    """Show one winner: its speed, config, evidence and source."""
    from ksearch.report import rows, summary
    from ksearch.store import Store

    path = db or env.database_path()
    shown: list[dict[str, Any]] = []
    with Store.open(path, create=False, readonly=True) as store:
        for winner in chosen(store, op, shape, dtype, policy, options, device):
            source = _source_file(store, winner)
            facts = (winner.workload, winner.target)
            row = rows.shown_row(
                winner, store.evaluations(*facts), store.environment(*facts), source, str(path)
            )
            shown.append(row)
            if as_json:
                continue
            if with_source:
                print(
                    Path(source).read_text()
                    if source
                    else f"// {winner.workload}: PyTorch won, there is no source"
                )
            else:
                print_rich(summary.shown(winner, row, default_db=str(env.database_path())))
    if as_json:
        print_json(shown)


@click.command()
@of_one_workload
@json_flag
@db_option
def trials(
    op: str,
    shape: str,
    dtype: str | None,
    policy: str | None,
    options: tuple[tuple[str, str], ...],
    device: str | None,
    as_json: bool,
    db: Path | None,
) -> None:
    """List every evaluated candidate, fastest first."""
    from ksearch.report import rows, tables
    from ksearch.store import Store

    listed: list[dict[str, Any]] = []
    with Store.open(db or env.database_path(), create=False, readonly=True) as store:
        for winner in chosen(store, op, shape, dtype, policy, options, device):
            found = store.evaluations(winner.workload, winner.target)
            listed += [rows.trial_row(evaluation, winner.workload, winner.target) for evaluation in found]
            if not as_json:
                print(f"{winner.workload} on {winner.target.device}")
                print_rich(tables.trials(found))
    if as_json:
        print_json(listed)


@click.command()
@json_flag
@db_option
def ops(as_json: bool, db: Path | None) -> None:  # noqa: ARG001  (every command takes --db)
    """List the ops that can be tuned by name."""
    from ksearch import operators
    from ksearch.report import rows, tables

    found = [operators.get(name) for name in operators.names()]
    if as_json:
        print_json([rows.op_row(op) for op in found])
    else:
        print_rich(tables.ops(found))


def _is_on(winner: Winner, device: str | None) -> bool:
    target = winner.target
    return (
        device is None
        or device.partition(":")[0] == target.backend
        or device.lower() in target.device.lower()
    )


def _has_options(workload: Workload, asked: Iterable[tuple[str, str]]) -> bool:
    """Each text is read as the type that the workload's own value has: `0.50` is 0.5."""
    from ksearch.operators.signature import parse_option

    known = dict(workload.options)
    return all(
        name in known and parse_option(workload.op, name, text, known[name]) == known[name]
        for name, text in asked
    )


def chosen(
    store: Store,
    op: str | None,
    shape: str | None,
    dtype: str | None,
    policy: str | None,
    options: Iterable[tuple[str, str]],
    device: str | None,
) -> list[Winner]:
    """The winners of one op and shape, or of all, on every target in the database.

    Raises UsageError where there is none.
    """
    from ksearch.operators import canonical, parse_shape

    sizes = None if shape is None else parse_shape(shape)
    _, file_stated, name = (op or "").rpartition(":")  # my_ops.py:swish is kept under swish
    of_op = store.winners(op=None if op is None else name if file_stated else canonical(op))
    found = [
        winner
        for winner in of_op
        if sizes in (None, winner.workload.dims)
        and dtype in (None, winner.workload.dtype)
        and policy in (None, winner.workload.policy)
        and _has_options(winner.workload, options)
        and _is_on(winner, device)
    ]
    if not found:
        others = sorted({f"{w.workload} on {w.target.device}" for w in of_op})
        known = f"; it has {', '.join(others[:8])}" if others else ""
        stated = [f"{name}={value}" for name, value in options]
        words = (op, shape, dtype, policy, *stated, device and f"on {device}")
        asked = " ".join(word for word in words if word) or "any op"
        raise UsageError(
            f"no winner for {asked} in {store.path}{known}; to get one: "
            f"ksearch tune {op or 'OP'} --shape {shape or 'NxM'}"
        )
    return found


def _source_file(store: Store, winner: Winner) -> str | None:
    """Path of the winner's source, written out of the database into the cache; None where PyTorch won."""
    stored = None if winner.artifact is None else store.artifact(winner.artifact)
    if stored is None or winner.artifact is None:
        return None
    suffix = "cu" if winner.target.backend == "cuda" else "cpp"
    path = env.cache_dir() / "sources" / f"{winner.workload.op}-{winner.artifact[:12]}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(stored.source)
    return str(path)
