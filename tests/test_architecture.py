"""The promises about who imports whom, and what importing costs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ksearch import operators, study_file

ROOT = Path(__file__).parents[1]


def test_imports_point_down_only() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    if not Path(command[0]).exists():
        pytest.skip("import-linter is not installed here")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("ksearch", {"torch", "optuna", "sqlalchemy", "jinja2", "rich", "numpy"}),
        ("ksearch.types", {"torch", "optuna", "sqlalchemy", "jinja2"}),
        ("ksearch.backends.cpu", {"torch", "optuna", "sqlalchemy", "jinja2"}),
        ("ksearch.backends.cuda", {"torch", "optuna", "sqlalchemy", "jinja2"}),
        ("ksearch.artifacts", {"torch", "optuna", "sqlalchemy", "jinja2"}),
        ("ksearch.operators", {"torch"}),
        ("ksearch.study_file", {"torch", "optuna", "sqlalchemy", "rich"}),
        ("ksearch.runtime", {"optuna", "sqlalchemy"}),
    ],
)
def test_importing_it_does_not_import(module: str, forbidden: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({forbidden!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_dependency_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    stated = [*project["dependencies"], *extras["dashboard"], *extras["report"], *extras["web"]]
    names = {re.split(r"[\[<>=]", each)[0].replace("-", "_") for each in stated}
    code = "".join(path.read_text() for path in (ROOT / "ksearch").rglob("*.py"))
    imported = set(re.findall(r"(?m)^\s*(?:import|from) (\w+)", code))
    assert names - imported == {"ninja"}, "ninja is for PyTorch, which compiles what was exported"


def test_every_environment_variable_is_read_in_one_place_and_documented() -> None:
    text = {path: path.read_text() for path in (ROOT / "ksearch").rglob("*.py")}
    reading = re.compile(r"(?:environ|getenv).*KSEARCH_")
    readers = [str(path) for path, code in text.items() if reading.search(code) and path.name != "env.py"]
    assert readers == []
    readme = (ROOT / "README.md").read_text()
    names = re.findall(r'environ\.get\("(KSEARCH_\w+)"', text[ROOT / "ksearch/env.py"])
    assert names
    assert [name for name in names if f"`{name}`" not in readme] == []


@pytest.mark.parametrize("study", sorted((ROOT / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_a_study_names_workloads_that_can_be_tuned(study: Path) -> None:
    content = study_file.read(study)
    assert content.name == study.stem
    tunable = [entry for entry in content.entries if not entry.needs]
    assert tunable
    for entry in tunable:
        op, policy = operators.get(entry.op), entry.policy
        workload = op.workload(entry.shape, entry.dtype, policy=policy, **dict(entry.options))
        assert workload.dims == entry.shape
