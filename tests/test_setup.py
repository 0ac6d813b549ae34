"""The set-up scripts, run for real on a machine whose python3, compiler and disk are replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ["scripts/_setup", "scripts/ksearch", "scripts/test", ".ci/run"]

# Takes the part of python3, of the interpreter of the environment, and of pip; writes down what it is asked.
PYTHON = """#!/bin/bash
case "$*" in
    *"import sys; sys.exit(sys.version_info < (3, 11))"*) exit ${FAKE_TOO_OLD:-0} ;;
    --version) echo "Python 3.9.2" ;;
    *"print(sys.executable)"*) echo "$0" ;;
    *"print(sys.version)"*) echo "3.11 (fake)" ;;
    *"import venv, ensurepip"*) exit ${FAKE_NO_VENV:-0} ;;
    "-m venv --clear "*)
        echo "venv" >>"$FAKE_LOG"
        rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-m pip --version") exit 0 ;;
    "-m pip install"*)
        shift 4; echo "pip $*" >>"$FAKE_LOG"
        echo "${FAKE_PIP_SAYS:-}"
        if [[ ${FAKE_KILLED:-} ]]; then kill -9 $PPID; fi
        exit ${FAKE_PIP_FAILS:-0} ;;
    *importlib.metadata*) exit ${FAKE_CPU_TORCH:-1} ;;
    "- "*) echo "${FAKE_LACKING:-}" ;;
    *) echo "ran $*" ;;
