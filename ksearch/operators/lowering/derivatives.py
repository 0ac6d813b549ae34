"""The derivatives of `ksearch.operators.builtin.backward`, by the formulas that it has for float64."""

from __future__ import annotations

from typing import Any

from ksearch.operators.lowering.reductions import deviation, over, total
from ksearch.operators.lowering.table import lowers, tensor
from ksearch.operators.values import Value, apply


@lowers("softmax_derivative")
def _softmax(grad: Any, y: Any, dim: int) -> Value:
    grad, y = tensor(grad), tensor(y)
    result: Value = (grad - total(grad * y, over(dim))) * y
    return result


@lowers("log_softmax_derivative")
def _log_softmax(grad: Any, y: Any, dim: int) -> Value:
    return tensor(grad) - apply("exp", y) * total(tensor(grad), over(dim))


@lowers("rms_norm_derivative")
def _rms_norm(grad: Any, x: Any, weight: Any, eps: float) -> Value:
    x, scaled = tensor(x), tensor(grad) if weight is None else tensor(grad) * weight
    cols = x.graph.cols()
    inverse = apply("rsqrt", total(x * x) / cols + eps)
    normal = x * inverse
    result: Value = (scaled - normal * (total(scaled * normal) / cols)) * inverse
    return result


@lowers("layer_norm_derivative")
def _layer_norm(grad: Any, x: Any, weight: Any, eps: float) -> Value:
    x, scaled = tensor(x), tensor(grad) if weight is None else tensor(grad) * weight
    cols = x.graph.cols()
    mean, squares = deviation(x)
    inverse = apply("rsqrt", squares / cols + eps)
    normal = (x - mean) * inverse
    inner = scaled - total(scaled) / cols - normal * (total(scaled * normal) / cols)
    result: Value = inner * inverse
    return result
