from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ksearch.errors import UserFileError
from ksearch.operators import user_file


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\nx = = 2\n", ":2: SyntaxError: invalid syntax"),
        ("\nimport no_such_module_anywhere\n", ":2: ModuleNotFoundError: No module named 'no_such_module_"),
        ("def f():\n    raise ValueError('first\\nsecond')\nf()\n", ":2: ValueError: first$"),
        ("raise SystemExit(3)\n", ":1: SystemExit: 3"),
        ("raise KeyError\n", ":1: KeyError: no message"),
        (
            "import ksearch\n@ksearch.op\ndef f(x, eps=1): return x\n",
            ":2: UsageError: f: parameter 'eps' is a tensor",
        ),
        ("x = 1\x00\n", "source code string cannot contain null bytes|SyntaxError"),
    ],
)
def test_errors_carry_the_files_own_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    before = list(sys.path)
    with pytest.raises(UserFileError, match=says) as refused:
        user_file.run(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
    assert sys.path == before
    assert not user_file.has_run(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserFileError, match=r"cannot read .*gone.py: No such file"):
        user_file.run(tmp_path / "gone.py")
    with pytest.raises(UserFileError, match="cannot read"):
        user_file.run(tmp_path)


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_a_test.py").write_text("VALUE = 5\n")
    path = tmp_path / "main.py"
    path.write_text("from neighbour_of_a_test import VALUE\n")
    user_file.run(path)
    assert user_file.lookup(path, "VALUE") == 5
    assert user_file.lookup(path, "OTHER") is None


def test_staleness_follows_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("A = 1\n")
    assert not user_file.is_stale(path)
    user_file.run(path)
    assert user_file.has_run(path)
    assert not user_file.is_stale(path)
    path.write_text("A = 2\n")
    assert user_file.is_stale(path)
    user_file.run(path)
    assert user_file.lookup(path, "A") == 2


def test_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ops.py").write_text(f"NAME = {folder!r}\n")
        user_file.run(tmp_path / folder / "ops.py")
    assert user_file.lookup(tmp_path / "one" / "ops.py", "NAME") == "one"
    assert user_file.lookup(tmp_path / "two" / "ops.py", "NAME") == "two"