esac
"""
TOOLS = ["bash", "awk", "cat", "cksum", "cp", "dirname", "flock", "grep", "mkdir", "readlink", "rm", "tail"]


class Machine:
    """A checkout's scripts in a folder of their own, and a PATH with only what is put there."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.path = folder / "bin"
        self.log = folder / "log"
        self.path.mkdir()
        for name in TOOLS:
            (self.path / name).symlink_to(shutil.which(name) or name)
        self.add("python3", PYTHON)
        self.add("c++", "#!/bin/bash\n")
        self.add("df", "#!/bin/bash\necho header\necho disk 0 0 ${FAKE_FREE_KIB:-9000000} 1% /\n")
        for name in [*SCRIPTS, "pyproject.toml", "constraints.txt"]:
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.checkout / name)

    def add(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def run(
        self, script: str, *arguments: str, env: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.path), "FAKE_LOG": str(self.log), **env}
        command = [str(self.checkout / script), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    def asked(self) -> list[str]:
        """What was installed since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.replace(str(self.checkout), "ROOT") for line in lines]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_parse_and_can_be_run(name: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / name)], check=True)
    assert name == "scripts/_setup" or os.access(ROOT / name, os.X_OK)


def test_the_first_run_installs_torch_first_and_the_second_nothing(machine: Machine) -> None:
    first = machine.run("scripts/ksearch", "list", "--json")
    assert (first.returncode, first.stdout) == (0, "ran -m ksearch list --json\n")
    assert machine.asked() == ["venv", "pip torch==2.13.0", "pip -e ROOT[web] -c ROOT/constraints.txt"]
    second = machine.run("scripts/ksearch", "list")
    assert (second.returncode, second.stdout, second.stderr) == (0, "ran -m ksearch list\n", "")
    assert machine.asked() == []


def test_the_tests_add_their_tools_to_the_same_environment(machine: Machine) -> None:
    machine.run("scripts/ksearch", "list")
    machine.asked()
    done = machine.run("scripts/test", "-k", "name")
    assert (done.returncode, done.stdout) == (0, "ran -m pytest -k name\n")
    assert machine.asked() == ["pip torch==2.13.0", "pip -e ROOT[dev] -c ROOT/constraints.txt"]
    machine.run("scripts/ksearch", "list")
    assert machine.asked() == []


def test_a_gpu_brings_the_cuda_extra_and_a_cuda_torch_its_own_pins(machine: Machine) -> None:
    machine.add("nvidia-smi", "#!/bin/bash\n")
    machine.run("scripts/ksearch", "list", env={"FAKE_CPU_TORCH": "0"})
    assert machine.asked()[-1] == "pip -e ROOT[cuda,web] -c ROOT/.venv/constraints.txt"
    pins = (machine.checkout / ".venv/constraints.txt").read_text()
    assert "optuna==" in pins
    assert "nvidia-cuda-nvrtc" not in pins


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_anew(machine: Machine, name: str) -> None:
    machine.run("scripts/ksearch", "list")
    machine.asked()
    with (machine.checkout / name).open("a") as file:
        file.write("# changed\n")
    machine.run("scripts/ksearch", "list")
    assert machine.asked() == ["pip torch==2.13.0", "pip -e ROOT[web] -c ROOT/constraints.txt"]


def test_what_an_interrupted_run_left_is_made_anew(machine: Machine) -> None:
    killed = machine.run("scripts/ksearch", "list", env={"FAKE_KILLED": "1"})
    assert killed.returncode == -9
    assert machine.asked() == ["venv", "pip torch==2.13.0"]
    after = machine.run("scripts/ksearch", "list")
    assert (after.returncode, after.stdout) == (0, "ran -m ksearch list\n")
    assert machine.asked()[0] == "venv"


def test_an_environment_without_pip_is_made_anew(machine: Machine) -> None:
    (machine.checkout / ".venv/bin").mkdir(parents=True)
    assert machine.run("scripts/ksearch", "list").returncode == 0
    assert machine.asked()[0] == "venv"


def test_a_failed_download_says_so_and_the_next_run_goes_on(machine: Machine) -> None:
    env = {"FAKE_PIP_FAILS": "1", "FAKE_PIP_SAYS": "ERROR: no route to host"}
    failed = machine.run("scripts/ksearch", "list", env=env)
    assert failed.returncode == 1
    assert "no route to host" in failed.stderr
    assert "error: pip install torch==2.13.0 failed" in failed.stderr
    machine.asked()
    assert machine.run("scripts/ksearch", "list").returncode == 0
    assert machine.asked() == ["pip torch==2.13.0", "pip -e ROOT[web] -c ROOT/constraints.txt"]


@pytest.mark.parametrize("script", ["scripts/ksearch", "scripts/test"])
@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"FAKE_TOO_OLD": "1"}, "Python 3.11 or later is needed, found only Python 3.9.2"),
        ({"FAKE_NO_VENV": "1"}, "no venv module: install it (apt-get install python3-venv)"),
        ({"FAKE_FREE_KIB": "1048576"}, "no disk space: "),
        ({"KSEARCH_PYTHON": "/no/such/python"}, "KSEARCH_PYTHON=/no/such/python is not a Python 3.11"),
    ],
)
def test_what_a_machine_lacks_is_one_line(
    machine: Machine, script: str, env: dict[str, str], expected: str
) -> None:
    done = machine.run(script, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ksearch: error: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert machine.asked() == []


def test_no_python_at_all_is_one_line(machine: Machine) -> None:
    (machine.path / "python3").unlink()
    done = machine.run("scripts/ksearch")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "found none on PATH" in done.stderr


def test_a_newer_python_beside_an_old_one_is_taken(machine: Machine) -> None:
    machine.add("python3", "#!/bin/bash\n[[ $1 == --version ]] && echo Python 3.9.2\nexit 1\n")
    machine.add("python3.12", PYTHON)
    assert machine.run("scripts/ksearch", "list").returncode == 0


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="with a GPU no C++ compiler is needed")
def test_no_compiler_is_one_line(machine: Machine) -> None:
    (machine.path / "c++").unlink()
    done = machine.run("scripts/ksearch", "list")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no C++ compiler found: install one (apt-get install g++)" in done.stderr
    assert machine.run("scripts/ksearch", "list", env={"KSEARCH_CXX": "bash -x"}).returncode == 0


def test_a_disk_that_fills_up_is_one_line(machine: Machine) -> None:
    env = {"FAKE_PIP_FAILS": "1", "FAKE_PIP_SAYS": "OSError: [Errno 28] No space left on device"}
    done = machine.run("scripts/ksearch", "list", env=env)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ksearch: error: no disk space left")


def test_a_named_interpreter_is_used_as_it_is(machine: Machine) -> None:
    python = machine.path / "python3"
    env = {"KSEARCH_PYTHON": str(python)}
    done = machine.run("scripts/ksearch", "ops", env=env)
    assert (done.returncode, done.stdout, machine.asked()) == (0, "ran -m ksearch ops\n", [])
    assert not (machine.checkout / ".venv").exists()
    lacking = machine.run("scripts/ksearch", "ops", env={**env, "FAKE_LACKING": "optuna rich"})
    assert lacking.returncode == 1
    assert "-m pip install optuna rich" in lacking.stderr
