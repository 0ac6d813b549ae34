"""Where a kernel finds the value of an element's channel, the place of the second dimension that it is in."""

from __future__ import annotations

import math
from typing import Any

from ksearch.operators.program import Program, Role
from ksearch.types import Workload


def channel_variables(program: Program, workload: Workload) -> dict[str, Any]:
    """Of column `at` of row `r` it is the value number `channel_offset` + `at` / `spatial`."""
    names = [item.name for item in program.inputs if item.role is Role.CHANNEL]
    channels, spatial = workload.channels, math.prod(workload.shape[2:])
    if workload.segment:
        offset, spatial = "int(r)", workload.cols
    elif workload.groups:
        offset = f"int(r % {workload.groups} * {channels // workload.groups})"
    elif len(workload.shape) > 2:
        offset = f"int(r / {spatial // workload.cols} % {channels})"
    else:
        offset = "0"
    return {
        "channel_inputs": names,
        "channels": channels,
        "spatial": spatial,
        "channel_offset": offset,
        "segment": workload.segment,
    }
