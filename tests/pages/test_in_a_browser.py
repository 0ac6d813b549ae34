"""The static report in a real browser, opened from its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ksearch.pages import contents, static

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def address(found: contents.Contents, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text("".join(static.html(found)))
    return path.as_uri()


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the report; what its console said, or it asked for elsewhere, fails the test at its end."""
    wrong: list[str] = []

    def open_(part: str = "", width: int = 1280, scheme: str = "light") -> Page:
        page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        page.on("console", lambda said: wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith("file:") or wrong.append(asked.url))
        page.goto(f"{address}#{part}")
        return page

    yield open_
    for context in browser.contexts:
        context.close()
    assert [each for each in wrong if not each.startswith(("data:", "blob:"))] == []


def shown(page: Page) -> list[str]:
    """The first words of the rows that are to be seen, in order."""
    return [row.split()[0] for row in page.locator("#winners tbody tr:visible th").all_inner_texts()]


def part_of(found: contents.Contents, op: str, backend: str = "cpu") -> str:
    return next(row.slug for row in found.overview.rows if (row.op, row.backend) == (op, backend))


def test_the_table_is_filtered_and_sorted(opened: Open) -> None:
    page = opened()
    page.get_by_role("searchbox").fill("float32 H200")
    assert shown(page) == ["linear", "softmax"]
    assert page.locator(".count").inner_text() == "2 of 7 workloads"
    page.get_by_role("searchbox").fill("no such thing")
    assert page.get_by_text("No winner fits this filter.").is_visible()
    page.get_by_role("searchbox").fill("")
    page.locator("select[name=op]").select_option("softmax")
    assert shown(page) == ["softmax", "softmax"]
    page.locator("select[name=op]").select_option("")
    page.get_by_role("button", name="Speed-up").press("Enter")
    assert shown(page)[:4] == ["softmax", "linear", "my_op", "softmax"]  # 25x, 11x, 5x, 2x
    page.get_by_role("button", name="Speed-up").press("Enter")
    assert shown(page)[:2] == ["gelu", "softmax"]
    assert shown(page)[-2:] == ["layernorm", "rmsnorm"]  # without a winner, either way


def test_a_workload_opens_by_keyboard_and_its_figures_are_drawn(opened: Open) -> None:
    page = opened()
    page.get_by_role("link", name="linear 64×512×256").press("Enter")
    page.wait_for_selector("[data-figure='parallel'] .main-svg:visible")
    assert page.get_by_role("heading", level=1).inner_text() == "linear 64×512×256"
    assert page.title().startswith("linear 64x512x256 float32 - ")
    assert page.locator("[data-figure]:visible").count() == 6
    assert page.locator("[data-figure]:visible .canvas:has(.main-svg)").count() == 6
    page.get_by_role("link", name="All winners").click()
    page.get_by_role("heading", level=1, name="Winners").wait_for()


def test_figures_are_switched(opened: Open, found: contents.Contents) -> None:
    page = opened(part_of(found, "softmax"))
    convergence = page.locator("[data-figure='convergence']:visible")
    convergence.get_by_text("trial", exact=True).wait_for()
    convergence.get_by_role("button", name="by time").click()
    convergence.get_by_text("time of search (s)").wait_for()
    assert convergence.get_by_role("button", name="by time").get_attribute("aria-pressed") == "true"
    slices = page.locator("[data-figure='slices']:visible")
    slices.get_by_role("combobox").select_option(label="unroll")
    slices.locator(".xtitle", has_text="unroll").wait_for()


def test_the_source_is_there_once_it_is_asked_for(opened: Open, found: contents.Contents) -> None:
    page = opened(part_of(found, "softmax"))
    page.get_by_text("2 lines of C++").filter(visible=True).click()
    assert page.locator("pre.code:visible").inner_text().startswith("// a <b>kernel</b> & more")


def test_why_nothing_is_drawn_is_said_once(opened: Open, found: contents.Contents) -> None:
    page = opened(part_of(found, "rmsnorm"))
    assert page.get_by_text("No candidate passed, so there is nothing to draw").count() == 4
    assert page.locator(".empty:visible").count() == 3
    assert page.get_by_role("cell", name="off by 3e-2 </script>").first.is_visible()


def test_figures_follow_the_colour_scheme(opened: Open, found: contents.Contents) -> None:
    page = opened(part_of(found, "softmax"))
    line = page.locator("[data-figure='convergence']:visible .js-line").first
    before = line.get_attribute("style")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "before => document.querySelector('.js-line').getAttribute('style') !== before", arg=before
    )
    assert "rgb(124, 176, 255)" in str(line.get_attribute("style"))


@pytest.mark.parametrize("op", ["", "softmax"])
def test_nothing_is_wider_than_a_phone(opened: Open, found: contents.Contents, op: str) -> None:
    page = opened(part_of(found, op) if op else "", width=360)
    page.wait_for_load_state()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize(("scheme", "rules"), [("light", None), ("dark", ["color-contrast"])])
def test_axe_finds_nothing(
    opened: Open, found: contents.Contents, scheme: str, rules: list[str] | None
) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe is not installed")
    script = next(Path(axe.__file__).parent.glob("axe.min.js")).read_text()
    page = opened(scheme=scheme)
    page.evaluate(script)
    for part in ("", part_of(found, "rmsnorm"), part_of(found, "gelu")):
        page.evaluate("part => location.hash = part", part)
        # What plotly.js draws is one picture with a name; its thousand elements take axe 10 s.
        options = [{"exclude": [[".js-plotly-plot"]]}, {"runOnly": rules} if rules else {}]
        violations = page.evaluate("([context, options]) => axe.run(context, options)", options)["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == []
