"""No winner without a validator that was tried: the kill table that a promotion needs, made once and kept."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ksearch import evaluate, selftest
from ksearch.errors import SelftestError
from ksearch.evaluate.pool import CompilePool
from ksearch.evaluate.worker import Worker
from ksearch.plan import Plan
from ksearch.render import template_digests
from ksearch.selftest.faults import FAR_BYTES
from ksearch.selftest.run import run
from ksearch.store import KillTable, Store
from ksearch.types import Config, Workload, canonical_json, digest

_MANY_ROWS = 6
"""Bits of a number of rows from which on more of them mean no other check: two of every kind."""


def require_kills(plan: Plan, worker: Worker, pool: CompilePool, store: Store, winner: Config) -> KillTable:
    """The table for this op, form of workload, template, validator and device: the kept one, or a new one.

    Raises SelftestError where a planted fault passes the check, and what `run` raises.
    """
    table = store.kills(plan.workload.op, plan.target, facts(plan))
    if table is None or not is_clean(table):
        table = make_table(plan, worker, pool, [*first_configs(plan)[:1], winner])
        store.keep_kills(table)
    if not is_clean(table):
        raise SelftestError(
            f"the check of {plan.workload} on {plan.target.device} lets {len(table.survivors)} of "
            f"{len(table.applied)} planted faults pass ({', '.join(table.survivors)}): nothing is promoted. "
            f"See `ksearch selftest {plan.workload.op} --shape {plan.workload.shape_text}`"
        )
    return table


def make_table(plan: Plan, worker: Worker, pool: CompilePool, configs: Sequence[Config]) -> KillTable:
    """Raises what `run` raises."""
    kills = run(plan, worker, pool, configs)
    return KillTable(plan.workload.op, plan.target.key, facts(plan), kills)


def first_configs(plan: Plan) -> list[Config]:
    """What an expert would try first, or where nobody knows, what the space begins with."""
    return plan.guesses[:2] or [dict(config) for config in itertools.islice(plan.space, 2)]


def is_clean(table: KillTable) -> bool:
    """Whether there were faults, and all were found."""
    return bool(table.applied) and not table.survivors


def facts(plan: Plan) -> dict[str, Any]:
    """All that decides what the check makes of a fault, but for the op's name and the device."""
    import torch  # PyTorch gives the references; it is there by now

    workload = plan.workload
    first = plan.render(first_configs(plan)[0])
    texts = template_digests(plan.op, first)
    if plan.op.template_op is not None:  # its launch is in no template
        texts["own"] = digest(Path(plan.op.location.rpartition(":")[0]).read_text())
    return {
        "form": _form(workload),
        "dtype": workload.dtype,
        "policy": workload.mode,
        "options": [list(pair) for pair in workload.options],
        "program": workload.program,
        "template": digest(canonical_json(texts))[:16],
        "validator": _validator_digest(),
        "compiler": plan.backend.compiler_id(),
        "torch": str(torch.__version__),
    }


def _form(workload: Workload) -> dict[str, Any]:
    """What of a shape matters to the check: lengths of sums by powers of two, for rounding and its limits go
    by their logarithms; whether rows end within a vector; how many kinds of rows there is room for."""
    return {
        "rows": min(workload.rows.bit_length(), _MANY_ROWS),
        "cols": workload.cols.bit_length(),
        "inner": workload.inner.bit_length(),
        "whole_vectors": workload.cols * workload.itemsize % 16 == 0,
        "layout": workload.layout,
        "far": workload.numel * workload.itemsize > FAR_BYTES,
    }


@functools.cache
def _validator_digest() -> str:
    """Of the text of the check and of the faults themselves."""
    folders = [Path(str(package.__file__)).parent for package in (evaluate, selftest)]
    texts = [path.read_text() for folder in folders for path in sorted(folder.glob("*.py"))]
    return digest(canonical_json(texts))[:16]
