"""Gradients of ops: by differentiating the op's own PyTorch function, or by a tuned op where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ksearch import operators
from ksearch.operators.program import as_tuple

if TYPE_CHECKING:
    from ksearch.operators import Op
    from ksearch.types import Option

Tensors: TypeAlias = Sequence[torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """The op that gives the derivative with respect to another op's first tensor."""

    op: str
    tensors: Callable[[torch.Tensor, Tensors, torch.Tensor], tuple[torch.Tensor | None, ...]]
    """Its tensors: of the output's gradient, the inputs, and the output."""
    needs_input: bool = True
    """PyTorch alone would compute the forward again for it, so that only a kernel of it pays."""

    def options(self, given: Mapping[str, Option]) -> dict[str, Option]:
        """Those of the derivative, out of those of the op."""
        known = operators.get(self.op).options
        return {name: value for name, value in given.items() if name in known}


RULES = {
    "softmax": Rule("softmax_backward", lambda grad, _, y: (grad, y), needs_input=False),
    "log_softmax": Rule("log_softmax_backward", lambda grad, _, y: (grad, y), needs_input=False),
    "rmsnorm": Rule("rmsnorm_backward", lambda grad, inputs, _: (grad, *inputs[:2])),
    "layernorm": Rule("layernorm_backward", lambda grad, inputs, _: (grad, *inputs[:2])),
}


def rule_of(op: Op) -> Rule | None:
    """That of a built-in op which has one; an op of one's own may have its name."""
    return RULES.get(op.name) if op.location == op.name else None


def differentiate(
    function: Callable[..., Any],
    tensors: Tensors,
    grads: Sequence[torch.Tensor],
    wanted: Sequence[bool],
    *,
    again: bool,
) -> list[torch.Tensor | None]:
    """The gradients of those of `tensors` that are `wanted`, given those of what `function` gives.

    `again`: they can be differentiated themselves.
    """
    with torch.enable_grad():
        inputs: list[torch.Tensor | None] = []
        for tensor, is_wanted in zip(tensors, wanted, strict=True):
            if tensor is None or not is_wanted:
                inputs.append(tensor if again or tensor is None else tensor.detach())
            else:  # a view belongs to the graph of the tensor, and is not the tensor itself
                inputs.append(tensor.view_as(tensor) if again else tensor.detach().requires_grad_())
        results = as_tuple(function(*inputs))
        chosen = [
            each for each, is_wanted in zip(inputs, wanted, strict=True) if each is not None and is_wanted
        ]
        pairs = [(result, grad) for result, grad in zip(results, grads, strict=True) if result.requires_grad]
        found = iter(
            torch.autograd.grad(
                [result for result, _ in pairs],
                chosen,
                [grad for _, grad in pairs],
                create_graph=again,
                allow_unused=True,
            )
        )
    return [
        next(found) if each is not None and is_wanted else None
        for each, is_wanted in zip(inputs, wanted, strict=True)
    ]
