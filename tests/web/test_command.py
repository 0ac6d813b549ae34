"""`ksearch browse`: a process of its own, and what it refuses before it serves."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ksearch import cli
from ksearch.store import Store
from tests.web.test_faults import write


@contextmanager
def browsing(db: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the address that it printed."""
    command = [sys.executable, "-m", "ksearch", "browse", "--port", "0", "--db", str(db), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, line + process.communicate(timeout=10)[1]
        assert str(db) in line
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def test_it_serves_until_it_is_interrupted(db: Path) -> None:
    with browsing(db) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        assert "softmax" in get(url)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode in (0, 130)
        assert "Traceback" not in errors


def test_off_the_loopback_interface_its_address_has_a_token(db: Path) -> None:
    with browsing(db, "--host", "0.0.0.0") as (_, url):
        token = re.search(r"\?token=([\w-]{43})$", url)
        assert token is not None
        port = url.split(":")[2].partition("/")[0]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(f"http://127.0.0.1:{port}/")
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/", headers={"Authorization": f"Bearer {token[1]}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = cli.main(["browse", *arguments])
    out, errors = capsys.readouterr()
    assert out == ""
    assert len(errors.splitlines()) == 1
    return status, errors


def test_a_port_that_is_taken(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, errors = refused(capsys, "--db", str(db), "--port", port)
    assert status == 2
    assert f"port {port} of 127.0.0.1 is taken" in errors
    assert "--port" in errors


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "not a host"])
def test_a_host_that_is_not_this_machine(db: Path, capsys: pytest.CaptureFixture[str], host: str) -> None:
    status, errors = refused(capsys, "--db", str(db), "--port", "0", "--host", host)
    assert status == 2
    assert host in errors


def test_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, errors = refused(capsys, "--db", str(tmp_path / "none.db"), "--port", "0")
    assert status == 1
    assert "no database at" in errors
    assert "ksearch tune" in errors


def test_a_newer_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store.open(tmp_path / "newer.db").close()
    write(tmp_path / "newer.db", "INSERT INTO ksearch_schema VALUES (99, '2030-01-01')")
    status, errors = refused(capsys, "--db", str(tmp_path / "newer.db"), "--port", "0")
    assert status == 1
    assert "upgrade ksearch" in errors


def test_an_empty_token_and_a_port_out_of_range(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("--token", ""), ("--port", "65536"), ("--port", "-1")):
        status, errors = refused(capsys, "--db", str(db), *arguments)
        assert status == 2
        assert arguments[0] in errors


def test_the_command_line_does_not_import_a_web_server() -> None:
    web = {"starlette", "uvicorn", "a2wsgi", "plotly", "jinja2", "sqlalchemy"}
    code = f"import sys, ksearch.cli; print(*sorted({web} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_without_the_extra_it_says_what_to_install(
    db: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, errors = refused(capsys, "--db", str(db), "--port", "0")
    assert status == 1
    assert "pip install 'ksearch[web]'" in errors
