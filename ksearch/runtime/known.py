"""What kernels there are, without loading any: for graphs whose sizes are not known yet, and for reports."""

from __future__ import annotations

from ksearch import env
from ksearch.errors import BundleError, StoreError
from ksearch.runtime import lookup
from ksearch.runtime.bundle_in_use import used
from ksearch.runtime.notice import warn_once
from ksearch.types import Target, Workload


def kernels(op: str, target: Target, *, prepacked: bool = False) -> tuple[Workload, ...]:
    """What a kernel of this op won for, on devices of that architecture, where `ksearch.ops` looks.

    `prepacked`: those that take a packed weight, which no call of `ksearch.ops` has; else those that do not.
    Empty where that cannot be read: the log says why, once.
    """
    if env.disable():
        return ()
    try:
        bundle = used()
        if bundle is None:
            found = lookup.stored(env.database_path(), op, kernels=True)
        else:
            winners = [each for each in bundle.winners() if each.artifact is not None]
            found = [(each.workload, each.target) for each in winners if each.workload.op == op]
    except LookupError:  # there is no database
        return ()
    except (StoreError, BundleError) as error:
        warn_once(("known", op), f"the winners for {op} cannot be listed: {error}")
        return ()
    place = (target.backend, target.arch)
    there = (workload for workload, on in found if (on.backend, on.arch) == place)
    return tuple(dict.fromkeys(workload for workload in there if workload.is_prepacked is prepacked))


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
    try:
        newest = lookup.newest(path)
    except (LookupError, StoreError):
        return ""
    return f"{path} {newest}" if newest else ""


# torch.compile takes the answer for a constant. Setting what `torch.compiler.assume_constant_result` sets
# spares importing a compiler that may never be used, which takes 1 s.
state._dynamo_marked_constant = True  # type: ignore[attr-defined]
