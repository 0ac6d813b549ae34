"""Kernels under compute-sanitizer: each tool runs `ksearch.evaluate.sanitized` in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ksearch.certificate import Sanitized
from ksearch.errors import KsearchError, ToolMissing, UsageError
from ksearch.evaluate.sanitized import Task
from ksearch.launch import Launch
from ksearch.operators import Op
from ksearch.operators.cost import element_counts
from ksearch.operators.program import Role
from ksearch.types import INDEX_BYTES, ITEMSIZE, Candidate, Target, Workload

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")

_FOUND = 86
"""Exit status by which the sanitizer says that it found something."""
_LIMIT_S = 300.0
_MOST_BYTES = 8 << 20
"""Of a tensor: kernels run 10 to 100 times slower there. A few rows more or less show nothing new."""
_NO_ERRORS, _ERROR = "no errors", "error: "


@dataclass(frozen=True, slots=True)
class Sanitizer:
    """Runs the candidates of one workload under every tool."""

    path: Path
    version: str
    op: Op
    workload: Workload
    target: Target
    limit_s: float = _LIMIT_S
    """For one tool and candidate."""

    @classmethod
    def find(cls, op: Op, workload: Workload, target: Target) -> Sanitizer:
        """Raises UsageError for a CPU, ToolMissing where it is not installed, KsearchError where it does not
        work on this machine."""
        if target.backend != "cuda":
            raise UsageError(
                "--sanitize is for CUDA kernels: compute-sanitizer does not know a CPU's; leave it out, or "
                "choose --device cuda"
            )
        path = next(_places(), None)
        if path is None:
            raise ToolMissing(
                "--sanitize needs NVIDIA's compute-sanitizer, which is neither on PATH nor in CUDA_HOME; "
                "install it with: pip install nvidia-cuda-sanitizer-api"
            )
        return cls.at(path, op, workload, target)

    @classmethod
    def at(cls, path: Path, op: Op, workload: Workload, target: Target) -> Sanitizer:
        """The program at `path`, which is tried on a copy. Raises KsearchError where that does not work."""
        try:
            text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        except OSError as error:
            raise KsearchError(f"{path} cannot be started: {error.strerror}; leave --sanitize out") from error
        version = re.search(r"Version (\S+)", text)
        made = cls(path, version[1] if version else "of unknown version", op, workload, target)
        nothing = Task(target.backend, target.index, "", Launch(), workload.dtype, (), ())
        said = made._run("memcheck", nothing)
        if said != _NO_ERRORS:
            raise KsearchError(f"{path} does not work on this machine ({said}); leave --sanitize out")
        return made

    def check(self, candidate: Candidate) -> tuple[Sanitized, str]:
        """What each tool said, and the first error that one found; empty where none did."""
        task = self._task(candidate)
        with ThreadPoolExecutor(len(TOOLS)) as pool:  # the threads wait for processes
            said = list(pool.map(lambda tool: self._run(tool, task), TOOLS))
        found = dict(zip(TOOLS, said, strict=True))
        errors = (
            f"{tool}: {text.removeprefix(_ERROR)}" for tool, text in found.items() if text.startswith(_ERROR)
        )
        return Sanitized(self.version, task.rows, found), next(errors, "")

    def _task(self, candidate: Candidate) -> Task:
        workload, launch = self.workload, candidate.launch
        rows = workload.rows
        if launch.most_rows:
            width = max(workload.cols, workload.inner) * workload.itemsize
            rows = min(rows, launch.most_rows, max(3, _MOST_BYTES // width))
        counts = element_counts(rows, workload.cols, workload.inner, workload.channels)
        options = dict(workload.options)
        program = self.op.program(**options)
        declared = self.op.inputs_for(options)
        if launch.torch_product:  # the kernel gets the product in the place of its operands
            declared = program.of_kernel(launch).inputs
        roles = [item.role for item in declared]
        outputs = zip(program.output_roles, program.output_dtypes(workload.dtype), strict=True)
        return Task(
            backend=self.target.backend,
            index=self.target.index,
            binary=candidate.artifact.binary,
            launch=launch,
            dtype=workload.dtype,
            inputs=tuple(counts[role] for role in roles),
            outputs=tuple(counts[role] * ITEMSIZE.get(dtype, INDEX_BYTES) for role, dtype in outputs),
            indices=tuple(place for place, role in enumerate(roles) if role is Role.INDEX),
            weight=roles.index(Role.RIGHT) if launch.pack is not None else None,
            rows=rows,
            cols=workload.cols,
        )

    def _run(self, tool: str, task: Task) -> str:
        """What the tool says, in one line."""
        with tempfile.TemporaryDirectory(prefix="ksearch-") as folder:
            file = Path(folder, "task.json")
            task.write(file)
            # The driver's refusals are the program's own affair: an instrumented kernel takes more registers,
            # and one that no longer fits is no error of the kernel.
            options = ["--tool", tool, "--error-exitcode", str(_FOUND), "--report-api-errors", "no"]
            options += ["--check-exit-code", "no", "--target-processes", "application-only"]
            program = [sys.executable, "-P", "-m", "ksearch.evaluate.sanitized", str(file)]
            with subprocess.Popen(
                [str(self.path), *options, *program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.curdir for p in sys.path)},
                start_new_session=True,
            ) as process:
                try:
                    output, _ = process.communicate(timeout=self.limit_s)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
                    return f"not finished within {self.limit_s:.3g} s"
                except BaseException:  # Ctrl-C: the group would outlive us
                    os.killpg(process.pid, signal.SIGKILL)
                    raise
        if process.returncode == 0:
            return _NO_ERRORS
        lines = [line.removeprefix("=========").strip() for line in output.splitlines()]
        told = [line for line in lines if line and line != "COMPUTE-SANITIZER"]
        if process.returncode == _FOUND:
            return f"{_ERROR}{told[0].removeprefix('Error: ') if told else 'no more was said'}"
        return f"did not run: {told[-1] if told else f'exit status {process.returncode}'}"


def _places() -> Iterator[Path]:
    """Where the program is, the one on PATH first."""
    if (found := shutil.which("compute-sanitizer")) is not None:
        yield Path(found)
    homes: Sequence[str | None] = (
        os.environ.get("CUDA_HOME"),
        os.environ.get("CUDA_PATH"),
        "/usr/local/cuda",
    )
    for home in filter(None, homes):
        if (path := Path(home, "bin", "compute-sanitizer")).is_file():
            yield path
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        yield from sorted(Path(folder).glob("cu*/bin/compute-sanitizer"))
