"""What this machine has for tuning, what it lacks, and the command that mends it.

Tools are not only looked for but used: a compiler that is there and does not work is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sqlite3
import stat
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ksearch import backends, env
from ksearch.database import SCHEMA_VERSION, check_schema, explain, open_readonly
from ksearch.errors import CompileError, KsearchError, NewerSchema, NoSuchDevice, ToolMissing
from ksearch.types import Source, Target

State = Literal["ok", "absent", "missing"]
"""`absent`: not there, and not needed; `missing`: not there or not working, and something needs it."""

_CPU_PROBE = """#include <cstdint>
#include <omp.h>
extern "C" void ksearch_kernel(const float* x, float* y, int64_t rows, int32_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < rows; ++i) y[i] = x[i] + float(omp_get_max_threads());
}
"""
_CUDA_PROBE = """extern "C" __global__ void ksearch_kernel(const float* x, float* y, long long rows) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < rows) y[i] = x[i];
}
"""
_PROBE_ARCH = "sm_80"
"""Compiling needs no GPU; without one, any architecture that NVRTC 13 still knows will do."""

_CUDA_TORCH = "pip install --force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
_CUDA_EXTRA = "pip install 'ksearch[cuda]'"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for."""

    name: str
    state: State
    detail: str
    """Version, place, or why it does not work."""
    fix: str = ""
    """The command, or the words, that mend it."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was found."""

    findings: tuple[Finding, ...]
    backends: tuple[str, ...]
    """Those that this machine can tune on: compiler, device and torch are all there."""


def examine(db: Path) -> Diagnosis:
    """Look at everything; raises nothing, because what fails is what is reported."""
    gpus = _gpus()
    python, torch = _python(), _torch(has_gpu=bool(gpus))
    compiler = _compiler()
    nvrtc = _nvrtc(gpus)
    database = _database(db)
    findings = (
        python,
        torch,
        compiler,
        nvrtc,
        _nvcc(),
        *(_gpu(target) for target in gpus),
        *(() if gpus else (_no_gpu(),)),
        database,
        _cache(),
        _launcher(),
        _dashboard(),
    )
    usable = {python.state, torch.state, database.state} == {"ok"}
    cuda = usable and bool(gpus) and nvrtc.state == "ok" and _torch_has_cuda()
    cpu = usable and compiler.state == "ok"
    return Diagnosis(findings, tuple(name for name, can in (("cuda", cuda), ("cpu", cpu)) if can))


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def _torch_has_cuda() -> bool:
    import torch  # 1 s: only where the doctor is asked

    return torch.version.cuda is not None


def _torch(*, has_gpu: bool) -> Finding:
    try:
        version = importlib.metadata.version("torch")
        with_cuda = _torch_has_cuda()
    except (ImportError, OSError) as error:  # OSError: a shared library of torch does not load
        return Finding("torch", "missing", f"does not import: {error}", "pip install torch==2.13.0")
    if has_gpu and not with_cuda:
        return Finding(
            "torch", "missing", f"{version} is built without CUDA, but there is a GPU", _CUDA_TORCH
        )
    return Finding("torch", "ok", version)


def _launcher() -> Finding:
    try:
        from ksearch.runtime import launcher  # imports torch
    except (ImportError, OSError):
        return Finding("launcher", "absent", "torch does not import")
    path = env.launcher() or launcher.default_path()
    if launcher.is_usable():
        return Finding("launcher", "ok", str(path))
    return Finding(
        "launcher", "absent", "calls of kernels go through Python, up to 0.9 us longer", "ksearch launcher"
    )


def _compiler() -> Finding:
    try:
        backend = backends.get("cpu")
        name = backend.compiler_id()
        backend.compile(Source(_CPU_PROBE, backend="cpu", arch=backend.target().arch))
    except ToolMissing as error:
        fix = "unset KSEARCH_CXX, or name a compiler in it that works" if env.cxx() else "apt-get install g++"
        return Finding("C++ compiler", "missing", str(error), fix)
    except CompileError as error:
        fix = "install a compiler with OpenMP (apt-get install g++) and name it in KSEARCH_CXX"
        return Finding("C++ compiler", "missing", f"{name} does not compile an OpenMP kernel: {error}", fix)
    return Finding("C++ compiler", "ok", f"{name}, with OpenMP")


