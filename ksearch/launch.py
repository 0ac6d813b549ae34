"""How a kernel is started: grid, memory, the steps before and after it.

Apart from the other values, because it is what a family says of a kernel once it is chosen, and all that the
worker and the runtime need to know of it: a launch is kept with the winner, and what computed it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A matrix in device memory that a kernel reads tile by tile with bulk tensor copies (sm_90).

    The kernel gets it as a `const __grid_constant__` parameter of 128 bytes, after the scratch.
    """

    pointer: int
    """Which of the kernel's pointers it lies at: inputs, then outputs, the scratch, the packed weight."""
    dtype: str
    """`float32`, `float16`, `bfloat16`, or `tfloat32`: float32 rounded to TF32 as it is copied."""
    cols: int
    """Elements of a row, which the rows follow one another by."""
    rows: int | None
    """None: as many as the call has."""
    box_cols: int
    """Elements of a row in one tile."""
    box_rows: int
    swizzled: bool = True
    """The tile is stored with the 128-byte swizzle, and its rows are of 128 bytes."""
    offset_bytes: int = 0
    """From the pointer to the first row."""


ANY_ROWS = 2**31 - 1
"""`Launch.most_rows` of a kernel that takes its rows one by one: beyond, grids and tickets have no number."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is started, for any number of rows. On the CPU only `threads` counts."""

    work_per_row: int = 1
    """Units of work in a row: 1 where blocks take rows, `cols` where they take elements."""
    work_per_block: int = 1
    """Units of work that one block (one cluster, where `cluster` > 1) does."""
    block: int = 1
    """Threads per block."""
    cluster: int = 1
    split: int = 1
    """Blocks, anywhere on the device, that do one unit of work together and so must all run at once."""
    smem_bytes: int = 0
    """Dynamic shared memory per block."""
    persistent: bool = False
    """The grid is cut down to as many clusters as the device holds at once."""
    workspace_bytes: int = 0
    """Of global memory for each block of a persistent grid, a multiple of 16. The kernel gets a pointer to it
    after `rows`. It is zero at first; what a launch leaves there is what the next one finds. Launches that
    may run at the same time never share it."""
    threads: int = 1
    alignment: int = 1
    """Every pointer must be a multiple of this many bytes; a call that is not goes to PyTorch."""
    entry: str = "ksearch_kernel"
    """The function of the binary that is started."""
    scratch_bytes: int = 0
    """Of device memory that a call needs for itself, a multiple of 256, with anything in it at first. The
    kernels get a pointer to it after `rows`."""
    maps: tuple[TensorMap, ...] = ()
    before: tuple[Launch, ...] = ()
    """Kernels of the same binary that are started first, in order, with the same arguments."""
    after: tuple[Launch, ...] = ()
    """The same, started last."""
    pack: Launch | None = None
    """The kernel of the same binary that packs a weight. It is started with the weight, the memory that it is
    packed into, and the rows of the weight; the others get the packed weight after the scratch, beside the
    weight itself."""
    packed_bytes: int = 0
    """Of a packed weight, a multiple of 4, each of which `pack` writes."""
    most_rows: int = 0
    """The most rows that it may be started on; 0: only as many as it was tuned for, which is all that is
    known of an own template."""
    in_place: bool = False
    """An output may be the very memory of an input of its shape: each thread reads an element of every input,
    and then alone writes it."""
    torch_product: bool = False
    """The linear is PyTorch's own: it is computed first, and the kernel gets its result, of the workload's
    dtype and full shape, in the place of the linear's two operands. Of a prepacked workload it is oneDNN's,
    with a weight that PyTorch reorders for it, and the kernel gets nothing of that."""
    torch_bias: int | None = None
    """Of the linear that is PyTorch's own: which of the inputs it adds, before it rounds; the kernel gets
    nothing of that. None: there is none, or the kernel adds it."""

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Launch:
        """From what `dataclasses.asdict` gives, as JSON keeps it. Raises TypeError where it is not that."""
        known = dict(fields)
        known["maps"] = tuple(TensorMap(**each) for each in known.get("maps", ()))
        for step in ("before", "after"):
            known[step] = tuple(cls.read(each) for each in known.get(step, ()))
        if known.get("pack") is not None:
            known["pack"] = cls.read(known["pack"])
        return cls(**known)

    def grid(self, rows: int) -> int:
        """Blocks to start for `rows` rows, before a persistent launch is cut down."""
        return self.cluster * self.split * -(-rows * self.work_per_row // self.work_per_block)
