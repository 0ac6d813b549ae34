"""Which launches share a workspace: only those that cannot overlap. With a driver that only counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ksearch.backends.base import LaunchError
from ksearch.backends.cuda_memory import Workspaces


class Driver:
    """Hands out addresses, notes what is cleared, and captures on the streams it is told to."""

    CUstreamCaptureStatus = SimpleNamespace(CU_STREAM_CAPTURE_STATUS_ACTIVE=1)

    def __init__(self) -> None:
        self.allocated: list[int] = []
        self.cleared: list[tuple[int, int]] = []
        self.captures: dict[int, int] = {}

    def cuMemAlloc(self, size: int) -> tuple[int, int]:
        address = sum(self.allocated) + 4096
        self.allocated.append(size)
        return 0, address

    def cuMemsetD8(self, address: int, value: int, size: int) -> tuple[int]:
        assert value == 0
        self.cleared.append((address, size))
        return (0,)

    def cuStreamSynchronize(self, _stream: int) -> tuple[int]:
        return (0,)

    def cuStreamGetCaptureInfo(self, stream: int) -> tuple[Any, ...]:
        capture = self.captures.get(stream, 0)
        return 0, int(capture > 0), capture, None


def test_each_stream_has_its_own_and_keeps_it() -> None:
    workspaces = Workspaces(Driver(), size_bytes=100)
    pieces = [workspaces.of(stream, False) for stream in (0, 7, 8)]
    assert len({piece // 256 for piece in pieces}) == 3, "256 bytes each, none shared"
    assert [workspaces.of(stream, False) for stream in (0, 7, 8)] == pieces


def test_each_captured_graph_has_its_own() -> None:
    """Two graphs that were captured on one stream may be replayed side by side."""
    driver = Driver()
    workspaces = Workspaces(driver, size_bytes=16)
    pieces = {workspaces.of(5, False)}
    for capture in (1, 2):
        driver.captures[5] = capture
        piece = workspaces.of(5, True)
        assert workspaces.of(5, True) == piece, "launches of one capture follow one another"
        pieces.add(piece)
    assert len(pieces) == 3


def test_all_of_it_is_cleared_before_it_is_used() -> None:
    driver = Driver()
    workspaces = Workspaces(driver, size_bytes=1000)
    pieces = [workspaces.of(stream, False) for stream in range(100)]
    assert len(set(pieces)) == 100
    for piece in pieces:
        assert any(start <= piece and piece + 1000 <= start + size for start, size in driver.cleared)


def test_where_none_is_left_a_capture_is_refused_and_a_stream_is_not() -> None:
    """Memory cannot be allocated during a capture; the call then runs PyTorch."""
    driver = Driver()
    workspaces = Workspaces(driver, size_bytes=16)
    for capture in range(1, 65):
        driver.captures[5] = capture
        workspaces.of(5, True)
    driver.captures[5] = 65
    with pytest.raises(LaunchError, match="other CUDA graphs hold all workspaces"):
        workspaces.of(5, True)
    assert len(driver.allocated) == 1
    workspaces.of(6, False)
    assert len(driver.allocated) == 2
