"""What every address answers, asked without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ksearch.pages import views
from ksearch.runtime.bundle_file import BundleFile
from ksearch.types import Target, Workload
from tests.pages import results
from tests.web.conftest import client_of

PART = {"x-ksearch": "part"}


def at(workload: Workload, target: Target, rest: str = "") -> str:
    return f"/w/{views.slug(workload, target)}{rest}"


def names(text: str) -> list[str]:
    """The workloads of a table, in its order."""
    return re.findall(r'<a href="/w/([^"]+)"><b>', text.partition("<tbody>")[2])


def listed(client: TestClient, query: str) -> list[str]:
    answer = client.get(f"/?{query}")
    assert answer.status_code == 200
    return [name.partition("-")[0] for name in names(answer.text)]


def test_the_list_has_every_workload_and_sums_them_up(client: TestClient) -> None:
    text = client.get("/").text
    every = ["gelu", "layernorm", "linear", "my", "rmsnorm", "softmax", "softmax"]
    assert [name.partition("-")[0] for name in names(text)] == every
    assert "<dd>7</dd>" in text
    assert "PyTorch kept" in text
    assert "no winner yet" in text
    assert str(results.CPU.device) in text


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("q=softmax", ["softmax", "softmax"]),
        ("q=H200+64", ["linear"]),
        ("q=BFLOAT16", ["gelu"]),
        ("q=nothing+of+this", []),
        ("op=gelu", ["gelu"]),
        ("device=NVIDIA+H200", ["linear", "softmax"]),
        ("result=none", ["layernorm", "rmsnorm"]),
        ("result=pytorch", ["gelu"]),
        ("result=kernel&sort=-speedup", ["softmax", "linear", "my", "softmax"]),
        ("result=kernel&sort=speedup", ["softmax", "my", "linear", "softmax"]),
        ("sort=time_us", ["softmax", "linear", "my", "softmax", "gelu", "layernorm", "rmsnorm"]),
        ("page=2", []),
    ],
)
def test_it_is_searched_filtered_and_sorted(client: TestClient, query: str, expected: list[str]) -> None:
    assert listed(client, query) == expected


def test_a_query_stays_in_the_form_and_in_the_links(client: TestClient) -> None:
    text = client.get("/?q=a%22b&dtype=float32&sort=-speedup").text
    assert 'value="a&#34;b"' in text
    assert "<option selected>float32</option>" in text
    assert "Nothing fits this search" in text
    text = client.get("/?dtype=float32&sort=-speedup").text
    assert 'href="/?dtype=float32&amp;sort=speedup"' in text  # the other way round
    assert 'aria-sort="descending"' in text


@pytest.mark.parametrize("query", ["sort=nothing", "page=0", "page=x", "page=99999999999999999999", "page=٣"])
def test_a_list_that_cannot_be_is_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/?{query}")
    assert answer.status_code == 400
    assert "This cannot be shown" in answer.text


def test_what_runs_stands_above_the_list(tmp_path: Path) -> None:
    text = client_of(results.make(tmp_path / "young.db")).get("/").text
    running = text[text.index('data-part="running"') : text.index('data-part="tiles"')]
    assert at(results.RUNNING, results.CPU) in running
    assert re.search(r"<b>24</b> candidates, 23 passed", running)
    assert at(results.GELU, results.CPU) not in running


def test_an_unchanged_page_is_not_sent_again(client: TestClient) -> None:
    for path in ("/?part=1", at(results.SOFTMAX, results.CPU, "/part"), at(results.SOFTMAX, results.CPU)):
        tag = client.get(path).headers["etag"]
        again = client.get(path, headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")


def test_a_workload_has_its_evidence_and_its_figures(client: TestClient) -> None:
    text = client.get(at(results.SOFTMAX, results.CPU)).text
    assert "2.00x" in text
    assert "Failures by reason" in text
    assert "wrong" in text
    figures = json.loads(client.get(at(results.SOFTMAX, results.CPU, "/figures")).text)
    assert all(figures[name]["variants"] for name in ("convergence", "distribution", "slices", "parallel"))


def test_failures_only_have_a_page_that_says_so(client: TestClient) -> None:
    text = client.get(at(results.FAILED, results.CPU)).text
    assert "No winner yet" in text
    assert "compile error" in text
    figures = json.loads(client.get(at(results.FAILED, results.CPU, "/figures")).text)
    assert "No candidate passed" in figures["convergence"]["empty"]


@pytest.mark.parametrize(
    "path",
    ["/w/softmax-1x1-float32-0123456789abcdef", "/w/x/part", "/w/x/figures", "/nix", "/assets/nix", "/w/%00"],
)
def test_what_is_not_there_is_a_page_that_says_so(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "Not found" in answer.text
    line = client.get(path, headers=PART)
    assert line.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "path",
    [
        "/", at(results.SOFTMAX, results.CPU), at(results.OWN, results.CPU), at(results.FAILED, results.CPU),
        f"/compare?w={views.slug(results.SOFTMAX, results.CPU)}&w={views.slug(results.OWN, results.CPU)}",
        "/?q=<script>alert(1)</script>", "/?op=<img+src=x>", "/w/<img src=x onerror=alert(1)>",
        "/compare?w=<img src=x onerror=alert(1)>",
    ],
)  # fmt: skip
def test_html_in_names_and_messages_is_text(client: TestClient, path: str) -> None:
    text = client.get(path).text
    assert "<img" not in text
    assert not re.search(r"<script>|<script(?! src=\"/assets/)", text)
    assert not re.search(r'<[^>"]*(?:"[^"]*"[^>"]*)*\son\w+=', text)
    assert ' style="' not in text


def test_two_are_compared(client: TestClient) -> None:
    one, other = views.slug(results.SOFTMAX, results.CPU), views.slug(results.LINEAR, results.GPU)
    text = client.get(f"/compare?w={one}&w={other}").text
    assert "Both run the same source" in text
    assert at(results.LINEAR, results.GPU) in text
    figures = json.loads(client.get(f"/compare/figures?w={one}&w={other}").text)
    drawn = {trace["name"] for trace in figures["samples"]["variants"][0]["data"] if trace["type"] == "box"}
    assert drawn == {"left: ksearch", "left: PyTorch", "right: ksearch", "right: PyTorch"}


def test_the_second_is_chosen_from_a_list(client: TestClient) -> None:
    one = views.slug(results.SOFTMAX, results.CPU)
    text = client.get("/compare").text
    assert f'href="/compare?w={one}"' in text
    text = client.get(f"/compare?w={one}&q=linear").text
    other = views.slug(results.LINEAR, results.GPU)
    assert f'href="/compare?w={one}&amp;w={other}"' in text
    assert f'name="w" value="{one}"' in text
    assert client.get(f"/compare?w={one}&w={one}&w={one}").status_code == 400
    assert client.get(f"/compare?w={one}&w=nix").status_code == 404


def test_winners_are_saved_as_bundles(client: TestClient, tmp_path: Path) -> None:
    def members(path: str) -> set[str]:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-disposition"].startswith("attachment")
        saved = tmp_path / "saved.ksb"
        saved.write_bytes(answer.content)
        return {str(member.winner.workload) for member in BundleFile(saved, None).members()}

    assert members(at(results.LINEAR, results.GPU, "/winner.ksb")) == {str(results.LINEAR)}
    assert members("/winners.ksb?q=softmax") == {str(results.SOFTMAX)}
    assert len(members("/winners.ksb")) == 4  # of five winners two are of one workload
    assert client.get(at(results.FAILED, results.CPU, "/winner.ksb")).status_code == 404
    assert client.get("/winners.ksb?q=layernorm").status_code == 400


def test_a_kernel_is_saved_as_a_source(client: TestClient) -> None:
    answer = client.get(at(results.SOFTMAX, results.CPU, "/kernel.py"))
    assert answer.status_code == 200
    assert "a <b>kernel</b> & more" in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get(at(results.SOFTMAX, results.CPU, "/kernel.cpp")).status_code == 200
    assert client.get(at(results.SOFTMAX, results.CPU, "/kernel.cu")).status_code == 400
    assert "PyTorch won" in client.get(at(results.GELU, results.CPU, "/kernel.py")).text
    unknown = client.get(at(results.OWN, results.CPU, "/kernel.py"))
    assert unknown.status_code == 400
    assert "my_op" in unknown.text


def test_assets_are_kept_for_ever_under_an_address_of_their_content(client: TestClient) -> None:
    addresses = re.findall(r'"(/assets/[^"]+)"', client.get(at(results.SOFTMAX, results.CPU)).text)
    assert {address.partition("?")[0] for address in addresses} == {
        "/assets/icon.svg", "/assets/style.css", "/assets/web.css", "/assets/plotly.js", "/assets/page.js",
        "/assets/live.js",
    }  # fmt: skip
    for address in addresses:
        answer = client.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
