"""Evaluate a Program node by node in PyTorch: what the C++ must compute, without any C++."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ksearch.operators.program import Program

_FUNCTIONS = {
    "+": torch.add, "-": torch.sub, "*": torch.mul, "/": torch.div, "neg": torch.neg,
    "<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge, "==": torch.eq, "!=": torch.ne,
    "max": torch.maximum, "min": torch.minimum, "pow": torch.pow, "abs": torch.abs, "where": torch.where,
    "exp": torch.exp, "exp2": torch.exp2, "expm1": torch.expm1, "log": torch.log, "log1p": torch.log1p,
    "log2": torch.log2, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "erf": torch.erf, "sin": torch.sin, "cos": torch.cos,
    "floor": torch.floor, "ceil": torch.ceil, "round": torch.round,
    "reduce_sum": lambda x: x.sum(-1, keepdim=True),
    "reduce_max": lambda x: x.amax(-1, keepdim=True),
    "reduce_min": lambda x: x.amin(-1, keepdim=True),
}  # fmt: skip


def evaluate(program: Program, *tensors: Tensor) -> Tensor:
    """The program's first output for float64 inputs; see `evaluate_all`."""
    return evaluate_all(program, *tensors)[0]


def evaluate_all(program: Program, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Every output, broadcast to the full shape, or of shape (..., 1) where it has one value a row."""
    given = {item.name: tensor for item, tensor in zip(program.inputs, tensors, strict=True)}
    shape = tensors[0].shape
    if program.linear is not None:
        left, right = (given[str(name)] for name in program.linear.args)
        shape = torch.Size((*left.shape[:-1], right.shape[0]))
    cols = torch.tensor(float(shape[-1]), dtype=torch.float64)
    values: list[Tensor] = []
    for node in program.nodes:
        if node.op == "input":
            values.append(given[str(node.args[0])])
        elif node.op == "const":
            values.append(torch.tensor(float(node.args[0]), dtype=torch.float64))
        elif node.op == "cols":
            values.append(cols)
        elif node.op == "linear":
            values.append(left @ right.mT)
        else:
            values.append(_FUNCTIONS[node.op](*(values[i] for i in node.operands)))
    row = torch.Size((*shape[:-1], 1))
    return tuple(
        values[index].expand(row if per_row else shape)
        for index, per_row in zip(program.outputs, program.per_row, strict=True)
    )


def nasty(cols: int = 24) -> Tensor:
    """Rows that a formula gets wrong when it is only right for ordinary numbers."""
    rows = torch.randn(12, cols, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[1] *= 30.0
    rows[2, 3] = math.nan
    rows[3, 5] = math.inf
    rows[4, 5] = -math.inf
    rows[5] = -math.inf
    rows[6] *= 1e30
    rows[7] = rows[7].abs() * 1e-310
    rows[8] = 0.0
    rows[9, ::2], rows[9, 1::2] = -0.0, 0.5
    rows[10] = torch.linspace(-8.5, 8.5, cols, dtype=torch.float64).round(decimals=1)
    rows[11] = 88.7
    return rows
