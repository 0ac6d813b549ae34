"""What kernels there are, without loading any: for graphs whose sizes are not known yet, and for reports."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

from ksearch import env
from ksearch.database import explain, open_readonly
from ksearch.errors import BundleError, StoreError
from ksearch.runtime.bundle_file import used
from ksearch.runtime.notice import warn_once
from ksearch.types import Target, Workload

_TIMEOUT_S = 5.0
_KERNELS = """
SELECT DISTINCT k.op, k.shape, k.dtype, k.options, k.program, k.layout, k.policy, k.regime, k.inner
FROM workloads AS k JOIN winners AS w ON w.workload_key = k.key JOIN targets AS t ON t.id = w.target_id
WHERE k.op = ? AND t.backend = ? AND t.arch = ? AND w.superseded IS NULL AND w.artifact_digest IS NOT NULL
"""
_NEWEST = "SELECT max(id) FROM winners"


def kernels(op: str, target: Target) -> tuple[Workload, ...]:
    """What a kernel of this op won for, on devices of that architecture, where `ksearch.ops` looks.

    Empty where that cannot be read: the log says why, once.
    """
    if env.disable():
        return ()
    try:
        bundle = used()
        if bundle is not None:
            return tuple(
                winner.workload
                for winner in bundle.winners()
                if winner.workload.op == op
                and winner.artifact is not None
                and (winner.target.backend, winner.target.arch) == (target.backend, target.arch)
            )
        path = env.database_path()
        if not path.is_file():
            return ()
        try:
            with closing(open_readonly(path, _TIMEOUT_S)) as connection:
                rows = connection.execute(_KERNELS, (op, target.backend, target.arch)).fetchall()
        except sqlite3.Error as error:
            raise explain(error, path) from error
        return tuple(_workload(*row) for row in rows)
    except (StoreError, BundleError) as error:
        warn_once(("known", op), f"the winners for {op} cannot be listed: {error}")
        return ()


def state() -> str:
    """Differs where other winners may be found than before; empty where there are none."""
    if env.disable():
        return ""
    try:
        bundle = used()
    except BundleError:
        return ""
    if bundle is not None:
        return f"{bundle.path} {bundle.state}"
    path = env.database_path()
    if not path.is_file():
        return ""
    try:
        with closing(open_readonly(path, _TIMEOUT_S)) as connection:
            return f"{path} {connection.execute(_NEWEST).fetchone()[0]}"
    except sqlite3.Error:
        return ""


# torch.compile takes the answer for a constant. Setting what `torch.compiler.assume_constant_result` sets
# spares importing a compiler that may never be used, which takes 1 s.
state._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _workload(
    op: str,
    shape: str,
    dtype: str,
    options: str,
    program: str,
    layout: str,
    policy: str,
    regime: str,
    inner: int,
) -> Workload:
    dims = tuple(int(dim) for dim in shape.split("x") if dim)
    pairs = tuple((name, value) for name, value in json.loads(options))
    return Workload(op, dims, dtype, pairs, program, layout=layout, policy=policy, regime=regime, inner=inner)
