"""What a user installs is the wheel, not this checkout: build it, put it elsewhere, tune from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build", reason="the package build is not installed here")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_carries_templates_studies_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"ksearch/_templates/{p.relative_to(ROOT / 'templates')}" for p in files(ROOT / "templates")}
    expected |= {f"ksearch/_studies/{p.relative_to(ROOT / 'studies')}" for p in files(ROOT / "studies")}
    expected |= {f"ksearch/{p.relative_to(ROOT / 'ksearch')}" for p in (ROOT / "ksearch").rglob("*.py")}
    expected |= {f"ksearch/{p.relative_to(ROOT / 'ksearch')}" for p in files(ROOT / "ksearch/pages/html")}
    expected |= {"ksearch/py.typed"}
    assert expected <= names
    assert not [name for name in names if not name.startswith("ksearch")]


def test_an_installed_wheel_tunes(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert Path(run("-c", "import ksearch; print(ksearch.__file__)").strip()).is_relative_to(site)
    shipped = Path(run("-c", "from ksearch import study; print(study.find('llm'))").strip())
    assert shipped == site / "ksearch/_studies/llm.toml"
    arguments = ["sigmoid", "--shape", "64x256", "--device", "cpu", "--trials", "3", "--json"]
    row = json.loads(run("-m", "ksearch", "tune", *arguments))
    assert row["op"] == "sigmoid"
    assert row["trials"] == 3
    assert row["status"] in ("winner", "baseline")
    assert row["time_us"] > 0
    listed = json.loads(run("-m", "ksearch", "list", "--json"))
    assert [(item["op"], item["time_us"]) for item in listed] == [("sigmoid", row["time_us"])]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
