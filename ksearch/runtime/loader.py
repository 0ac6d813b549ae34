"""`ksearch.load`: from what is asked for to something that can be called.

A missing winner, a damaged database or a binary that is not what was measured is never an exception: the
handle runs PyTorch and the log says once why, and how to get a winner. With KSEARCH_REQUIRE it is one.
"""

from __future__ import annotations

import functools
import os
import shlex
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ksearch import backends, env, operators
from ksearch.backends import LaunchError
from ksearch.errors import NoWinner, StoreError
from ksearch.runtime import lookup
from ksearch.runtime.binary import place
from ksearch.runtime.bundle_file import BundleFile
from ksearch.runtime.bundle_in_use import used
from ksearch.runtime.call import KernelCall
from ksearch.runtime.handle import Asked, Handle, Match
from ksearch.runtime.lookup import Found
from ksearch.runtime.notice import tell_once, warn_once
from ksearch.runtime.prepacked import Prepacked
from ksearch.runtime.region import Neighbour, alike, difference, nearest
from ksearch.types import Option, Target, Winner, Workload, digest

if TYPE_CHECKING:
    from ksearch.operators import Op


def load(
    op: str | Op,
    shape: str | Sequence[int],
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    db: str | os.PathLike[str] | BundleFile | None = None,
    policy: str = "strict",
    prepacked: torch.Tensor | None = None,
    **options: Option,
) -> Handle:
    """The winner for this op, shape, dtype, device, policy and options, as a callable.

    `op` is a name, `file.py:function`, or an op itself; `shape` is that of its first input, of one that
    starts with a linear BATCHxINxOUT; no `device` is the first GPU, or the CPU where there is none; no `db`
    is the bundle in use, else KSEARCH_DB or the user's database. `prepacked`: a linear's weight, which the
    handle packs once and keeps (`runtime.prepacked.Prepacked`): it is called without it.

    Raises UsageError (UnknownOp, BadShape, UnsupportedDtype, NoSuchDevice) where the question itself is
    wrong, BundleError for a changed bundle, and with KSEARCH_REQUIRE NoWinner where nothing that was tuned
    can run.
    """
    return load_best(op, shape, dtype, device, db, policies=(policy,), options=options, weight=prepacked)


def load_best(
    op: str | Op,
    shape: str | Sequence[int],
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    db: str | os.PathLike[str] | BundleFile | None = None,
    *,
    policies: Sequence[str],
    options: Mapping[str, Option],
    weight: torch.Tensor | None = None,
    required: bool = False,
) -> Handle:
    """As `load`, under the first of several policies that has a winner; `weight` is its `prepacked`.
    `required`: as with KSEARCH_REQUIRE, for a caller who knows another way."""
    resolved = operators.resolve(op)
    sizes = operators.parse_shape(shape) if isinstance(shape, str) else tuple(shape)
    name = str(dtype).removeprefix("torch.")
    kept = weight is not None
    workloads = [
        resolved.workload(sizes, name, policy=policy, prepacked=kept, **options) for policy in policies
    ]
    backend, index = _device(device)
    target = backends.get(backend).target(index)
    handle = _best(resolved, workloads, target, options, db, weight, required=required or env.require())
    bundle = db if isinstance(db, BundleFile) else None
    handle.asked = Asked(
        op=resolved.location,
        shape=sizes,
        dtype=name,
        device=None if device is None else f"{backend}:{index}" if backend == "cuda" else backend,
        db=None if db is None or isinstance(db, BundleFile) else str(Path(db).expanduser().absolute()),
        bundle=str(bundle.path) if bundle else None,
        seal=bundle.seal if bundle and bundle.is_signed else None,
        policies=tuple(policies),
        options=tuple(sorted(options.items())),
    )
    return handle


def kind_of(weight: torch.Tensor | None) -> Callable[..., Handle]:
    """What makes a handle, of a linear that keeps its weight where there is one."""
    return Handle if weight is None else functools.partial(Prepacked, weight=weight)


def _best(
    resolved: Op,
    workloads: Sequence[Workload],
    target: Target,
    options: Mapping[str, Option],
    db: str | os.PathLike[str] | BundleFile | None,
    weight: torch.Tensor | None,
    *,
    required: bool,
) -> Handle:
    """For the first of the workloads that has a winner."""
    make = kind_of(weight)
    if env.disable():
        return make(
            resolved,
            options,
            match=Match.FALLBACK,
            reason="KSEARCH_DISABLE is set",
            workload=workloads[0],
            target=target,
        )
    where = db or used() or env.database_path()
    if not isinstance(where, BundleFile):
        where = Path(where).expanduser()

    missing, failure, wanted = "", "", workloads[-1]
    for match, find in _WAYS:
        for workload in workloads:
            try:
                found = find(where, workload, target)
                call = _kernel(where, resolved, found, workload, target)
            except LookupError as error:
                missing = str(error) if match is Match.EXACT else missing
            except (StoreError, LaunchError, OSError) as error:
                failure, wanted = str(error), workload
            else:
                if match is not Match.EXACT:
                    tell_once((workload, target.key), _told(match, workload, target, found.winner))
                return make(
                    resolved,
                    options,
                    match=match,
                    workload=workload,
                    target=target,
                    winner=found.winner,
                    call=call,
                )
        if failure:  # what is there cannot be used: that is to be mended
            break
    reason = failure or f"{missing}; to get one: {_command(resolved, wanted, target, db)}"
    if required:
        closest = "" if failure else f"; {_closest(where, wanted, target)}"
        by = " (KSEARCH_REQUIRE)" if env.require() else ""
        raise NoWinner(f"{wanted} on {target.device} has no kernel here: {reason}{closest}{by}")
    warn_once((wanted, target.key), f"{wanted} on {target.device} runs PyTorch: {reason}")
    return make(resolved, options, match=Match.FALLBACK, reason=reason, workload=wanted, target=target)


