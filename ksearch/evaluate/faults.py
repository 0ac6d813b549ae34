"""Faults of the host's side, which no source can have: kernels for the validator to be tried on."""

from __future__ import annotations

from ksearch.backends.base import Entry, Kernel

OTHER_STREAM = "other stream"

_LEGACY = 0
"""The stream that everything without one goes to; a worker's own does not wait for it."""


class _OnOtherStream(Kernel):
    """Starts a kernel where nobody waits for it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __call__(self, pointers: tuple[int, ...], rows: int, stream: int) -> None:
        """On another stream than the one asked for. Raises LaunchError."""
        self._kernel(pointers, rows, _LEGACY)

    def pack(self, weight: int, packed: int, rows: int, stream: int) -> None:
        """As the kernel's own."""
        self._kernel.pack(weight, packed, rows, stream)

    def entry(self, rows: int) -> Entry | None:
        """None: it must be started from here."""
        return None

    def unload(self) -> None:
        """As the kernel's own."""
        self._kernel.unload()


def with_fault(kernel: Kernel, fault: str) -> Kernel:
    """The kernel, started wrongly where a fault is named. Raises ValueError for an unknown one."""
    if fault not in ("", OTHER_STREAM):
        raise ValueError(f"no fault {fault!r}")
    return _OnOtherStream(kernel) if fault else kernel
