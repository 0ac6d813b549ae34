"""`ksearch.load`: from what is asked for to something that can be called.

A missing winner, a damaged database or a binary that is not what was measured is never an exception: the
handle runs PyTorch and the log says once why, and how to get a winner.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ksearch import backends, env, operators
from ksearch.backends import LaunchError
from ksearch.errors import StoreError
from ksearch.runtime import lookup
from ksearch.runtime.binary import place
from ksearch.runtime.call import KernelCall
from ksearch.runtime.handle import Handle, Match
from ksearch.runtime.notice import warn_once
from ksearch.types import Option, Target, Winner, Workload, digest

if TYPE_CHECKING:
    from ksearch.operators import Op


def load(
    op: str | Op,
    shape: str | Sequence[int],
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    db: str | os.PathLike[str] | None = None,
    **options: Option,
) -> Handle:
    """The winner for this op, shape of its first input, dtype, device and options, as a callable.

    `op` is a name, `file.py:function`, or an op itself; no `device` is the first GPU, or the CPU where
    there is none; no `db` is KSEARCH_DB or the user's database. Raises UsageError (UnknownOp, BadShape,
    UnsupportedDtype, NoSuchDevice) where the question itself is wrong.
    """
    resolved = operators.resolve(op)
    sizes = operators.parse_shape(shape) if isinstance(shape, str) else tuple(shape)
    workload = resolved.workload(sizes, str(dtype).removeprefix("torch."), **options)
    backend, index = _device(device)
    target = backends.get(backend).target(index)
    path = Path(db or env.database_path()).expanduser()

    try:
        winner, call = _find(path, resolved, workload, target)
    except LookupError as error:
        reason = f"{error}; to get one: {_command(resolved, workload, target, db)}"
    except (StoreError, LaunchError, OSError) as error:
        reason = str(error)
    else:
        return Handle(
            resolved, options, match=Match.EXACT, workload=workload, target=target, winner=winner, call=call
        )
    warn_once((workload, target.key), f"{workload} on {target.device} runs PyTorch: {reason}")
    return Handle(resolved, options, match=Match.FALLBACK, reason=reason, workload=workload, target=target)


def _device(device: str | torch.device | None) -> tuple[str, int]:
    """Backend and index. Plain `cuda` is the caller's current device, as in torch. Raises NoSuchDevice."""
    text = None if device is None else str(device)
    if text == "cuda" and torch.cuda.is_initialized():
        return "cuda", torch.cuda.current_device()
    return backends.parse_device(text)


def _find(path: Path, op: Op, workload: Workload, target: Target) -> tuple[Winner, KernelCall | None]:
    """The winner and its kernel, None where PyTorch won.

    Raises LookupError where there is no winner, StoreError, LaunchError or OSError where it cannot be used.
    """
    found = lookup.find(path, workload, target)
    winner, binary = found.winner, found.binary
    if winner.config is None:
        return winner, None
    if binary is None or winner.launch is None or digest(binary) != winner.artifact:
        raise StoreError(
            f"its binary in {path} is not the one that was measured (the SHA-256 differs); tune it again"
        )
    backend = backends.get(target.backend)
    file = place(binary, digest(binary), backend.extension)
    kernel = backend.load(file, winner.launch, target.index)
    return winner, KernelCall(op, kernel, winner.launch, workload, target)


def _command(op: Op, workload: Workload, target: Target, db: str | os.PathLike[str] | None) -> str:
    """What to type to get this winner."""
    device = target.backend + (f":{target.index}" if target.index else "")
    words = ["ksearch", "tune", op.location, "--shape", workload.shape_text]
    words += ["--dtype", workload.dtype, "--device", device]
    for name, value in workload.options:
        words += ["--option", f"{name}={value}"]
    if db is not None:
        words += ["--db", os.fspath(db)]
    return shlex.join(words)