def _device(device: str | torch.device | None) -> tuple[str, int]:
    """Backend and index. Plain `cuda` is the caller's current device, as in torch. Raises NoSuchDevice."""
    text = None if device is None else str(device)
    if text == "cuda" and torch.cuda.is_initialized():
        return "cuda", torch.cuda.current_device()
    return backends.parse_device(text)


def _exact(where: Path | BundleFile, workload: Workload, target: Target) -> Found:
    """Raises LookupError where there is no winner, StoreError where it cannot be read, BundleError where the
    bundle was changed; so do the next two."""
    return (
        where.find(workload, target)
        if isinstance(where, BundleFile)
        else lookup.find(where, workload, target)
    )


def _near(where: Path | BundleFile, workload: Workload, target: Target) -> Found:
    return _other(where, nearest(_neighbours(where, workload), workload, target))


def _same_arch(where: Path | BundleFile, workload: Workload, target: Target) -> Found:
    if target.backend != "cuda":
        raise LookupError(target.backend)
    return _other(where, alike(_neighbours(where, workload), workload, target))


_WAYS = ((Match.EXACT, _exact), (Match.NEAR, _near), (Match.SAME_ARCH, _same_arch))
"""To look for a kernel, the best answer first."""


def _other(where: Path | BundleFile, neighbour: Neighbour | None) -> Found:
    if neighbour is None:
        raise LookupError(str(where))
    return _exact(where, neighbour.workload, neighbour.target)


def _neighbours(where: Path | BundleFile, workload: Workload) -> list[Neighbour]:
    return where.neighbours(workload) if isinstance(where, BundleFile) else lookup.neighbours(where, workload)


_loaded: weakref.WeakValueDictionary[Hashable, backends.Kernel] = weakref.WeakValueDictionary()
"""Kernels that some handle calls, so that one that serves many numbers of rows is on the device once. Those
with workspaces are not here: handles would share the pieces, of which each graph takes one."""


def forget_kernels() -> None:
    """Load anew what is asked for next; handles keep what they have."""
    _loaded.clear()


def _kernel(
    where: Path | BundleFile, op: Op, found: Found, workload: Workload, target: Target
) -> KernelCall | None:
    """What runs for `workload`; None where PyTorch won.

    Raises StoreError, LaunchError or OSError where it cannot be used.
    """
    winner, binary = found.winner, found.binary
    if winner.config is None:
        return None
    if binary is None or winner.launch is None or digest(binary) != winner.artifact:
        raise StoreError(
            f"its binary in {where} is not the one that was measured (the SHA-256 differs); tune it again"
        )
    backend = backends.get(target.backend)
    key = (backend, winner.artifact, winner.launch, target.index)
    kernel = _loaded.get(key)
    if kernel is None:
        file = place(binary, digest(binary), backend.extension)
        kernel = backend.load(file, winner.launch, target.index)
        if not winner.launch.workspace_bytes:
            _loaded[key] = kernel
    return KernelCall(op, kernel, winner.launch, workload, target)


def _told(match: Match, workload: Workload, target: Target, winner: Winner) -> str:
    other = winner.workload.shape_text if match is Match.NEAR else winner.target.device
    return f"{workload} on {target.device} runs the kernel for {other} ({match})"


def _closest(where: Path | BundleFile, workload: Workload, target: Target) -> str:
    """In what the wanted key and the closest one that is stored differ."""
    try:
        if isinstance(where, BundleFile):
            pairs = [(winner.workload, winner.target) for winner in where.winners()]
            stored = [pair for pair in pairs if pair[0].op == workload.op]
        else:
            stored = lookup.stored(where, workload.op)
    except (LookupError, StoreError):
        stored = []
    if not stored:
        return f"there is no winner of {workload.op} at all"
    fields = difference((workload, target), stored)
    listed = "; ".join(f"{name}: wanted {ours}, stored {theirs}" for name, ours, theirs in fields)
    return f"the closest one differs in {listed}"


def _command(
    op: Op, workload: Workload, target: Target, db: str | os.PathLike[str] | BundleFile | None
) -> str:
    """What to type to get this winner."""
    device = target.backend + (f":{target.index}" if target.index else "")
    words = ["ksearch", "tune", op.location, "--shape", workload.shape_text]
    words += ["--dtype", workload.dtype, "--device", device]
    if workload.policy != "strict":
        words += ["--policy", workload.policy]
    if workload.is_prepacked:
        words.append("--prepacked")
    for name, value in workload.options:
        words += ["--option", f"{name}={value}"]
    if db is not None and not isinstance(db, BundleFile):
        words += ["--db", os.fspath(db)]
    return shlex.join(words)
