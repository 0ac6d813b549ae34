"""Handles in pickles and copies: what one was loaded by, to be loaded again on the other side.

A kernel is of one process and device. What goes through `torch.save`, to a worker that loads data, or to
another machine is the question, and whatever answers it there runs: another winner, or PyTorch.
"""

from __future__ import annotations

import functools

import torch

from ksearch import env, operators
from ksearch.errors import BundleError, KsearchError, NoWinner
from ksearch.runtime.bundle_file import BundleFile
from ksearch.runtime.handle import Asked, Handle, Match
from ksearch.runtime.notice import warn_once


def load_again(asked: Asked, weight: torch.Tensor | None = None) -> Handle:
    """The handle for what was asked, as it is found here; `weight` is the one of a prepacked linear.

    What cannot be had here (no such device, no such bundle) runs PyTorch. Raises UnknownOp or UserFileError
    where the op itself cannot be had, and with KSEARCH_REQUIRE NoWinner.
    """
    from ksearch.runtime.loader import kind_of, load_best  # it makes handles, which come here to be pickled

    op, options = operators.resolve(asked.op), dict(asked.options)
    # A weight may have been sent to another kind of device (torch.load has map_location).
    device = asked.device if weight is None else str(weight.device)
    try:
        db = asked.db if asked.bundle is None else _bundle(asked.bundle, asked.seal)
        return load_best(
            op, asked.shape, asked.dtype, device, db, policies=asked.policies, options=options, weight=weight
        )
    except NoWinner:
        raise
    except KsearchError as error:
        reason = str(error)
    kept, policy = weight is not None, asked.policies[0]
    workload = op.workload(asked.shape, asked.dtype, policy=policy, prepacked=kept, **options)
    if env.require():
        raise NoWinner(f"{workload} has no kernel here: {reason} (KSEARCH_REQUIRE)")
    warn_once((workload, reason), f"{workload} runs PyTorch: {reason}")
    handle = kind_of(weight)(op, options, match=Match.FALLBACK, reason=reason, workload=workload)
    handle.asked = asked
    return handle


@functools.lru_cache(maxsize=4)
def _bundle(path: str, seal: str | None) -> BundleFile:
    """Opened once for all the handles of a model. Raises BundleError."""
    bundle = BundleFile(path)
    if seal is not None and bundle.seal != seal:
        raise BundleError(f"the bundle {path} is not the one that was signed, with which it was loaded")
    bundle.is_signed = seal is not None
    return bundle
