"""HOW ops are computed: a family is a template, its space and its rules, for one backend.

Families are found by (program family, backend); an op with an own template is its own family.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ksearch.errors import UsageError
from ksearch.families.base import Family, Space
from ksearch.families.linear_cpu import LinearCpu
from ksearch.families.linear_cuda import LinearCuda
from ksearch.families.own import OwnTemplate
from ksearch.families.pointwise_cpu import PointwiseCpu
from ksearch.families.pointwise_cuda import PointwiseCuda
from ksearch.families.reduction_cpu import ReductionCpu
from ksearch.families.reduction_cuda import ReductionCuda
from ksearch.families.rowwise_cpu import RowwiseCpu
from ksearch.families.rowwise_cuda import RowwiseCuda
from ksearch.families.scan_cpu import ScanCpu
from ksearch.families.scan_cuda import ScanCuda
from ksearch.families.strided_cpu import StridedCpu
from ksearch.families.strided_cuda import StridedCuda
from ksearch.families.strided_scan_cpu import StridedScanCpu
from ksearch.families.strided_scan_cuda import StridedScanCuda

if TYPE_CHECKING:
    from ksearch.operators import Op

__all__ = ["Family", "Space", "find"]

_FAMILIES: dict[tuple[str, str], Family] = {
    ("pointwise", "cuda"): PointwiseCuda(),
    ("pointwise", "cpu"): PointwiseCpu(),
    ("rowwise", "cuda"): RowwiseCuda(),
    ("rowwise", "cpu"): RowwiseCpu(),
    ("reduction", "cuda"): ReductionCuda(),
    ("reduction", "cpu"): ReductionCpu(),
    ("scan", "cuda"): ScanCuda(),
    ("scan", "cpu"): ScanCpu(),
    ("strided", "cpu"): StridedCpu(),
    ("strided", "cuda"): StridedCuda(),
    ("strided_scan", "cpu"): StridedScanCpu(),
    ("strided_scan", "cuda"): StridedScanCuda(),
    ("linear", "cpu"): LinearCpu(),
    ("linear", "cuda"): LinearCuda(),
}


def find(op: Op, backend: str, **options: float | int | bool | str) -> Family:
    """The family that computes this op on this backend. Raises UsageError where there is none."""
    if op.template_op is not None:
        return OwnTemplate(op.template_op, backend)
    program = op.program(**options)
    family, per_row = program.family, program.per_row
    if any(per_row) and not all(per_row):
        raise UsageError(
            f"op {op.name!r} has outputs of one value a row and others of the full shape: "
            "no kernel gives both; make two ops of it"
        )
    if family != "reduction" and (name := program.index):
        raise UsageError(
            f"op {op.name!r} has the index {name!r}: only a kernel that gives one value a row takes one"
        )
    if (family, backend) not in _FAMILIES:
        raise UsageError(f"op {op.name!r} needs the family {family!r}, which has no template for {backend}")
    return _FAMILIES[family, backend]
