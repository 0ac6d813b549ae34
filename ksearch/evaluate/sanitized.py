"""The program that runs under compute-sanitizer: loads one binary, starts it twice, and ends.

`python -m ksearch.evaluate.sanitized TASK.json`. It does without PyTorch: every buffer is an allocation of
its own and of the exact size, for memcheck to see an access beside it, and inputs come by a copy from the
host, which initcheck knows about. On a CPU, where the tests run it, buffers are NumPy arrays.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ksearch import backends
from ksearch.backends.cuda_driver import check, load_driver
from ksearch.launch import Launch

_STARTS = 2
"""What the first start leaves in a workspace is what the second one finds."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to run; shapes as numbers of elements."""

    backend: str
    index: int
    """Of the device."""
    binary: str
    """Path; empty for nothing but a copy there and back, which tells whether the sanitizer works here."""
    launch: Launch
    dtype: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    indices: tuple[int, ...] = ()
    """The inputs, by their place, that hold int64 places of columns."""
    weight: int | None = None
    """The input, by its place, that is packed; None: none is."""
    rows: int = 1
    cols: int = 1
    seed: int = 0

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Task:
        fields = json.loads(path.read_text())
        for name in ("inputs", "outputs", "indices"):
            fields[name] = tuple(fields[name])
        return cls(**{**fields, "launch": Launch.read(fields["launch"])})


class _Memory(Protocol):
    def copy(self, values: np.ndarray[Any, Any]) -> int:
        """The address of memory that holds these values."""
        ...

    def allocate(self, size_bytes: int) -> int:
        """The address of memory that holds nothing yet."""
        ...

    def wait(self) -> None:
        """Until the device is done."""
        ...


class _Host:
    def __init__(self) -> None:
        self._held: list[np.ndarray[Any, Any]] = []

    def copy(self, values: np.ndarray[Any, Any]) -> int:
        self._held.append(values)
        return int(values.ctypes.data)

    def allocate(self, size_bytes: int) -> int:
        return self.copy(np.empty(size_bytes, dtype=np.uint8))

    def wait(self) -> None: ...


class _Device:
    def __init__(self, index: int) -> None:
        self._driver = load_driver()
        context = check(self._driver.cuDevicePrimaryCtxRetain(check(self._driver.cuDeviceGet(index))))
        check(self._driver.cuCtxSetCurrent(context))

    def copy(self, values: np.ndarray[Any, Any]) -> int:
        pointer = self.allocate(values.nbytes)
        check(self._driver.cuMemcpyHtoD(pointer, values.ctypes.data, values.nbytes))
        return pointer

    def allocate(self, size_bytes: int) -> int:
        return int(check(self._driver.cuMemAlloc(size_bytes)))

    def wait(self) -> None:
        check(self._driver.cuCtxSynchronize())


def values(count: int, dtype: str, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """Ordinary numbers from -1 to 1; of bfloat16 the bits."""
    made = generator.uniform(-1.0, 1.0, count).astype(np.float32)
    if dtype == "bfloat16":
        return (made.view(np.uint32) >> 16).astype(np.uint16)
    return made.astype(np.dtype(dtype))


def run(task: Task) -> None:
    """Raises LaunchError where the driver refuses, or says afterwards what went wrong."""
    memory: _Memory = _Device(task.index) if task.backend == "cuda" else _Host()
    generator = np.random.default_rng(task.seed)
    if not task.binary:
        memory.copy(values(1024, "float32", generator))
        memory.wait()
        return
    pointers = [
        memory.copy(generator.integers(task.cols, size=count))
        if place in task.indices
        else memory.copy(values(count, task.dtype, generator))
        for place, count in enumerate(task.inputs)
    ]
    pointers += [memory.allocate(size_bytes) for size_bytes in task.outputs]
    if task.launch.scratch_bytes:
        pointers.append(memory.allocate(task.launch.scratch_bytes))
    kernel = backends.get(task.backend).load(Path(task.binary), task.launch, task.index)
    if task.weight is not None:
        pointers.append(memory.allocate(task.launch.packed_bytes))
        kernel.pack(pointers[task.weight], pointers[-1], task.cols, 0)
    for _ in range(_STARTS):
        kernel(tuple(pointers), task.rows, 0)
        memory.wait()
    kernel.unload()


if __name__ == "__main__":
    run(Task.read(Path(sys.argv[1])))