def _nvrtc(gpus: list[Target]) -> Finding:
    lacking: State = "missing" if gpus else "absent"
    try:
        backend = backends.get("cuda")
        name = backend.compiler_id()
        backend.compile(Source(_CUDA_PROBE, backend="cuda", arch=gpus[0].arch if gpus else _PROBE_ARCH))
    except ToolMissing as error:
        return Finding("CUDA compiler", lacking, str(error).partition(";")[0], _CUDA_EXTRA)
    except CompileError as error:
        return Finding("CUDA compiler", lacking, f"{name} does not compile a kernel: {error}", _CUDA_EXTRA)
    return Finding("CUDA compiler", "ok", name)


def _nvcc() -> Finding:
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        return Finding("nvcc", "absent", "not needed where NVRTC is there")
    return Finding("nvcc", "ok", found)


def _gpus() -> list[Target]:
    """Every GPU as the driver names it, without a CUDA context."""
    found: list[Target] = []
    try:
        while True:
            found.append(backends.get("cuda").target(len(found)))
    except NoSuchDevice:
        return found


def _gpu(target: Target) -> Finding:
    size = f"{target.units} multiprocessors, {target.memory_bytes / 1e9:.0f} GB"
    detail = f"{target.device}, {target.arch}, {size}, driver {_driver_version()}"
    return Finding(f"GPU cuda:{target.index}", "ok", detail)


def _driver_version() -> str:
    if importlib.util.find_spec("pynvml") is None:
        return "of unknown version (pip install nvidia-ml-py)"
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return f"of unknown version ({error})"


def _no_gpu() -> Finding:
    """A GPU is not needed; one that is there and cannot be used is worth a word."""
    try:
        backends.get("cuda").target(0)
    except NoSuchDevice as error:
        if Path("/dev/nvidia0").exists():
            return Finding(
                "GPU", "missing", str(error), f"{_CUDA_EXTRA}; nvidia-smi shows whether the driver works"
            )
    return Finding("GPU", "absent", "none found; the CPU backend works without")


def _database(path: Path) -> Finding:
    fix = "name another file with --db or KSEARCH_DB"
    if not path.exists():
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if folder.is_dir() and os.access(folder, os.W_OK):
            return Finding("database", "ok", f"{path} (the first tune makes it)")
        return Finding(
            "database", "missing", f"{path} cannot be made: {folder} is not a writable folder", fix
        )
    try:
        found = _schema_version(path)
        check_schema(found, path)
        rows = "the next tune updates it"
        if found == SCHEMA_VERSION:
            rows = _many(_count_winners(path), "winner")
    except NewerSchema as error:
        return Finding("database", "missing", str(error), "upgrade ksearch")
    except KsearchError as error:
        return Finding("database", "missing", str(error), fix)
    if not os.access(path, os.W_OK):
        return Finding("database", "missing", f"{path} is read-only: to load from, not to tune into", fix)
    return Finding("database", "ok", f"{path}, schema {found}, {rows}")


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _schema_version(path: Path) -> int:
    """0 where the file holds none of our tables. Raises StoreError where it is not a database."""
    try:
        with closing(open_readonly(path, timeout_s=5)) as connection:
            ours = "SELECT count(*) FROM sqlite_master WHERE name = 'ksearch_schema'"
            if connection.execute(ours).fetchone()[0] == 0:
                return 0
            return int(
                connection.execute("SELECT coalesce(max(version), 0) FROM ksearch_schema").fetchone()[0]
            )
    except sqlite3.Error as error:
        raise explain(error, path) from error


def _count_winners(path: Path) -> int:
    from ksearch.store import Store  # SQLAlchemy: 0.2 s

    with Store.open(path, create=False, readonly=True) as store:
        return len(store.winners())


def _cache() -> Finding:
    folder, count, total = env.cache_dir(), 0, 0
    for entry in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a tuner that runs now cleans up after itself
            status = entry.stat()
            if stat.S_ISREG(status.st_mode):
                count, total = count + 1, total + status.st_size
    return Finding("cache", "ok", f"{folder}, {_many(count, 'file')}, {total / 1e6:.1f} MB (safe to delete)")


def _dashboard() -> Finding:
    try:
        return Finding("optuna-dashboard", "ok", importlib.metadata.version("optuna-dashboard"))
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            "optuna-dashboard", "absent", "shows trials in a browser", "pip install 'ksearch[dashboard]'"
        )
