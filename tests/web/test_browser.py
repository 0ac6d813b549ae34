"""The pages in a real, headless Chromium: what a person does, what the console says, what axe finds."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from ksearch.pages import views
from ksearch.store import Store
from tests.pages import results
from tests.web.test_faults import mirrored  # noqa: F401  (a fixture)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SOFTMAX = f"/w/{views.slug(results.SOFTMAX, results.CPU)}"
PAIR = f"/compare?w={views.slug(results.SOFTMAX, results.CPU)}&w={views.slug(results.LINEAR, results.GPU)}"
WIDE, PHONE = (1280, 900), (360, 740)
DRAWN = ".plot .canvas.js-plotly-plot"

Visit: TypeAlias = Callable[..., AbstractContextManager["Page"]]


@pytest.fixture
def visit(browser: Browser) -> Visit:
    """Opens an address; at the end nothing may be in the console, and no other host was asked."""

    @contextmanager
    def visit(
        url: str, size: tuple[int, int] = WIDE, expected: str = "nothing", **more: Any
    ) -> Iterator[Page]:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **more)
        page = context.new_page()
        page.set_default_timeout(15_000)
        said: list[str] = []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        asked: set[str] = set()
        page.on("request", lambda request: asked.add(request.url))
        page.goto(url)
        yield page
        context.close()
        trouble = [line for line in said if line.startswith(("error", "warning")) or ":" not in line]
        assert [line for line in trouble if not re.search(expected, line)] == []
        own = url.split("/", 3)[2]
        assert [one for one in asked if not one.startswith((f"http://{own}/", "data:", "blob:"))] == []

    return visit


@pytest.fixture(scope="module")
def site(db: Path, module_served: Callable[[Path], str]) -> str:
    return module_served(db)


def workloads(page: Page) -> list[str]:
    return [text.split()[0] for text in page.locator("table.winners tbody th").all_inner_texts()]


def wait_for(page: Page, expected: list[str]) -> None:
    page.wait_for_function(
        "(wanted) => JSON.stringify([...document.querySelectorAll('table.winners tbody th b')]"
        ".map((each) => each.textContent)) === wanted",
        arg=str(expected).replace("'", '"').replace(", ", ","),
    )


# ---- what a person does ---------------------------------------------------------------------------


def test_the_list_is_searched_as_one_types_and_filtered_and_sorted(site: str, visit: Visit) -> None:
    with visit(site) as page:
        assert len(workloads(page)) == 7
        page.get_by_role("searchbox").press_sequentially("softmax")
        wait_for(page, ["softmax", "softmax"])
        assert page.url.endswith("/?q=softmax")
        assert page.locator("output.count").inner_text() == "2 workloads"
        page.get_by_label("Device").select_option(results.GPU.device)
        wait_for(page, ["softmax"])
        page.get_by_role("searchbox").fill("")
        wait_for(page, ["linear", "softmax"])
        page.get_by_role("link", name="Speed-up").click()
        wait_for(page, ["softmax", "linear"])
        page.get_by_role("link", name="Speed-up").click()
        wait_for(page, ["linear", "softmax"])
        assert "sort=speedup" in page.url
        page.reload()
        wait_for(page, ["linear", "softmax"])
        assert page.get_by_label("Device").input_value() == results.GPU.device
        page.go_back()
        wait_for(page, ["softmax", "linear"])
        page.get_by_role("searchbox").fill("nothing of this")
        page.get_by_role("link", name="Show all").click()
        page.wait_for_function("() => document.querySelectorAll('table.winners tbody tr').length === 7")


def test_a_workload_is_opened_and_its_plots_are_switched(site: str, visit: Visit) -> None:
    with visit(f"{site}/?q=softmax+cpu") as page:
        page.locator(".winners").get_by_role("link", name="softmax").click()
        page.wait_for_selector(DRAWN)
        assert page.locator(DRAWN).count() == 6
        convergence = page.locator("[data-figure=convergence]")
        convergence.get_by_role("button", name="by time").click()
        assert convergence.get_by_role("button", name="by time").get_attribute("aria-pressed") == "true"
        page.wait_for_function(
            "() => / s$|\\(s\\)|seconds/.test("
            "document.querySelector('[data-figure=convergence] .xtitle')?.textContent)"
        )
        slices = page.locator("[data-figure=slices]")
        slices.get_by_role("combobox").select_option(label="unroll")
        page.wait_for_function(
            "() => document.querySelector('[data-figure=slices] .xtitle')?.textContent.includes('unroll')"
        )
        page.get_by_text("lines of C++").click()
        assert "a <b>kernel</b> & more" in page.locator("pre.code").inner_text()
        with page.expect_download() as saved:
            page.get_by_role("link", name="Bundle").click()
        assert saved.value.suggested_filename.endswith(".ksb")


def test_two_are_ticked_and_compared(site: str, visit: Visit) -> None:
    with visit(site) as page:
        boxes = page.get_by_role("checkbox")
        for index in (0, 5, 2):  # the third takes the place of the first
            boxes.nth(index).check()
        assert page.locator("input:checked").count() == 2
        page.get_by_role("button", name="Compare two").click()
        page.wait_for_selector(DRAWN)
        assert page.get_by_role("heading", name="Side by side").is_visible()
        assert page.locator(".pair h2").nth(0).inner_text().startswith("linear")
        assert page.locator(".sides tbody tr").count() > 2


def test_the_other_is_chosen_from_a_workload(site: str, visit: Visit) -> None:
    with visit(site + SOFTMAX) as page:
        page.get_by_role("link", name="Compare with another").click()
        page.get_by_role("searchbox").press_sequentially("linear")
        wait_for(page, ["linear"])
        page.get_by_role("link", name="linear").click()
        page.wait_for_selector(DRAWN)
        names = page.locator(".pair .card h2").all_inner_texts()[:2]
        assert [name.split()[0] for name in names] == ["softmax", "linear"]


def test_without_javascript_the_form_and_the_links_do(site: str, visit: Visit) -> None:
    with visit(site, java_script_enabled=False) as page:
        page.get_by_role("searchbox").fill("softmax")
        page.get_by_role("button", name="Search").click()
        assert workloads(page) == ["softmax", "softmax"]
        page.get_by_role("link", name="Speed-up").click()
        page.get_by_role("link", name="softmax").first.click()
        assert "as fast as PyTorch" in page.locator("main").inner_text()
        assert "JavaScript, which is off" in page.locator("main").inner_text()


def test_everything_is_reached_by_keyboard(site: str, visit: Visit) -> None:
    with visit(site) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.activeElement.id === 'main'")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.name") == "q"
        page.keyboard.type("linear")
        wait_for(page, ["linear"])
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "sort-speedup":
                break
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        page.keyboard.press("Enter")
        page.wait_for_function("() => location.search.includes('sort=-speedup')")
        page.wait_for_function("() => document.querySelector('[aria-sort=descending]')")
        assert page.evaluate("document.activeElement.id") == "sort-speedup"  # although the table is new
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent").startswith("linear"):
                break
        page.keyboard.press("Enter")
        page.wait_for_selector(DRAWN)


# ---- what changes while one looks -----------------------------------------------------------------


def test_a_running_study_is_followed(tmp_path: Path, served: Callable[[Path], str], visit: Visit) -> None:
    """A real search on the CPU, from an empty page to its winner, without a reload."""
    path = tmp_path / "tuned.db"
    Store.open(path).close()
    tune = [sys.executable, "-m", "ksearch", "tune", "sigmoid", "--shape", "64x1024"]
    # A page asks every 2 s; 8 candidates take 1.3 s on two idle cores: this search lasts for three questions.
    tune += ["--trials", "1000", "--budget", "6s"]
    with visit(served(path)) as page:
        assert "Nothing was tuned here yet" in page.locator("main").inner_text()
        page.evaluate("window.notReloaded = true")
        with subprocess.Popen(
            [*tune, "--device", "cpu", "--quiet", "--db", str(path)], stdout=subprocess.DEVNULL
        ) as process:
            page.wait_for_selector(".running a", timeout=120_000)
            assert page.evaluate("window.notReloaded")
            page.locator(".running a").click()
            page.wait_for_selector(".headline")
            page.evaluate("window.notReloaded = true")
            page.wait_for_function(
                "() => /as fast as PyTorch|PyTorch is what runs/"
                ".test(document.querySelector('.headline').textContent)",
                timeout=120_000,
            )
            assert process.wait(120) == 0
        assert page.evaluate("window.notReloaded")
        page.wait_for_selector(DRAWN)


def test_a_winner_appears_on_an_open_page(
    tmp_path: Path, served: Callable[[Path], str], visit: Visit
) -> None:
    path = results.make(tmp_path / "young.db")  # else nothing runs in it any more
    with visit(served(path) + f"/w/{views.slug(results.RUNNING, results.CPU)}") as page:
        assert "24 candidates, 23 passed" in page.locator(".now").inner_text()
        page.wait_for_selector(DRAWN)
        with Store.open(path) as store:
            results.add_winner(store, results.RUNNING, results.CPU, 25.0)
        page.wait_for_function("() => document.querySelector('.headline b')?.textContent === '4.00x'")
        page.wait_for_function(
            "() => document.querySelector('[data-figure=distribution] .boxlayer')", timeout=20_000
        )


def test_a_database_that_vanishes_is_said_on_the_open_page(
    own_db: Path, served: Callable[[Path], str], visit: Visit
) -> None:
    with visit(served(own_db), expected="503") as page:
        away = own_db.rename(own_db.with_name("away.db"))
        page.wait_for_selector("#notice:visible")
        assert "not there any more" in page.locator("#notice").inner_text()
        assert len(workloads(page)) == 7  # what was read stays
        away.rename(own_db)
        page.wait_for_selector("#notice", state="hidden")


# ---- how it looks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def axe() -> str:
    package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    return (Path(package.__file__).parent / "axe.min.js").read_text()


@pytest.mark.parametrize(
    "path",
    ["/", "/?q=nothing+of+this", SOFTMAX, f"/w/{views.slug(results.FAILED, results.CPU)}", PAIR, "/nix"],
)
def test_axe_finds_nothing_serious(site: str, visit: Visit, axe: str, path: str) -> None:
    """Light on a wide screen and dark on a phone, of one page, because to draw its figures takes a second."""
    with visit(site + path, expected="404" if path == "/nix" else "nothing") as page:
        if path in (SOFTMAX, PAIR):
            page.wait_for_selector(DRAWN)
        page.evaluate(axe)
        for (width, height), scheme in ((WIDE, "light"), (PHONE, "dark")):
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme=scheme)
            found = page.evaluate("axe.run().then((result) => result.violations)")
            serious = [
                (each["id"], node["target"], node["failureSummary"])
                for each in found
                if each["impact"] in ("serious", "critical")
                for node in each["nodes"]
            ]
            assert serious == []


@pytest.mark.parametrize("path", ["/", SOFTMAX, PAIR])
def test_nothing_is_cut_off_on_a_phone(site: str, visit: Visit, path: str) -> None:
    with visit(site + path, PHONE, is_mobile=True, has_touch=True) as page:
        if path != "/":
            page.wait_for_selector(DRAWN)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
        small = page.evaluate(
            "[...document.querySelectorAll('main button, main select, main input[type=search]')]"
            ".filter((each) => each.offsetParent && each.offsetHeight < 32).map((each) => each.outerHTML)"
        )
        assert small == []


def test_the_dark_scheme_is_dark(site: str, visit: Visit) -> None:
    """The figures, too, which are drawn again when it changes."""
    with visit(site + SOFTMAX) as page:
        page.wait_for_selector(DRAWN)
        bright, dark = range(150, 256), range(130)
        for scheme, page_is, text_is in (("light", bright, dark), ("dark", dark, bright)):
            page.emulate_media(color_scheme=scheme)
            looks = (("body", "backgroundColor", page_is), (".xtick text", "fill", text_is))
            for selector, of, expected in looks:
                page.wait_for_function(
                    "([selector, of, low, high]) => getComputedStyle(document.querySelector(selector))[of]"
                    ".match(/\\d+/g).slice(0, 3).every((value) => low <= value && value < high)",
                    arg=[selector, of, expected.start, expected.stop],
                )


def test_a_raw_study_opens_in_the_dashboard(
    own_db: Path,
    served: Callable[[Path], str],
    visit: Visit,
    mirrored: object,  # noqa: F811
) -> None:
    with visit(served(own_db) + SOFTMAX, expected="nothing") as page:
        page.get_by_role("link", name="Raw study").click()
        page.get_by_text("softmax 256x1024").first.wait_for()
