"""A backend without a compiler: its binaries are texts that say which values to fill the outputs with."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from ksearch import backends, env, operators, packing, runtime
from ksearch.backends import Entry, LaunchError
from ksearch.errors import NoSuchDevice
from ksearch.launch import Launch
from ksearch.runtime import launcher
from ksearch.store import Store
from ksearch.types import Target, Winner, digest

TARGET = Target("cpu", "x86_64-fake", "Fake CPU", units=2)


class FakeKernel:
    def __init__(self, value: float, count: int, outputs: int, backend: FakeBackend) -> None:
        self.value = value
        self.count = count
        self.outputs = outputs
        self.backend = backend

    def __call__(self, pointers: tuple[int, ...], rows: int, stream: int) -> None:
        self.backend.launched.append((pointers, rows, stream))
        if self.backend.refuse_launch:
            raise LaunchError("CUDA_ERROR_INVALID_VALUE (1)")
        for number, pointer in enumerate(pointers[-self.outputs :]):
            (ctypes.c_float * self.count).from_address(pointer)[:] = [self.value + number] * self.count

    def entry(self, rows: int) -> Entry | None:
        """It is no machine code, and no launcher may start it."""
        return Entry(0, (), 0) if self.backend.is_plain else None

    def ready(self, pointers: tuple[int, ...], rows: int, stream: int) -> Callable[[], int]:
        def start() -> int:
            self.backend.ready_starts += 1
            try:
                self(pointers, rows, stream)
            except LaunchError:
                return 1
            return 0

        return start

    def unload(self) -> None:
        pass


class FakeBackend:
    name = "cpu"
    extension = "fake"
    exclusive = True

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.launched: list[tuple] = []
        self.is_plain = False
        """Whether starts are made ready beforehand."""
        self.ready_starts = 0
        self.refuse_load = False
        self.refuse_launch = False

    def target(self, index: int = 0) -> Target:
        return TARGET

    def load(self, binary, launch: Launch, index: int) -> FakeKernel:
        if self.refuse_load:
            raise LaunchError("no kernel image is available for execution on the device")
        text = binary.read_text()
        self.loaded.append(text)
        value, count, outputs = text.split(" x ")
        return FakeKernel(float(value), int(count), int(outputs), self)


@pytest.fixture
def backend(monkeypatch):
    """Stands in for the CPU; there is no GPU."""
    fake = FakeBackend()

    def get(name: str) -> FakeBackend:
        if name != "cpu":
            raise NoSuchDevice(f"no device {name}")
        return fake

    monkeypatch.setattr(backends, "get", get)
    return fake


@pytest.fixture(autouse=True)
def _fresh_runtime():
    runtime.refresh()
    yield
    runtime.refresh()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled launcher: it takes 10 s."""
    path = tmp_path_factory.mktemp("launcher") / "launcher.so"
    launcher.build(path)
    return path


def promote(op, shape, value: float | None = 42.0, *, dtype="float32", alignment=4, **options) -> Winner:
    """Put a kernel in force on the fake target that fills its first output with `value`, the second with one
    more, and so on; None: PyTorch won."""
    workload = operators.get(op).workload(shape, dtype, **options)
    kernel = value is not None
    outputs = len(operators.get(op).program(**options).outputs)
    binary = f"{value} x {workload.numel} x {outputs}".encode() if kernel else None
    winner = Winner(
        workload=workload,
        target=TARGET,
        config={"block": 128} if kernel else None,
        launch=Launch(alignment=alignment, threads=2) if kernel else None,
        artifact=digest(binary) if kernel else None,
        time_us=5.0 if kernel else 10.0,
        baseline_us=10.0,
        ceiling_us=4.0,
        certificate={"confidence": [1.9, 2.1]},
        created="2026-01-02T03:04:05+00:00",
    )
    with Store.open(env.database_path()) as store:
        store.promote(winner, source="text" if kernel else None, binary=binary, environment={})
    return winner


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Tensor]]:
    """The rows that a weight is packed for, and a copy of it, each time."""
    seen: list[tuple[int, Tensor]] = []
    reordered = packing.reordered

    def counted(weight: Tensor, rows: int) -> Tensor:
        seen.append((rows, weight.clone()))
        return reordered(weight, rows)

    monkeypatch.setattr(packing, "reordered", counted)
    return seen
