"""Which ways of taking a linear's products may be searched: those as accurate as PyTorch by themselves.

What follows a linear hides its errors: a sum over 32768 sigmoids averages them out, a saturated sigmoid
swallows them. So each way is tried once, before the search, on the bare linear of the same shape.
"""

from __future__ import annotations

from dataclasses import replace

from ksearch.evaluate.pool import CompilePool
from ksearch.evaluate.worker import Worker
from ksearch.families.base import Multiplier
from ksearch.operators import get
from ksearch.plan import Plan
from ksearch.types import Config, Status

_BARE = "linear"
"""The built-in op that is nothing but the linear."""


def admit(plan: Plan, pool: CompilePool, seed: int) -> Plan:
    """The plan without the ways of taking products whose results are too far off.

    Only float32 under the policy `strict` has several. Raises WorkerError, and what the pool raises.
    """
    if not isinstance(plan.family, Multiplier) or plan.op.name == _BARE:
        return plan
    bare = _bare(plan)
    ways: dict[str, Config] = {}
    for config in [*bare.guesses, *bare.space]:
        if way := plan.family.way(config):
            ways.setdefault(way, config)
    if len(ways) < 2:
        return plan
    for way, config in ways.items():
        pool.submit(way, bare.render(config))
    errors: dict[str, float] = {}
    barred: dict[str, str] = {}
    with Worker(bare.job(seed)) as worker:
        worker.start()
        for build in pool.completed(wait_for_all=True):
            way = str(build.tag)
            if build.artifact is None:
                barred[way] = build.message
                continue
            outcome = worker.screen(bare.candidate(ways[way], build.artifact))
            if outcome.status is not Status.PASSED:
                barred[way] = outcome.message
            elif outcome.error is not None:
                errors[way] = outcome.error
    return replace(plan, way_errors=errors, barred_ways=barred)


def _bare(plan: Plan) -> Plan:
    """The linear alone, on tensors of the same shape, dtype and policy."""
    op, workload = get(_BARE), plan.workload
    shape = (*workload.shape[:-1], workload.inner, workload.cols)
    bare = op.workload(
        shape, workload.dtype, policy=workload.policy, prepacked=workload.is_prepacked, bias="none"
    )
    return replace(plan, op=op, workload=bare, program=op.program(**dict(bare.options)))
