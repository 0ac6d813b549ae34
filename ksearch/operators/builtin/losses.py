"""Losses of torch.nn.functional: of each element or row (`reduction="none"`), or all of them as one value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ksearch.operators.builtin.functional import F
from ksearch.operators.registry import op

if TYPE_CHECKING:
    from torch import Tensor

# ruff: noqa: ARG001
# An adapter has all of torch's parameters, of which those that are no longer wanted keep their places.
_OLD = "size_average and reduce are no longer PyTorch's: say reduction"


def _mse_loss(
    input: Tensor, target: Tensor | None = None, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", weight: Tensor | None = None,
) -> Mapping[str, Any] | str:  # fmt: skip
    if size_average is not None or reduce is not None:
        return _OLD
    return {"reduction": reduction} if weight is None else "there are no kernels with a weight"


@op(torch_function="torch.nn.functional.mse_loss", adapter=_mse_loss)
def mse_loss(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    return F.mse_loss(x, target, reduction=reduction)


@op(torch_function="torch.nn.functional.l1_loss", adapter=_mse_loss)
def l1_loss(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    return F.l1_loss(x, target, reduction=reduction)


def _smooth_l1_loss(
    input: Tensor, target: Tensor | None = None, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", beta: float = 1.0,
) -> Mapping[str, Any] | str:  # fmt: skip
    if size_average is not None or reduce is not None:
        return _OLD
    return {"reduction": reduction, "beta": beta}


@op(torch_function="torch.nn.functional.smooth_l1_loss", adapter=_smooth_l1_loss)
def smooth_l1_loss(x: Tensor, target: Tensor, *, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    return F.smooth_l1_loss(x, target, reduction=reduction, beta=beta)


def _huber_loss(
    input: Tensor,
    target: Tensor | None = None,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Mapping[str, Any] | str:
    if weight is not None:
        return "there are no kernels with a weight"
    return {"reduction": reduction, "delta": delta}


@op(torch_function="torch.nn.functional.huber_loss", adapter=_huber_loss)
def huber_loss(x: Tensor, target: Tensor, *, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    return F.huber_loss(x, target, reduction=reduction, delta=delta)


def _kl_div(
    input: Tensor, target: Tensor | None = None, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", log_target: bool = False,
) -> Mapping[str, Any] | str:  # fmt: skip
    if size_average is not None or reduce is not None:
        return _OLD
    return {"reduction": reduction, "log_target": log_target}


@op(torch_function="torch.nn.functional.kl_div", adapter=_kl_div)
def kl_div(x: Tensor, target: Tensor, *, reduction: str = "mean", log_target: bool = False) -> Tensor:
    if reduction == "mean":  # PyTorch warns of its own default with every call
        return F.kl_div(x, target, reduction="none", log_target=log_target).mean()
    return F.kl_div(x, target, reduction=reduction, log_target=log_target)


def _hinge_embedding_loss(
    input: Tensor, target: Tensor | None = None, margin: float = 1.0, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean",
) -> Mapping[str, Any] | str:  # fmt: skip
    if size_average is not None or reduce is not None:
        return _OLD
    return {"margin": margin, "reduction": reduction}


@op(torch_function="torch.nn.functional.hinge_embedding_loss", adapter=_hinge_embedding_loss)
def hinge_embedding_loss(
    x: Tensor, target: Tensor, *, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Of targets 1 and -1."""
    return F.hinge_embedding_loss(x, target, margin=margin, reduction=reduction)


@op(target=("full", "row", "column"))
def hinge_loss(x: Tensor, target: Tensor) -> Tensor:
    """The mean of what is left of 1 - x * target above 0, for targets 1 and -1."""
    return (1 - x * target).clamp(min=0).mean()


def _triplet_margin_loss(
    anchor: Tensor, positive: Tensor | None = None, negative: Tensor | None = None, margin: float = 1.0,
    p: float = 2, eps: float = 1e-6, swap: bool = False, size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Mapping[str, Any] | str:  # fmt: skip
    if size_average is not None or reduce is not None:
        return _OLD
    if p != 2:
        return f"there are kernels for p=2, not {p!r}"
    return {"margin": margin, "eps": eps, "swap": swap, "reduction": reduction}


@op(torch_function="torch.nn.functional.triplet_margin_loss", adapter=_triplet_margin_loss)
def triplet_margin_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, *,
    reduction: str = "mean", margin: float = 1.0, eps: float = 1e-6, swap: bool = False,
) -> Tensor:  # fmt: skip
    """Of distances between rows, by the norm of order 2."""
    return F.triplet_margin_loss(
        anchor, positive, negative, margin=margin, eps=eps, swap=swap, reduction=reduction
    )


def _cross_entropy(
    input: Tensor, target: Tensor | None = None, weight: Tensor | None = None,
    size_average: bool | None = None, ignore_index: int = -100, reduce: bool | None = None,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> Mapping[str, Any] | str:  # fmt: skip
    if size_average is not None or reduce is not None:
        return _OLD
    if weight is not None:
        return "there are no kernels with a weight"
    return {"reduction": reduction, "ignore_index": ignore_index, "label_smoothing": label_smoothing}


@op(target="index", torch_function="torch.nn.functional.cross_entropy", adapter=_cross_entropy)
def cross_entropy(
    x: Tensor, target: Tensor, *,
    reduction: str = "mean", ignore_index: int = -100, label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Of logits, the classes along the last dim, and the index of the right class (int64) for each row."""
    return F.cross_entropy(
        x, target, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
