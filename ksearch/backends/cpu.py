"""CPUs: a C++ compiler makes a shared library, ctypes starts it; OpenMP inside gives the threads.

Import torch before the first kernel is loaded: both then share one OpenMP runtime and its threads.
"""

from __future__ import annotations

import _ctypes
import ctypes
import errno
import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ksearch import env
from ksearch.backends.base import Compiled, Entry, LaunchError
from ksearch.errors import CompileError, NoSuchDevice, ToolMissing
from ksearch.launch import Launch
from ksearch.types import Source, Target, digest

FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC",
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
)  # fmt: skip
"""No -ffast-math: NaN and inf must survive, and a tail must round as the rest does."""

_ERROR = re.compile(r"^[^\n]*kernel\.cpp:(\d+):(?:\d+:)? (?:fatal )?error: (.*)$", re.MULTILINE)
_CPU_FEATURES = {
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"},
    "avx2": {"avx2", "fma", "f16c"},
}
_FULL_BYTES = 1 << 20
"""A compiler that fails with less disk than this left failed for want of it."""


class CpuBackend:
    name = "cpu"
    extension = "so"
    exclusive = True

    def target(self, index: int = 0) -> Target:
        if index != 0:
            raise NoSuchDevice(f"no device cpu:{index}: all cores together are the one device cpu")
        facts, threads = _cpu_facts(), _thread_count()
        model = facts.get("model name") or platform.processor() or platform.machine()
        return Target(
            backend=self.name,
            arch=_arch(set(facts.get("flags", "").split())),
            device=f"{model}, {threads} thread{'s' * (threads > 1)}",
            units=threads,
            memory_bytes=_memory_bytes(),
            cache_bytes=_cache_bytes(),
        )

    def compiler_id(self) -> str:
        return _compiler_id(compiler_command())

    def compile(self, source: Source) -> Compiled:
        with tempfile.TemporaryDirectory(prefix="ksearch-") as folder:
            text, binary = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
            text.write_text(source.text)
            command = [*compiler_command(), *FLAGS, *source.options, str(text), "-o", str(binary)]
            result = run_compiler(command)
            log = f"{shlex.join(command)}\n{result.stderr}{result.stdout}"
            if result.returncode != 0:
                if shutil.disk_usage(folder).free < _FULL_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)
                raise CompileError(_first_error(source, result), log)
            return Compiled(binary=binary.read_bytes(), log=log)

    def load(self, binary: Path, launch: Launch, index: int) -> CpuKernel:
        return CpuKernel(binary, launch)


class CpuKernel:
    """A loaded shared library. Calls return when the work is done, and hold no GIL while it is."""

    def __init__(self, binary: Path, launch: Launch) -> None:
        try:
            self._library = ctypes.CDLL(str(binary))
        except OSError as error:
            raise LaunchError(f"{binary} cannot be loaded: {error}") from error
        try:
            self._start = getattr(self._library, launch.entry)
        except AttributeError as error:
            raise LaunchError(f"{binary} exports no {launch.entry}") from error
        self._start.restype = None
        self._is_typed = False
        self._threads = launch.threads
        self._packer = CpuKernel(binary, launch.pack) if launch.pack is not None else None

    def __call__(self, pointers: tuple[int, ...], rows: int, stream: int) -> None:
        self._type(len(pointers))
        self._start(*pointers, rows, self._threads)

    def _type(self, pointers: int) -> None:
        if not self._is_typed:  # untyped, ctypes would cut pointers to 32 bits
            self._start.argtypes = [*[ctypes.c_void_p] * pointers, ctypes.c_int64, ctypes.c_int32]
            self._is_typed = True

    def pack(self, weight: int, packed: int, rows: int, stream: int) -> None:
        assert self._packer is not None
        self._packer((weight, packed), rows, stream)

    def ready(self, pointers: tuple[int, ...], rows: int, stream: int) -> Callable[[], None] | None:
        if self._packer is not None:
            return None
        self._type(len(pointers))
        return functools.partial(self._start, *pointers, rows, self._threads)

    def entry(self, rows: int) -> Entry | None:
        if self._packer is not None:
            return None
        address = ctypes.cast(self._start, ctypes.c_void_p).value
        return None if address is None else Entry(address, (), self._threads)

    def unload(self) -> None:
        if self._packer is not None:
            self._packer.unload()
        _ctypes.dlclose(self._library._handle)


# ---- the compiler -------------------------------------------------------------------------------------


def compiler_command() -> tuple[str, ...]:
    """The compiler's command; KSEARCH_CXX may hold arguments too (`ccache g++`). Raises ToolMissing."""
    if (chosen := env.cxx()) is not None:
        command = tuple(shlex.split(chosen))
        if not command or shutil.which(command[0]) is None:
            raise ToolMissing(
                f"KSEARCH_CXX={chosen}: there is no such compiler; unset it, or name one that is there"
            )
        return command
    for name in ("c++", "g++", "clang++"):
        if (path := shutil.which(name)) is not None:
            return (path,)
    raise ToolMissing(
        "no C++ compiler (c++, g++, clang++) on PATH; install one: apt-get install g++, or set KSEARCH_CXX"
    )


def run_compiler(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Its status and what it said."""
    return subprocess.run(
        command, check=False, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
    )


@functools.cache
def _compiler_id(command: tuple[str, ...]) -> str:
    """Version, and what -march=native means here: the instruction sets that the binary may use."""

    def ask(*arguments: str) -> str:
        line = [*command, *arguments]
        try:
            result = subprocess.run(
                line, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            said = str(getattr(error, "stderr", None) or error).strip().splitlines()
            raise ToolMissing(f"the C++ compiler {shlex.join(command)} does not work: {said[0]}") from error
        return result.stdout

    version = ask("--version").splitlines()[0]
    macros = ask("-march=native", "-dM", "-E", "-x", "c++", os.devnull)
    return f"{version}, native {digest(macros)[:12]}"


def _first_error(source: Source, result: subprocess.CompletedProcess[str]) -> str:
    """The compiler's first error, at the template's own line."""
    if (found := _ERROR.search(result.stderr)) is not None:
        return f"{source.locate(int(found[1]))}: {found[2]}"
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    return lines[0] if lines else f"the compiler exited with status {result.returncode} and said nothing"


# ---- the machine --------------------------------------------------------------------------------------


def _thread_count() -> int:
    """What PyTorch starts by default: the cores that this process may use, or OMP_NUM_THREADS of them."""
    cores = len(os.sched_getaffinity(0))
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(cores, int(first)) if first.isdigit() and int(first) > 0 else cores


def _cpu_facts() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _arch(flags: set[str]) -> str:
    machine = platform.machine()
    if machine != "x86_64":
        return machine
    return f"{machine}-{next((name for name, needed in _CPU_FEATURES.items() if needed <= flags), 'sse2')}"


def _memory_bytes() -> int:
    """Physical memory, or the container's limit where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def _cache_bytes() -> int:
    """The largest cache of the first core; 0 where the system does not say."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes)
