"""The pictures of docs/screenshots: `python scripts/screenshots.py results.db`.

Needs a Chromium, the extra `dev`, and a database with a few winners, two of softmax among them. It works on a
copy, in which it starts a search on the CPU, so that one runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench_web import serving
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "screenshots"
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
_SEARCH = ("layernorm", "--shape", "2048x4096", "--device", "cpu", "--trials", "40", "--quiet")


def shoot(
    browser: Browser,
    name: str,
    url: str,
    *,
    size: tuple[int, int] = (1280, 860),
    dark: bool = False,
    before: Callable[[Page], object] | None = None,
) -> None:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    page.goto(url)
    if before is not None:
        before(page)
    page.wait_for_timeout(1500)
    page.screenshot(path=FOLDER / f"{name}.png")
    context.close()
    print(FOLDER / f"{name}.png")


def drawn(page: Page) -> None:
    page.wait_for_selector(".canvas.js-plotly-plot", timeout=60_000)


@contextmanager
def _folder() -> Iterator[Path]:
    """Of a name that may be seen: the pages say where their database is."""
    folder = Path(tempfile.gettempdir(), "ksearch")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("database", type=Path)
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with _folder() as folder, sync_playwright() as playwright:
        database = folder / "results.db"
        shutil.copy(given.database, database)
        found = shutil.which("chromium") or shutil.which("google-chrome")
        with (
            closing(playwright.chromium.launch(executable_path=found, args=list(_FLAGS))) as browser,
            serving(database) as server,
        ):
            root = server.url

            def names(query: str) -> list[str]:
                page = browser.new_page()
                page.goto(f"{root}/?{query}")
                addresses = page.locator(".winners th a[href^='/w/']").evaluate_all(
                    "(links) => links.map((link) => link.getAttribute('href').slice(3))"
                )
                page.close()
                return [str(address) for address in addresses]

            one, other = names("q=softmax&result=kernel")[:2]
            shoot(browser, "winners", f"{root}/?sort=-speedup")
            shoot(browser, "workload", f"{root}/w/{one}", size=(1280, 1560), before=drawn)
            shoot(browser, "workload-dark", f"{root}/w/{one}", size=(1280, 1560), dark=True, before=drawn)
            shoot(browser, "compare", f"{root}/compare?w={one}&w={other}", size=(1280, 1400), before=drawn)
            shoot(browser, "phone", f"{root}/?q=softmax", size=(390, 844))
            command = [sys.executable, "-m", "ksearch", "tune", *_SEARCH, "--db", str(database)]
            own = {**os.environ, "KSEARCH_CACHE_DIR": str(folder)}  # and a lock of its own with it
            with subprocess.Popen(command, cwd=ROOT, env=own) as search:
                shoot(
                    browser,
                    "running-dark",
                    root,
                    dark=True,
                    before=lambda page: page.wait_for_function(
                        "() => parseInt(document.querySelector('.running li span b')?.textContent) >= 12",
                        timeout=120_000,
                    ),
                )
                search.terminate()


if __name__ == "__main__":
    main()
