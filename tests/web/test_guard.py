"""Who is let in, and what no answer lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ksearch.web.guard import is_loopback
from tests.web.conftest import client_of

TOKEN = "a-token-of-some-length"


@pytest.fixture
def public(db: Path) -> TestClient:
    """Of a server that others reach."""
    return client_of(db, "10.0.0.7", TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.1:8421", "localhost:99", "[::1]:8421"])
def test_a_loopback_server_answers_to_loopback_names(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8421", "10.0.0.7", "", "[::2]"]
)
def test_and_to_no_other(client: TestClient, host: str) -> None:
    for path in ("/", "/assets/style.css", "/dashboard", "/api/studies"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 403
        assert "softmax" not in answer.text


@pytest.mark.parametrize("path", ["/", "/compare", "/assets/style.css", "/dashboard", "/api/studies", "/nix"])
def test_elsewhere_a_token_is_asked_for(public: TestClient, path: str) -> None:
    answer = public.get(path)
    assert answer.status_code == 401
    assert "ksearch browse" in answer.text
    for wrong in ("", TOKEN[:-1], f"{TOKEN}x", "%C3%A9"):
        answer = public.get(f"{path}?token={wrong}")
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers


def test_the_token_is_shown_once_and_then_kept_in_a_cookie(public: TestClient) -> None:
    answer = public.get(f"/compare?w=a%26b&token={TOKEN}")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/compare?w=a%26b"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert public.get("/").status_code == 200  # the client has kept it
    assert TOKEN not in public.get("/").text


def test_a_program_may_send_it_as_a_header(public: TestClient) -> None:
    assert public.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert public.get("/", headers={"authorization": "Bearer nix"}).status_code == 401
    assert public.get("/", headers={"authorization": f"Basic {TOKEN}"}).status_code == 401
    assert public.get("/", headers={"cookie": "ksearch-80=nix"}).status_code == 401


def test_the_way_on_stays_on_this_server(public: TestClient) -> None:
    answer = public.get(f"http://10.0.0.7//evil.example/?token={TOKEN}")
    assert answer.headers["location"] == "/evil.example/"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/api/studies", "/api/studies/1", "/dashboard"])
def test_nothing_can_be_changed(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/", "/nix", "/assets/page.js", "/?sort=nix"])
def test_every_answer_says_what_a_browser_may_do(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert "unsafe-inline" not in str(policy)
    assert "unsafe-eval" not in str(policy)
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.7", "localhost.example", "gpu-1", "")],
)
def test_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
