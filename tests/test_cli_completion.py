"""What a shell offers, and what it costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from ksearch import cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def db(filled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KSEARCH_DB", str(filled))
    return filled


def offered(*words: str) -> list[str]:
    """For the last word, of which the beginning is written."""
    *arguments, incomplete = words
    shell = ShellComplete(cli.commands, {}, "ksearch", "_KSEARCH_COMPLETE")
    return [item.value for item in shell.get_completions(arguments, incomplete)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("comp",), ["compare", "completion"]),
        (("show", ""), ["gelu", "linear", "softmax"]),
        (("export", "so"), ["softmax"]),
        (("list", "--op", "li"), ["linear"]),
        (("show", "softmax", "--shape", ""), ["8x65536", "64x256"]),
        (("trials", "softmax", "--shape", "6"), ["64x256"]),
        (("show", "my_ops.py:softmax", "--shape", "8"), ["8x65536"]),
        (("compare", "linear", "--shape", "32x256x128", "--shape", "3"), ["32x256x128"]),
        (("top", "--device", ""), ["cpu", "cuda", "H200", "Some"]),
        (("list", "--device", "h2"), ["H200"]),
        (("list", "--dtype", "f"), ["float32", "float16"]),
        (("trials", "softmax", "--status", "wr"), ["wrong"]),
        (("ops", "layernorm_"), ["layernorm_backward"]),
    ],
    ids=" ".join,
)
def test_ops_shapes_and_devices_are_those_of_the_database(
    db: Path, words: tuple[str, ...], expected: list[str]
) -> None:
    assert offered(*words) == expected


def test_an_op_of_a_file_is_completed_as_a_file(db: Path) -> None:
    shell = ShellComplete(cli.commands, {}, "ksearch", "_KSEARCH_COMPLETE")
    (item,) = shell.get_completions(["tune"], "my_o")
    assert (item.value, item.type) == ("my_o", "file")


def test_the_database_is_the_one_that_is_named(filled: Path, tmp_path: Path) -> None:
    assert offered("show", "") == []
    assert offered("show", "--db", str(filled), "so") == ["softmax"]
    (tmp_path / "letter.db").write_text("Dear database, " * 100)
    assert offered("show", "--db", str(tmp_path / "letter.db"), "so") == []
    assert offered("list", "--db", str(tmp_path / "letter.db"), "--device", "") == ["cpu", "cuda"]


@pytest.mark.parametrize(
    ("words", "expected"), [("ksearch show so", "softmax"), ("ksearch tune layerno", "layernorm")]
)
def test_completion_imports_nothing_that_takes_long(db: Path, words: str, expected: str) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": "2", "_KSEARCH_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ksearch"],
        env={**os.environ, **asked, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"plain,{expected}" in done.stdout.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "ksearch.cli.complete" in imported
    assert imported & {"torch", "optuna", "sqlalchemy", "rich", "jinja2", "numpy"} == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_says_how_to_install_it(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_KSEARCH_COMPLETE" in script
    assert script.splitlines()[-1].startswith("# To have it in every shell: ")
    assert cli.main(["completion", shell, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert script == f"{row['script'].rstrip()}\n\n# To have it in every shell: {row['install']}\n"


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "csh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def test_bash_completes_with_the_script(db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    cli.main(["completion", "bash"])
    program = tmp_path / "ksearch"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m ksearch "$@"\n')
    program.chmod(0o755)
    asked = (
        f'COMP_WORDS=({program} show softmax --device ""); COMP_CWORD=4\n'
        f'_ksearch_completion {program}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    script = f"{capsys.readouterr().out}\n{asked}"
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cpu", "cuda", "H200", "Some"]
