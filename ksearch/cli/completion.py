"""`ksearch completion`: what makes a shell complete ksearch's commands, ops, shapes and devices."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from ksearch.cli.parameters import db_option, json_flag
from ksearch.cli.printing import print_json

_INSTALL = {
    "bash": 'eval "$(ksearch completion bash)"    # in ~/.bashrc; bash 4.4 or later',
    "zsh": 'eval "$(ksearch completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "ksearch completion fish > ~/.config/fish/completions/ksearch.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_INSTALL)))
@json_flag
@db_option
@click.pass_context
def completion(ctx: click.Context, shell: str, as_json: bool, db: Path | None) -> None:  # noqa: ARG001
    """Print the script by which a shell completes commands.

    It completes ops, shapes and devices, too: those that the database has.

    bash and zsh: eval "$(ksearch completion bash)" in ~/.bashrc or ~/.zshrc. fish: write it into
    ~/.config/fish/completions/ksearch.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "ksearch", "_KSEARCH_COMPLETE").source()
    if as_json:
        print_json({"shell": shell, "install": _INSTALL[shell], "script": script})
    else:
        print(f"{script.rstrip()}\n\n# To have it in every shell: {_INSTALL[shell]}")
