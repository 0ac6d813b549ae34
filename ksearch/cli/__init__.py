"""The command line: each command parses, makes one library call, and prints.

What takes long to import (torch, Optuna, SQLAlchemy, rich) is imported by the command that needs it, so
that `ksearch --help` answers in 0.1 s.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence

import click

import ksearch
from ksearch.cli.compare import compare
from ksearch.cli.completion import completion
from ksearch.cli.doctor import doctor
from ksearch.cli.export import export, import_, merge
from ksearch.cli.launcher import launcher
from ksearch.cli.ops import ops
from ksearch.cli.printing import print_json
from ksearch.cli.report import report
from ksearch.cli.selftest import selftest
from ksearch.cli.show import show
from ksearch.cli.study import INTERRUPTED
from ksearch.cli.top import top
from ksearch.cli.trials import trials
from ksearch.cli.tune import tune
from ksearch.cli.verify import verify
from ksearch.cli.web import browse
from ksearch.cli.winners import list_
from ksearch.errors import KsearchError

__all__ = ["commands", "main"]


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added: what comes first in use comes first in the help."""
        return list(self.commands)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(ksearch.__version__, prog_name="ksearch")
def commands() -> None:
    """Search for the fastest kernel of a PyTorch function, and keep it."""


for _command in (
    tune,
    list_,
    show,
    trials,
    compare,
    top,
    ops,
    report,
    browse,
    export,
    import_,
    merge,
    verify,
    selftest,
    launcher,
    doctor,
    completion,
):
    commands.add_command(_command)


def main(arguments: Sequence[str]) -> int:
    """Run one command and give its exit status; every error becomes one line on stderr.

    With `--json` the error is one object on stdout too; with `-vv` its traceback comes before it.
    """
    logging.basicConfig(level=logging.WARNING, format="ksearch: %(message)s", stream=sys.stderr)
    try:
        status = commands.main(list(arguments) or ["--help"], prog_name="ksearch", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        return _fail(arguments, "UsageError", error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail(arguments, "Interrupted", "interrupted, and nothing was kept", INTERRUPTED)
    except BrokenPipeError:  # `ksearch list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KsearchError as error:
        return _fail(arguments, type(error).__name__, str(error), error.exit_status)
    except Exception as error:  # noqa: BLE001  (the process boundary: a user gets a line, not our stack)
        message = f"internal error, please report it: {type(error).__name__}: {error}"
        return _fail(arguments, type(error).__name__, f"{message} (-vv shows the traceback)", 1)
    return status if isinstance(status, int) else 0


def _fail(arguments: Sequence[str], kind: str, message: str, status: int) -> int:
    verbosity = sum(a.count("v") for a in arguments if re.fullmatch(r"-v+", a)) + arguments.count("--verbose")
    if verbosity >= 2:
        traceback.print_exc()
    if "--json" in arguments:
        print_json({"error": {"type": kind, "message": message}})
    print(f"ksearch: error: {' '.join(message.split())}", file=sys.stderr)
    return status
