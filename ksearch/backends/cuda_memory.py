"""What launches of one kernel need beside their arguments: tensor maps and workspaces, kept between calls."""

from __future__ import annotations

import threading
from typing import Any

from ksearch.backends.base import LaunchError
from ksearch.backends.cuda_driver import check
from ksearch.launch import TensorMap


class TensorMaps:
    """Descriptors of a kernel's tensor maps, made once for the memory that a call is about."""

    _MOST = 256
    """Calls remembered; tensors mostly come back to the addresses that the allocator gave them before."""

    def __init__(self, driver: Any, maps: tuple[TensorMap, ...]) -> None:
        self._driver, self._declared = driver, maps
        self._known: dict[tuple[int, ...], tuple[list[int], list[Any]]] = {}

    def of(self, pointers: tuple[int, ...], rows: int) -> tuple[list[int], list[Any]]:
        """Where the descriptors for these pointers lie in host memory, and what is to be held until they
        were read: another thread may make this forget them. Raises LaunchError."""
        key = (rows, *(pointers[each.pointer] for each in self._declared))
        known = self._known.get(key)
        if known is None:
            made = [self._encode(each, pointers[each.pointer], rows) for each in self._declared]
            known = ([int(each.getPtr()) for each in made], made)
            if len(self._known) >= self._MOST:
                self._known = {}
            self._known[key] = known
        return known

    def _encode(self, declared: TensorMap, pointer: int, rows: int) -> Any:
        driver = self._driver
        kinds = driver.CUtensorMapDataType
        kind = getattr(kinds, f"CU_TENSOR_MAP_DATA_TYPE_{declared.dtype.upper()}")
        width = 2 if declared.dtype.endswith("16") else 4
        swizzles = driver.CUtensorMapSwizzle
        return check(
            driver.cuTensorMapEncodeTiled(
                kind,
                2,
                pointer + declared.offset_bytes,
                [driver.cuuint64_t(declared.cols), driver.cuuint64_t(declared.rows or rows)],
                [driver.cuuint64_t(declared.cols * width)],
                [driver.cuuint32_t(declared.box_cols), driver.cuuint32_t(declared.box_rows)],
                [driver.cuuint32_t(1), driver.cuuint32_t(1)],
                driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzles.CU_TENSOR_MAP_SWIZZLE_128B
                if declared.swizzled
                else swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
                driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        )


class Workspaces:
    """Zeroed device memory for launches of one kernel; two that may overlap never get the same piece.

    Launches of one stream follow one another, so each stream has a piece. So has each graph under
    capture, for as long as the kernel lives: it may be replayed on any stream. Pieces are made beforehand,
    because memory cannot be allocated during a capture.
    """

    _PIECES = 64

    def __init__(self, driver: Any, size_bytes: int) -> None:
        """Raises LaunchError."""
        self._driver = driver
        self._size_bytes = -(-size_bytes // 256) * 256
        self._blocks: list[Any] = []
        self._free: list[int] = []
        self._owners: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()
        self._add()

    def of(self, stream: int, is_capturing: bool) -> int:
        """Address of the piece for a launch on `stream` now. Raises LaunchError where none is left."""
        owner = (stream, self._capture(stream) if is_capturing else 0)
        piece = self._owners.get(owner)
        return self._take(owner) if piece is None else piece

    def _take(self, owner: tuple[int, int]) -> int:
        with self._lock:
            if owner not in self._owners:
                if not self._free and owner[1]:
                    raise LaunchError("other CUDA graphs hold all workspaces of this kernel")
                if not self._free:
                    self._add()
                self._owners[owner] = self._free.pop()
            return self._owners[owner]

    def free(self) -> None:
        for block in self._blocks:
            check(self._driver.cuMemFree(block))

    def _capture(self, stream: int) -> int:
        """Number of the capture that the stream is in, 0 where it is in none."""
        status, number = check(self._driver.cuStreamGetCaptureInfo(stream))[:2]
        active = self._driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
        return int(number) if int(status) == int(active) else 0

    def _add(self) -> None:
        block = check(self._driver.cuMemAlloc(self._PIECES * self._size_bytes))
        check(self._driver.cuMemsetD8(block, 0, self._PIECES * self._size_bytes))
        check(self._driver.cuStreamSynchronize(0))  # other streams do not wait for that one
        self._blocks.append(block)
        self._free += [int(block) + i * self._size_bytes for i in range(self._PIECES)]
