"""PyTorch's losses, each by its own formula, and the distances in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ksearch.errors import TraceError
from ksearch.operators.lowering.arithmetic import maximum, minimum
from ksearch.operators.lowering.reductions import exponentials, mean, summed, total
from ksearch.operators.lowering.table import absent, lowers, tensor
from ksearch.operators.program import Role
from ksearch.operators.values import Number, Value, apply, compare

_MOST_MARK = 1 << 24
"""Up to here every whole number is a float."""


def _concluded(loss: Value, reduction: str) -> Value:
    """The loss of each element, or of each row, or all of them as one."""
    if reduction == "none":
        return loss
    if reduction in ("mean", "sum"):
        return mean(loss) if reduction == "mean" else summed(loss)
    raise TraceError(f"reduction={reduction!r} is none of 'mean', 'sum' and 'none'")


@lowers("mse_loss")
def _mse_loss(
    input: Any, target: Any, size_average: None = None, reduce: None = None, reduction: str = "mean",
    weight: None = None,
) -> Value:  # fmt: skip
    absent(size_average=size_average, reduce=reduce, weight=weight)
    difference = tensor(input) - tensor(target)
    return _concluded(difference * difference, reduction)


@lowers("l1_loss")
def _l1_loss(
    input: Any, target: Any, size_average: None = None, reduce: None = None, reduction: str = "mean",
    weight: None = None,
) -> Value:  # fmt: skip
    absent(size_average=size_average, reduce=reduce, weight=weight)
    return _concluded(apply("abs", tensor(input) - tensor(target)), reduction)


@lowers("smooth_l1_loss")
def _smooth_l1_loss(
    input: Any, target: Any, size_average: None = None, reduce: None = None, reduction: str = "mean",
    beta: float = 1.0,
) -> Value:  # fmt: skip
    absent(size_average=size_average, reduce=reduce)
    apart = apply("abs", tensor(input) - tensor(target))
    if beta == 0:
        return _concluded(apart, reduction)
    near = compare("<", apart, beta)
    return _concluded(near.select(0.5 * apart * apart / beta, apart - 0.5 * beta), reduction)


@lowers("huber_loss")
def _huber_loss(
    input: Any, target: Any, reduction: str = "mean", delta: float = 1.0, weight: None = None
) -> Value:
    absent(weight=weight)
    apart = apply("abs", tensor(input) - tensor(target))
    near = compare("<", apart, delta)
    return _concluded(near.select(0.5 * apart * apart, delta * (apart - 0.5 * delta)), reduction)


@lowers("kl_div")
def _kl_div(
    input: Any, target: Any, size_average: None = None, reduce: None = None, reduction: str = "mean",
    log_target: bool = False,
) -> Value:  # fmt: skip
    absent(size_average=size_average, reduce=reduce)
    x, wanted = tensor(input), tensor(target)
    if log_target:
        loss = apply("exp", wanted) * (wanted - x)
    else:
        loss = compare("==", wanted, 0.0).select(0.0, wanted * apply("log", wanted)) - wanted * x
    if reduction == "batchmean":
        result = summed(loss)
        return result / x.graph.batch()
    return _concluded(loss, reduction)


@lowers("hinge_embedding_loss")
def _hinge_embedding_loss(
    input: Any, target: Any, margin: float = 1.0, size_average: None = None, reduce: None = None,
    reduction: str = "mean",
) -> Value:  # fmt: skip
    absent(size_average=size_average, reduce=reduce)
    x, wanted = tensor(input), tensor(target)
    apart = compare("!=", wanted, 1.0).select(maximum(margin - x, 0.0), 0.0)
    return _concluded(apart + compare("!=", wanted, -1.0).select(x, 0.0), reduction)


def _distance(x: Value, other: Value, eps: float) -> Value:
    """Of each row."""
    difference = x - other + eps
    return apply("sqrt", total(difference * difference, (-1,)))


@lowers("triplet_margin_loss")
def _triplet_margin_loss(
    anchor: Any, positive: Any, negative: Any, margin: float = 1.0, p: float = 2, eps: float = 1e-6,
    swap: bool = False, size_average: None = None, reduce: None = None, reduction: str = "mean",
) -> Value:  # fmt: skip
    absent(size_average=size_average, reduce=reduce)
    if p != 2:
        raise TraceError(f"only p=2 is supported, not {p!r}")
    near = _distance(tensor(anchor), tensor(positive), eps)
    far = _distance(tensor(anchor), tensor(negative), eps)
    if swap:
        far = minimum(far, _distance(tensor(positive), tensor(negative), eps))
    return _concluded(replace(maximum(margin + near - far, 0.0), is_flat=True), reduction)


@lowers("cross_entropy")
def _cross_entropy(
    input: Any, target: Any, weight: Any = None, size_average: None = None, ignore_index: int = -100,
    reduce: None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Value:  # fmt: skip
    """log(sum(exp(x - max))) - (x[target] - max), from one read of x and one more of its element."""
    absent(size_average=size_average, reduce=reduce, weight=weight)
    x, label = tensor(input), replace(tensor(target), is_flat=False)
    graph = x.graph
    if not graph.is_index(label):
        name = graph.input_name(label)
        if name is None or not label.has_cols:
            raise TraceError("the target must be a tensor of the op: the index of a class for each row")
        graph.infer(name, Role.INDEX)
    if abs(ignore_index) >= _MOST_MARK:
        raise TraceError(f"ignore_index={ignore_index} is not supported: choose a number below 2^24")
    logarithm = apply("log", exponentials(x)[1])
    top = graph.reduce("max", x, (-1,))
    loss = logarithm - (graph.pick(x, label) - top)
    if label_smoothing:
        apart: Number = logarithm - (total(x, (-1,)) / graph.cols() - top)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * apart
    counts = compare("!=", label, float(ignore_index))
    loss = counts.select(loss, 0.0)
    if reduction == "mean":
        return graph.fold(loss) / graph.fold(counts.select(1.0, 0.0))
    return _concluded(replace(loss, is_flat=True), reduction)
