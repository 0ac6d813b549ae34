"""`ksearch export`, `import`, `merge`: taking winners elsewhere, and bringing them together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ksearch import env
from ksearch.cli import complete
from ksearch.cli.parameters import (
    db_option,
    json_flag,
    options_option,
    policy_help,
    prepacked_option,
    shape_help,
)
from ksearch.cli.printing import print_json
from ksearch.errors import UsageError

if TYPE_CHECKING:
    from ksearch.store import Added, Store
    from ksearch.types import Winner

# Imports inside the functions: SQLAlchemy and torch take seconds, which `--help` need not pay.

_a_file = click.Path(path_type=Path, resolve_path=True, dir_okay=False)


@click.command()
@click.argument("ops", nargs=-1, metavar="[OP]...", shell_complete=complete.ops_found)
@click.option("--bundle", type=_a_file, metavar="FILE.ksb", help="Write binaries with their evidence.")
@click.option("--source", type=_a_file, metavar="FILE", help="Write one kernel as .py, .cu or .cpp.")
@click.option("--sign", type=_a_file, metavar="KEYFILE", help="Sign the bundle with this secret (HMAC).")
@click.option("--shape", "shapes", multiple=True, metavar="NxM", help=f"{shape_help} Repeatable.")
@click.option("--dtype", help="float32, float16 or bfloat16.  [default: all]")
@click.option("--policy", help=f"{policy_help}  [default: all]")
@prepacked_option
@options_option
@click.option("--device", help="cpu, cuda, or part of a device's name.  [default: all]")
@json_flag
@db_option
def export(
    ops: tuple[str, ...],
    bundle: Path | None,
    source: Path | None,
    sign: Path | None,
    shapes: tuple[str, ...],
    dtype: str | None,
    policy: str | None,
    prepacked: bool | None,
    options: tuple[tuple[str, str], ...],
    device: str | None,
    as_json: bool,
    db: Path | None,
) -> None:
    """Write winners into a file that runs without the database.

    A bundle holds the winners of the ops that are named, or of all, for every device in the database;
    ksearch.load_bundle loads it. A source file holds one kernel and what starts it, and needs no ksearch.
    """
    if (bundle is None) == (source is None):
        raise click.UsageError("Say what to write: --bundle FILE.ksb, or --source FILE.py, .cu or .cpp.")
    if source is not None and sign is not None:
        raise click.UsageError("--sign is for a bundle.")
    if not ops and (shapes or options):
        raise click.UsageError("--shape and --option are for a named OP.")
    from ksearch.cli.choosing import chosen
    from ksearch.store import Store

    with Store.open(db or env.database_path(), create=False, readonly=True) as store:
        found: list[Winner] = []
        for op in ops or (None,):
            for shape in shapes or (None,):
                found += chosen(store, op, shape, dtype, policy, options, device, prepacked)
        if bundle is not None:
            _write_bundle(bundle, store, found, sign, as_json)
        else:
            assert source is not None
            _write_source(source, store, found, ops, as_json)


def _write_bundle(
    path: Path, store: Store, winners: Sequence[Winner], key: Path | None, as_json: bool
) -> None:
    from ksearch.export.bundle import write_bundle
    from ksearch.report import shipping

    written = write_bundle(path, store, winners, key)
    if as_json:
        print_json(shipping.bundle_row(written))
    else:
        print(shipping.bundle_line(written))


def _write_source(
    path: Path, store: Store, winners: Sequence[Winner], ops: Sequence[str], as_json: bool
) -> None:
    """Raises UsageError unless one winner was chosen."""
    from ksearch import operators
    from ksearch.export.source import write_source
    from ksearch.report import shipping

    if len(ops) != 1:
        raise click.UsageError("A source file holds one kernel: name one OP.")
    kernels = [winner for winner in winners if winner.artifact is not None] or list(winners)
    if len(kernels) > 1:
        listed = ", ".join(f"{winner.workload} on {winner.target.device}" for winner in kernels[:8])
        raise UsageError(
            f"a source file holds one kernel, and {len(kernels)} were chosen: {listed}; narrow it by "
            "--shape, --dtype, --policy, --prepacked or --plain, --option, --device"
        )
    kernel = write_source(path, store, operators.resolve(ops[0]), kernels[0])
    if as_json:
        print_json(shipping.source_row(path, kernel))
    else:
        print(shipping.source_line(path, kernel))


@click.command("import")
@click.argument("bundles", nargs=-1, required=True, type=_a_file, metavar="FILE.ksb...")
@click.option("--key", type=_a_file, metavar="KEYFILE", help="Take only what was signed with this secret.")
@json_flag
@db_option
def import_(bundles: tuple[Path, ...], key: Path | None, as_json: bool, db: Path | None) -> None:
    """Add the winners of bundles to a database.

    All of a bundle is checked before. Where both have a winner for a workload on a device, that with the
    larger confirmed speed-up is in force.
    """
    from ksearch.export.bundle import records
    from ksearch.runtime.bundle_file import BundleFile
    from ksearch.store import Store

    opened = [BundleFile(path, key) for path in bundles]
    path = db or env.database_path()
    with Store.open(path) as store, store.union() as union:
        added = [union.add(str(bundle.path), records(bundle)) for bundle in opened]
    _tell(path, added, as_json)


@click.command()
@click.argument("databases", nargs=-1, required=True, type=_a_file, metavar="A.db B.db...")
@click.option("--into", type=_a_file, metavar="C.db", help="Where the union goes.  [default: the first]")
@json_flag
@click.option("--db", "into_db", type=_a_file, help="The same as --into.")
def merge(databases: tuple[Path, ...], into: Path | None, as_json: bool, into_db: Path | None) -> None:
    """Add databases up, with the history and every trial of each.

    Of two winners for the same workload and device the one with the larger confirmed speed-up over PyTorch is
    in force: the lower end of its 95 % interval, 1 where PyTorch won. Of equals the later ksearch and torch,
    then the later date. The other is kept as history. It is done as a whole, or not at all.
    """
    from ksearch.store import Store

    if into is not None and into_db is not None and into != into_db:
        raise click.UsageError("--into and --db are the same thing: give one.")
    goal = into or into_db or databases[0]
    sources = [path for path in dict.fromkeys(databases) if path != goal]
    if not sources:
        raise click.UsageError("There is nothing to merge: name two databases, or one and --into another.")
    with ExitStack() as stack:
        opened = [stack.enter_context(Store.open(path, create=False, readonly=True)) for path in sources]
        store = stack.enter_context(Store.open(goal, create=goal not in databases))
        with store.union() as union:
            added = [union.add(str(each.path), each.records(), each.trials()) for each in opened]
    _tell(goal, added, as_json)


def _tell(path: Path, added: Sequence[Added], as_json: bool) -> None:
    """What each side brought, and what was in conflict."""
    from ksearch.report import shipping

    if as_json:
        print_json({"db": str(path), "added": [shipping.added_row(each) for each in added]})
        return
    for each in added:
        print("\n".join(shipping.added_lines(each)))
    print(f"the union is in {path}")
