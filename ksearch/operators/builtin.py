"""The ops that come with ksearch; each is what a user would write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ksearch.operators.registry import op

if TYPE_CHECKING:
    from torch import Tensor


@op
def sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid()


@op
def softmax(x: Tensor) -> Tensor:
    return x.softmax(dim=-1)
