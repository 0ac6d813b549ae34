"""The contract of a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ksearch.launch import Launch
from ksearch.types import Source, Target


class LaunchError(Exception):
    """The driver or loader refused a kernel; becomes Status.LAUNCH_ERROR.

    `sticky` tells that the CUDA context is lost with it and the process must be replaced.
    """

    def __init__(self, message: str, *, sticky: bool = False) -> None:
        super().__init__(message)
        self.sticky = sticky


@dataclass(frozen=True, slots=True)
class Entry:
    """How machine code starts a kernel on a known number of rows."""

    start: int
    """The address of cuLaunchKernelEx, or that of the kernel itself on a CPU."""
    steps: tuple[tuple[int, int, int, int, bool], ...]
    """On a GPU: function, blocks, threads of a block, bytes of dynamic shared memory, cooperative."""
    threads: int
    """On a CPU."""


class Kernel(Protocol):
    """A loaded kernel. Its binary exports `ksearch_kernel(inputs..., outputs..., rows)`, with `threads` as a
    last argument on a CPU, and the workspace on a GPU where the launch has one."""

    def __call__(self, pointers: tuple[int, ...], rows: int, stream: int) -> None:
        """Start it on raw pointers (inputs in order, then outputs); asynchronous on a GPU.

        Raises LaunchError where the driver refuses.
        """
        ...

    def pack(self, weight: int, packed: int, rows: int, stream: int) -> None:
        """Start `Launch.pack` on a weight of that many rows and what it is packed into; as a call.

        Only of a launch that has it.
        """
        ...

    def ready(self, pointers: tuple[int, ...], rows: int, stream: int) -> Callable[[], int | None] | None:
        """That same start, to be made any number of times, by several threads at once: it gives 0 or None
        where it went well, else a call is to say why not. None where `entry` gives None."""
        return None

    def entry(self, rows: int) -> Entry | None:
        """What a start of it comes down to; None where it takes more than the pointers and the rows."""
        ...

    def unload(self) -> None:
        """Free the binary; the kernel must not be running and may not be called again."""
        ...


@dataclass(frozen=True, slots=True)
class Compiled:
    """What compiling gives: the binary and what the compiler said of it."""

    binary: bytes
    log: str = ""
    registers: int = 0
    spill_bytes: int = 0
    smem_bytes: int = 0
    """Static shared memory."""


class Backend(Protocol):
    """One way to turn text into a running kernel."""

    name: str
    extension: str
    """Of a binary: `cubin`, `so`."""
    exclusive: bool
    """Compiling and timing must not overlap (the CPU does both)."""

    def target(self, index: int = 0) -> Target:
        """The device as found, without creating a CUDA context. Raises NoSuchDevice."""
        ...

    def compiler_id(self) -> str:
        """Name and version of the compiler: part of every artifact's key. Raises ToolMissing."""
        ...

    def compile(self, source: Source) -> Compiled:
        """Raises CompileError, whose log holds the compiler's output."""
        ...

    def load(self, binary: Path, launch: Launch, index: int) -> Kernel:
        """Load a binary for this device, ready to start. Raises LaunchError."""
        ...
