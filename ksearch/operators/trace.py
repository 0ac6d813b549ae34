"""Trace a plain PyTorch function into a Program.

The function runs once, on torch.fx proxies, with its options bound as Python values: no shape, dtype
or device takes part, so one Program serves them all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import fx

from ksearch.errors import TraceError
from ksearch.operators.graph import Graph
from ksearch.operators.lowering import lower
from ksearch.operators.program import ACCUMULATED, SCANNED, Input, Program, Role, as_tuple
from ksearch.operators.values import Value, describe
from ksearch.types import Option

ADVICE = "or give the op an own template (ksearch.TemplateOp, docs/own-template.md)"
_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent)
_BUILTIN = str(Path(__file__).with_name("builtin"))


def trace(
    function: Callable[..., Any], inputs: Sequence[Input | None], options: Mapping[str, Option]
) -> Program:
    """What `function` computes of `inputs` with these options: one tensor, or a tuple of them.

    An input that is None is absent, and the function gets None for it. One that a linear takes is given the
    role that it has there (LEFT, RIGHT, its bias ROW) in the Program's own inputs.
    Raises TraceError naming the user's file and line, what is not supported there, and what to do instead.
    """
    tracer = _Tracer()
    proxies = [item and tracer.create_proxy("placeholder", item.name, (), {}) for item in inputs]
    try:
        result = function(*proxies, **options)
    except TraceError:
        raise
    except Exception as error:  # noqa: BLE001  (the user's own code, run on tensors it did not expect)
        text = str(error).strip().splitlines() or [type(error).__name__]
        _refuse(_raised_at(error) or _defined_at(function), f"it cannot run on traced tensors: {text[0]}")
    where = _defined_at(function)
    outputs = as_tuple(result)
    if not outputs:
        _refuse(where, "it returns an empty tuple, not a tensor computed from its inputs")
    for number, each in enumerate(outputs):
        if not isinstance(each, fx.Proxy):
            what = describe(each) + (f" as output {number}" if len(outputs) > 1 else "")
            _refuse(where, f"it returns {what}, not a tensor computed from its inputs")
    present = [item for item in inputs if item is not None]
    return _lower(tracer.graph, [each.node for each in outputs], present, where)


def _lower(graph: fx.Graph, outputs: Sequence[fx.Node], inputs: Sequence[Input], defined_at: str) -> Program:
    values: dict[fx.Node, Any] = {}
    written = Graph(inputs)
    items = iter(inputs)
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = written.input(next(items))
            continue
        name = node.target if isinstance(node.target, str) else node.target.__name__
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        try:
            values[node] = lower(name, _plain(args), _plain(kwargs))
        except TraceError as error:
            _refuse(node.meta["where"], str(error))
    if written.inferred:
        roles = written.inferred
        return _lower(graph, outputs, [Input(i.name, roles.get(i.name, i.role)) for i in inputs], defined_at)
    has_linear = any(node.op == "linear" for node in written.nodes)
    stated = next((item for item in inputs if item.role.is_operand and not has_linear), None)
    if stated is not None:
        _refuse(defined_at, f"{stated.name!r} has the role {str(stated.role)!r}, and there is no linear")
    for number, output in enumerate(outputs):
        result = values[output]
        where = defined_at if output.op == "placeholder" else output.meta["where"]
        name = "the result" if len(outputs) == 1 else f"output {number}"
        if not isinstance(result, Value):
            _refuse(where, f"{name} must be a tensor, not {describe(result)}")
        if result.is_reversed:
            _refuse(where, f"{name} is reversed: flip it back")
        if not (result.has_rows or result.has_cols or written.is_total(result)):
            _refuse(where, f"{name} is the same for every element")
        if not (result.has_rows or written.is_total(result)):
            _refuse(where, f"{name} does not depend on any input of the full shape")
        if written.input_name(result) is not None and written.is_index(result):
            _refuse(where, f"{name} is an index, as it was given")
    program = written.program([values[output] for output in outputs])
    if misuse := _misuse(program) or _mixture(program):
        _refuse(defined_at, misuse)
    return program


def _misuse(program: Program) -> str:
    """What is wrong with its scan, or with the inputs of its linear; empty where nothing is."""
    scans = sum(node.op.startswith("scan_") for node in program.nodes)
    if scans > 1:
        return "it takes two sums or products along the columns, and a kernel takes one: make two ops of it"
    if scans and (program.linear is not None or any(n.op.startswith("reduce_") for n in program.nodes)):
        return "it both reduces the columns and sums up along them: make two ops of it"
    if not scans and any(item.role is Role.MASK for item in program.inputs):
        return "a mask of bool goes with a sum along the columns only: let it be of the other tensors' dtype"
    if program.groups and {*program.output_roles} != {Role.FULL}:
        return "what is reduced over groups of channels has no value of its own: return the full shape"
    if program.has_channels and program.family not in ("pointwise", "rowwise"):
        return "a value for each channel goes with pointwise functions and norms over groups of channels only"
    if program.has_channels and program.family == "rowwise" and not program.groups:
        return "a value for each channel cannot meet a reduction over the last dim"
    if scans and any(item.name == SCANNED for item in program.inputs):
        return f"the tensor name {SCANNED!r} is kept for what the sum along the columns gives: rename it"
    read = {str(node.args[0]) for node in program.nodes if node.op == "input"}
    for item in program.inputs:
        if item.role.is_operand and item.name in read:
            return f"{item.name!r} is what a linear takes, and used elsewhere: make that another parameter"
        if item.role.is_operand and (program.linear is None or item.name not in program.linear.args):
            return f"{item.name!r} has the role {str(item.role)!r}, and the result needs no linear of it"
        if item.name == ACCUMULATED and program.linear is not None:
            return f"the tensor name {item.name!r} is kept for what the linear gives: rename it"
    return ""


def _mixture(program: Program) -> str:
    """What keeps totals over the rows from being the last thing; empty where nothing does."""
    if not program.is_total:
        return ""
    if {*program.output_roles} != {Role.SCALAR}:
        return "a sum over all rows comes last: what it returns beside it must be one value for all, too"
    if program.linear is not None:
        return "a sum over all rows after a linear is not supported: return one value a row"
    return ""


def _plain(thing: Any) -> Any:
    """torch.fx's immutable lists and dicts as Python's own."""
    if isinstance(thing, dict):
        return {name: _plain(value) for name, value in thing.items()}
    if isinstance(thing, list):
        return [_plain(value) for value in thing]
    return tuple(map(_plain, thing)) if type(thing) is tuple else thing


def _refuse(where: str, what: str) -> NoReturn:
    raise TraceError(f"{where}: cannot trace this line: {what}; rewrite it, {ADVICE}")


class _Tensor(fx.Proxy):
    """A traced tensor that says no to being changed in place: fx would take `x += 1` for `x = x + 1`."""

    def _changed(self, *_: object) -> NoReturn:
        _refuse(_called_at(), "a tensor is changed in place")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __setitem__ = _changed


class _Tracer(fx.Tracer):
    """Records the user's file and line with every call, and refuses what depends on values of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.root = torch.nn.Module()
        self.graph = fx.Graph(tracer_cls=_Tracer)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        node.meta["where"] = _called_at()
        if kind == "call_method" and str(target).endswith("_"):
            _refuse(node.meta["where"], f"{target} changes a tensor in place")
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            if a.dim() == 0:
                return a.item()
            _refuse(_called_at(), "it uses a tensor that is no parameter of the function: make it an input")
        return super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Tensor(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        _refuse(_called_at(), "it branches on the value of a tensor: write torch.where")

    def iter(self, obj: fx.Proxy) -> Any:
        _refuse(_called_at(), "it iterates over a tensor")


def _is_users(filename: str) -> bool:
    return filename.startswith(_BUILTIN) or not filename.startswith((_TORCH, _OWN))


def _called_at() -> str:
    """`file:line` of the innermost frame that is neither PyTorch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "unknown"


def _raised_at(error: Exception) -> str | None:
    where, trace = None, error.__traceback__
    while trace is not None:
        if _is_users(trace.tb_frame.f_code.co_filename):
            where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return where


def _defined_at(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
