"""`ksearch browse`: the results as web pages."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ksearch import env
from ksearch.cli.parameters import db_option, json_flag
from ksearch.cli.printing import print_json

PORT = 8421


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 takes a free one."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Any but this machine's own asks for a token.",
)
@click.option(
    "--token",
    help="What a browser must show once.  [default: a random one where --host is not this machine's own]",
)
@click.option("--open", "opens_browser", is_flag=True, help="Open the pages in a browser.")
@json_flag
@db_option
def browse(
    port: int, host: str, token: str | None, opens_browser: bool, as_json: bool, db: Path | None
) -> None:
    """Show the results in a browser, as they come. Nothing is changed; Ctrl-C ends it.

    The pages are served by this process and take nothing from elsewhere.
    """
    # Starlette, uvicorn and SQLAlchemy take 0.5 s to import, which `--help` need not pay.
    from ksearch.web.server import Served, serve

    if token is not None and not token:
        raise click.BadParameter("an empty token would let nobody in", param_hint="--token")

    def ready(served: Served) -> None:
        if as_json:
            print_json({"db": str(served.path), "url": served.url})
        else:
            print(f"{served.path} is at {served.url}  (Ctrl-C ends it)")
        sys.stdout.flush()

    serve(db or env.database_path(), host, port, token, ready, opens_browser=opens_browser)
