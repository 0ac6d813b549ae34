"""Linear layers: the product of the first tensor with a weight as torch.nn.Linear keeps it, (out, in)."""

from __future__ import annotations

from typing import Any

from ksearch.errors import TraceError
from ksearch.operators.lowering.table import absent, lowers, tensor
from ksearch.operators.program import Role
from ksearch.operators.values import Number, Transposed, Value

_LAST_TWO = ({0, 1}, {-1, -2})


@lowers("t")
def transposed(input: Any) -> Transposed:
    return Transposed(tensor(input))


@lowers("transpose", "swapaxes", "swapdims")
def _transpose(input: Any, dim0: int, dim1: int) -> Transposed:
    if {dim0, dim1} not in _LAST_TWO:
        raise TraceError(f"only a weight can be transposed, as in weight.t(), not dims {dim0} and {dim1}")
    return transposed(input)


@lowers("linear")
def _linear(input: Any, weight: Any, bias: Any = None) -> Value:
    result = _product(input, weight)
    if bias is None:
        return result
    row = tensor(bias)
    if (name := row.graph.input_name(row)) is not None and row.has_rows and row.has_cols:
        row.graph.infer(name, Role.ROW)
    return result + row


@lowers("matmul", "mm")
def _matmul(input: Any, mat2: Any, *, out: None = None) -> Value:
    absent(out=out)
    if not isinstance(mat2, Transposed):
        raise TraceError(
            "the weight must be as torch.nn.Linear keeps it, (out, in), and transposed here: x @ weight.t()"
        )
    return _product(input, mat2.tensor)


@lowers("addmm")
def _addmm(
    input: Any, mat1: Any, mat2: Any, *, beta: Number = 1, alpha: Number = 1, out: None = None
) -> Value:
    absent(out=out)
    return _matmul(mat1, mat2) * alpha + tensor(input) * beta


def _product(left: Any, right: Any) -> Value:
    return tensor(left).graph.linear(left, tensor(right))
