"""Kill tables outside of a search: of an op, or of one op of each family, on the device at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ksearch import backends, operators
from ksearch.evaluate.pool import CompilePool
from ksearch.evaluate.worker import Worker
from ksearch.plan import Plan, device_lock, make_plan
from ksearch.selftest.faults import FAR_BYTES
from ksearch.selftest.gate import first_configs, make_table
from ksearch.store import KillTable
from ksearch.types import ITEMSIZE, Option, Workload

CASES: tuple[tuple[str, Mapping[str, Option]], ...] = (
    ("sigmoid", {}),
    ("softmax", {}),
    ("sum", {}),
    ("cumsum", {}),
    ("softmax", {"dim": "-2"}),
    ("cumsum", {"dim": "-2"}),
    ("linear_gelu", {}),
)
"""An op of each family, and its options: pointwise, rowwise, reductions, scans, these two along rows that lie
side by side, linear."""

_SHAPES: dict[tuple[str, str], tuple[tuple[int, ...], ...]] = {
    ("pointwise", "cpu"): ((131, 1000),),
    ("rowwise", "cpu"): ((131, 1000), (3, 20001)),  # of few and long rows threads share each, and wait
    ("scan", "cpu"): ((131, 1000), (1, 200_000)),
    ("linear", "cpu"): ((64, 512, 256),),
    ("pointwise", "cuda"): ((131, 4096),),
    ("rowwise", "cuda"): ((131, 4096),),  # several warps a row
    ("scan", "cuda"): ((131, 4096),),
    ("linear", "cuda"): ((128, 1024, 1024),),
}
_OTHER_SHAPES = ((131, 1000),)
_FAR_COLS = 4096
_FAR_MEMORY_BYTES = 12 * FAR_BYTES
"""What checking a tensor of 2^31 bytes takes, with room to spare. A CPU would take minutes."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One workload, and what the check made of the faults planted in its kernel."""

    workload: Workload
    device: str
    table: KillTable


def selftest(
    op: str | None = None,
    shape: tuple[int, ...] | None = None,
    *,
    dtype: str = "float32",
    policy: str = "strict",
    prepacked: bool = False,
    device: str | None = None,
    options: Mapping[str, Option] | None = None,
    seed: int = 0,
    tell: Callable[[Tried], None] = lambda _: None,
) -> list[Tried]:
    """Plant every fault in kernels of `op` (by default one op of each family) on `shape` (by default small
    ones that let every fault of the family show), and tell of each workload as soon as it is tried.

    Raises UsageError and its kind, ToolMissing, DeviceBusy, WorkerError, and SelftestError where a fault
    cannot be planted; one that passes the check is in the table.
    """
    tried = []
    for name, choices in CASES if op is None else ((op, options or {}),):
        for each in _shapes(name, dtype, device, choices) if shape is None else (shape,):
            plan = make_plan(name, each, dtype, device, choices, policy, prepacked)
            tried.append(_try(plan, seed))
            tell(tried[-1])
    return tried


def _shapes(
    op: str, dtype: str, device: str | None, options: Mapping[str, Option]
) -> tuple[tuple[int, ...], ...]:
    """Small, but for the one that has results beyond 2^31 bytes, on a GPU that holds them."""
    found = operators.resolve(op)
    if found.template_op is not None:
        return _OTHER_SHAPES
    family = found.program(**{**found.options, **options}).family
    backend, index = backends.parse_device(device)
    shapes = _SHAPES.get((family, backend), _OTHER_SHAPES)
    if family not in ("pointwise", "rowwise") or backend == "cpu":
        return shapes
    if backends.get(backend).target(index).memory_bytes > _FAR_MEMORY_BYTES:
        return (*shapes, (FAR_BYTES // ITEMSIZE.get(dtype, 4) // _FAR_COLS + 1, _FAR_COLS))
    return shapes


def _try(plan: Plan, seed: int) -> Tried:
    cores = len(os.sched_getaffinity(0))
    with (
        device_lock(plan.target),
        CompilePool(plan.target.backend, cores) as pool,
        Worker(plan.job(seed)) as worker,
    ):
        worker.start()
        table = make_table(plan, worker, pool, first_configs(plan))
    return Tried(plan.workload, plan.target.device, table)
