"""`ksearch verify`: winners checked and timed again on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ksearch import env
from ksearch.cli.parameters import (
    db_option,
    json_flag,
    options_option,
    policy_help,
    prepacked_option,
    shape_help,
)
from ksearch.cli.printing import print_json, print_rich

if TYPE_CHECKING:
    from ksearch.store import Store

# Imports inside the functions: SQLAlchemy and torch take seconds, which `--help` need not pay.


@click.command()
@click.argument("what", nargs=-1, metavar="[FILE.ksb] [OP]")
@click.option("--shape", metavar="NxM", help=shape_help)
@click.option("--dtype", help="float32, float16 or bfloat16.  [default: any]")
@click.option("--policy", help=f"{policy_help}  [default: any]")
@prepacked_option
@options_option
@click.option("--device", help="cpu, cuda, cuda:1, or part of a device's name.  [default: any]")
@click.option(
    "--key", type=click.Path(path_type=Path, dir_okay=False), help="The bundle must be signed with it."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the values that are checked.")
@json_flag
@db_option
@click.pass_context
def verify(
    ctx: click.Context,
    what: tuple[str, ...],
    shape: str | None,
    dtype: str | None,
    policy: str | None,
    prepacked: bool | None,
    options: tuple[tuple[str, str], ...],
    device: str | None,
    key: Path | None,
    seed: int,
    as_json: bool,
    db: Path | None,
) -> None:
    """Check and time winners again on this machine. What no longer holds is said.

    Those of the database or of a bundle, all or those of OP. Stored binaries are run, nothing is compiled.

    The exit status is 0 where all that was verified holds, 3 where a digest or a result is wrong, 4 where a
    kernel is slower than stated or too fast to be true, 5 where nothing could be verified here.
    """
    bundle, op = _told_apart(what)
    if op is None and (shape or options):
        raise click.UsageError("--shape and --option are for a named OP.")
    if bundle is not None and db is not None:
        raise click.UsageError("A bundle or --db: give one.")
    if bundle is None and key is not None:
        raise click.UsageError("--key is for a bundle.")
    from ksearch import verdicts
    from ksearch import verify as verification
    from ksearch.cli.choosing import chosen
    from ksearch.report import verification as report

    with _opened(bundle, key, db) as (store, source):
        found = verification.verify(
            store,
            chosen(store, op, shape, dtype, policy, options, device, prepacked),
            op=op if op is not None and ":" in op else None,
            device=device if device is not None and device.partition(":")[0] == "cuda" else None,
            seed=seed,
            tell=None if as_json else lambda each: print_rich(report.lines(each)),
        )
    status = verdicts.exit_status(found)
    if as_json:
        print_json(report.report_row(found, source, status))
    else:
        print(report.summary(found))
    ctx.exit(status)


def _told_apart(what: Sequence[str]) -> tuple[Path | None, str | None]:
    """The bundle and the op among the arguments. Raises click.UsageError."""
    bundles = [word for word in what if word.endswith(".ksb")]
    ops = [word for word in what if not word.endswith(".ksb")]
    if len(bundles) > 1 or len(ops) > 1:
        raise click.UsageError("Name one bundle, whose name ends in .ksb, and one OP at most.")
    return (Path(bundles[0]) if bundles else None), (ops[0] if ops else None)


@contextmanager
def _opened(bundle: Path | None, key: Path | None, db: Path | None) -> Iterator[tuple[Store, str]]:
    """The winners as a store, and where they are from; those of a bundle in a database for the moment."""
    from ksearch.export.bundle import records
    from ksearch.runtime.bundle_file import BundleFile
    from ksearch.store import Store

    if bundle is None:
        path = db or env.database_path()
        with Store.open(path, create=False, readonly=True) as store:
            yield store, str(path)
        return
    opened = BundleFile(bundle, key)
    with (
        tempfile.TemporaryDirectory(prefix="ksearch-") as folder,
        Store.open(Path(folder, bundle.name)) as store,
    ):
        with store.union() as union:
            union.add(str(opened.path), records(opened))
        yield store, str(opened.path)
