from __future__ import annotations

import base64
import hashlib
import html as entities
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from ksearch.pages import contents, static, template
from ksearch.pages.markdown import lines, literal
from tests.pages import results


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and the texts of its scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.islands: list[Any] = []
        self.written = ""
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag != "script" else str(dict(attrs).get("type", "script"))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside == "application/json":
            self.islands.append(json.loads(data))
        elif self._inside != "style":
            self.written += data

    def all(self, attribute: str) -> list[str]:
        return [str(found[attribute]) for _, found in self.elements if attribute in found]


@pytest.fixture(scope="module")
def source(found: contents.Contents) -> str:
    return "".join(static.html(found))


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_every_row_leads_to_a_part_of_the_page(page: Page, found: contents.Contents) -> None:
    parts = page.all("data-page")
    assert parts == ["", *(row.slug for row in found.overview.rows)]
    assert {f"#{part}" for part in parts} < {*page.all("href"), "#main"}


def test_each_part_holds_its_figures_and_source_as_json(page: Page, found: contents.Contents) -> None:
    assert len(page.islands) == len(found.overview.rows)
    of_cpu_softmax = page.islands[3]
    assert of_cpu_softmax["figures"]["convergence"]["variants"][0]["label"] == "by trial"
    assert re.sub(r"</?span[^>]*>", "", of_cpu_softmax["source"]) == (
        results.SOURCE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;")
    )


def test_nothing_that_was_measured_becomes_html(page: Page) -> None:
    assert results.NASTY in page.written
    assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "object", "link")]
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]


def test_the_page_loads_nothing_and_runs_only_its_own_two_scripts(page: Page) -> None:
    assert page.all("src") == []
    assert all(href.startswith("#") for href in page.all("href"))
    (policy,) = (found["content"] for _, found in page.elements if "http-equiv" in found)
    assert str(policy).startswith("default-src 'none'; ")
    assert len(page.scripts) == 2
    for script in page.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in str(policy)


def test_the_style_takes_nothing_from_elsewhere() -> None:
    assert "url(" not in template.style()
    assert "@import" not in template.style()


def test_an_island_cannot_be_left() -> None:
    value = {"a": "</script><!--<script>", "b": [1.5, None]}
    written = str(template.island(value))
    assert "<" not in written
    assert json.loads(written) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        template.island(float("nan"))


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_highlighting_keeps_every_character(backend: str) -> None:
    code = '\n\n#include <x>\n__global__ void f(float* x) { // "a" & b\n\tx[0] = 1.5f;\n}\n\n'
    coloured = str(template.highlighted(code, backend))
    assert entities.unescape(re.sub(r"</?span[^>]*>", "", coloured)) == code
    assert '<span class="c">// &#34;a&#34; &amp; b\n</span>' in coloured


def test_markdown_has_a_row_and_a_line_for_each_workload(found: contents.Contents) -> None:
    written = "".join(lines(found)).splitlines()
    rows = [line for line in written if line.startswith("| ")][1:]
    assert [line.count("|") - line.count("\\|") for line in rows] == [10] * 7
    assert rows[3] == (
        "| softmax | 256x1024 | float32 | Some CPU, 2 threads | 50.00 | 100.0 | "
        "2.00x | 1.90x to 2.10x | 80 % |"
    )
    assert len([line for line in written if line.startswith("- ")]) == 7


def test_markdown_is_the_same_for_the_same_results(found: contents.Contents) -> None:
    assert "".join(lines(found)) == "".join(lines(found))


def test_markdown_says_what_became_of_each(found: contents.Contents) -> None:
    written = "".join(lines(found))
    assert "nothing found surely beats PyTorch" in written
    assert "**To be looked into:** 1.20 times the speed of the ceiling" in written
    assert "no candidate passed; 24 candidates in the database, of which failed 16 wrong" in written


def test_markdown_shows_names_as_they_are() -> None:
    assert literal("a|b\n<img> *c*") == "a\\|b \\<img\\> \\*c\\*"
