"""Evaluate a Program node by node in PyTorch: what the C++ must compute, without any C++."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ksearch.operators.program import ACROSS_SAMPLES, EACH_ITS_OWN, Program, Role

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
    "reduce_prod": lambda x: x.prod(-1, keepdim=True),
    "reduce_argmax": lambda x: x.argmax(-1, keepdim=True),
    "reduce_argmin": lambda x: x.argmin(-1, keepdim=True),
    "fold_sum": torch.sum,
    "scan_sum": lambda x: x.cumsum(-1),
    "scan_prod": lambda x: x.cumprod(-1),
    "scan_sum_reverse": lambda x: x.flip(-1).cumsum(-1).flip(-1),
    "scan_sum_exclusive": lambda x: torch.cat([torch.zeros_like(x[..., :1]), x.cumsum(-1)[..., :-1]], -1),
}  # fmt: skip


def evaluate(program: Program, *tensors: Tensor) -> Tensor:
    """The program's first output for float64 inputs; see `evaluate_all`."""
    return evaluate_all(program, *tensors)[0]


def evaluate_all(program: Program, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Every output, broadcast to the full shape, or of shape (..., 1) where it has one value a row, () where
    it has one for all. Where several dims make up a row, they are one in the result, and its last."""
    samples, *image = tensors[0].shape
    if program.layout.startswith(("groups", "channels")):
        tensors = _of_groups(program, tensors)
    batch = tensors[0].shape[0]
    aside = program.over[0] if program.family == "strided" else -1
    if program.over != (-1,):  # none of these has inputs that are not full
        tensors = tuple(
            each.movedim(aside, -1) if aside != -1 else each.flatten(min(program.over, default=0))
            for each in tensors
        )
    given = {item.name: tensor for item, tensor in zip(program.inputs, tensors, strict=True)}
    shape = tensors[0].shape
    if program.linear is not None:
        left, right = (given[str(name)] for name in program.linear.args)
        shape = torch.Size((*left.shape[:-1], right.shape[0]))
    cols = torch.tensor(float(shape[-1]), dtype=torch.float64)
    values: list[Tensor] = []
    for node in program.nodes:
        if node.op == "input":
            tensor = given[str(node.args[0])]
            values.append(tensor.unsqueeze(-1) if tensor.dtype is torch.int64 else tensor)
        elif node.op == "const":
            values.append(torch.tensor(float(node.args[0]), dtype=torch.float64))
        elif node.op == "cols":
            values.append(cols)
        elif node.op in ("rows", "batch"):
            count = batch if node.op == "batch" else shape[:-1].numel()
            values.append(torch.tensor(float(count), dtype=torch.float64))
        elif node.op == "pick":
            value, index = (values[i] for i in node.operands)
            there = (index >= 0) & (index < shape[-1])
            picked = value.gather(-1, torch.where(there, index, 0))
            values.append(torch.where(there, picked, math.nan))
        elif node.op == "linear":
            values.append(left @ right.mT)
        else:
            values.append(_FUNCTIONS[node.op](*(values[i] for i in node.operands)))
    shapes = {Role.FULL: shape, Role.COLUMN: (*shape[:-1], 1), Role.SCALAR: ()}
    results = tuple(
        values[index].expand(shapes[role]).movedim(-1, aside if role is Role.FULL else -1)
        if role is not Role.SCALAR
        else values[index].expand(())
        for index, role in zip(program.outputs, program.output_roles, strict=True)
    )
    if program.groups == ACROSS_SAMPLES:
        return tuple(each.reshape(image[0], samples, *image[1:]).transpose(0, 1) for each in results)
    return results


def _of_groups(program: Program, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """All of the full shape, seen as rows that are groups of channels."""
    first = tensors[0]
    channels = first.shape[1]
    alike = (1, -1, *(1,) * (first.dim() - 2))
    full = [each.view(alike).expand_as(first) if each.dim() == 1 else each for each in tensors]
    if not program.groups:
        return tuple(full)
    if program.groups == ACROSS_SAMPLES:
        return tuple(each.transpose(0, 1).reshape(channels, -1) for each in full)
    groups = channels if program.groups == EACH_ITS_OWN else program.groups
    return tuple(each.reshape(first.shape[0] * groups, -1) for each in full)


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
