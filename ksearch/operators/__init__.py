"""WHAT is computed: ops, and how a plain PyTorch function becomes a Program."""

from __future__ import annotations

from ksearch.operators.definition import Op
from ksearch.operators.registry import canonical, get, is_registered, names, op, register, resolve
from ksearch.operators.shape import parse_shape
from ksearch.operators.template_op import TemplateOp

__all__ = [
    "Op",
    "TemplateOp",
    "canonical",
    "get",
    "is_registered",
    "names",
    "op",
    "parse_shape",
    "register",
    "resolve",
]
