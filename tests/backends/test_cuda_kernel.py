"""A kernel with a second one that packs for it: one module for both. With a driver that only counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ksearch.backends import cuda_kernel
from ksearch.backends.base import LaunchError
from ksearch.launch import Launch


class Driver:
    """Functions of a module have the names that it is told."""

    CUfunction_attribute = SimpleNamespace()

    def __init__(self, *names: str) -> None:
        self.names = names
        self.events: list[str] = []

    def cuDeviceGet(self, index: int) -> tuple[int, int]:
        return 0, index

    def cuDevicePrimaryCtxRetain(self, _device: int) -> tuple[int, str]:
        return 0, "context"

    def cuCtxPushCurrent(self, _context: str) -> tuple[int]:
        return (0,)

    def cuCtxPopCurrent(self) -> tuple[int, str]:
        return 0, "context"

    def cuModuleLoadData(self, binary: bytes) -> tuple[int, str]:
        self.events.append("load")
        return 0, binary.decode()

    def cuModuleUnload(self, module: str) -> tuple[int]:
        self.events.append(f"unload {module}")
        return (0,)

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[int, int]:
        if name.decode() not in self.names:
            raise LaunchError(f"no {name.decode()} in {module}")
        return 0, 1 + self.names.index(name.decode())


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cuda_kernel, "check", lambda result: result[1] if len(result) > 1 else None)
    monkeypatch.setattr(cuda_kernel, "direct", lambda: SimpleNamespace(start=None))
    path = tmp_path / "kernel.cubin"
    path.write_bytes(b"module")
    return path


LAUNCH = Launch(pack=Launch(entry="pack"), packed_bytes=64)


def use(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Any:
        return driver

    monkeypatch.setattr(cuda_kernel, "load_driver", load)


def test_a_packed_kernel_loads_its_module_once(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver("ksearch_kernel", "pack")
    use(driver, monkeypatch)
    kernel = cuda_kernel.CudaKernel(binary, LAUNCH, 0)
    assert driver.events == ["load"]
    kernel.unload()
    assert driver.events == ["load", "unload module"]


def test_a_module_that_cannot_pack_is_let_go_of(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver("ksearch_kernel")
    use(driver, monkeypatch)
    with pytest.raises(LaunchError, match="no pack"):
        cuda_kernel.CudaKernel(binary, LAUNCH, 0)
    assert driver.events == ["load", "unload module"]
