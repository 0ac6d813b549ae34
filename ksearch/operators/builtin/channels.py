"""Norms of images and the like, whose second dimension is that of the channels: each has its weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ksearch.operators.builtin.functional import F
from ksearch.operators.registry import alias, op

if TYPE_CHECKING:
    from torch import Tensor


def _group_norm(
    input: Tensor,  # noqa: ARG001  (an adapter has all of torch's parameters)
    num_groups: int = 32,
    weight: Tensor | None = None,  # noqa: ARG001
    bias: Tensor | None = None,  # noqa: ARG001
    eps: float = 1e-5,
) -> Mapping[str, Any] | str:
    return {"groups": num_groups, "eps": eps}


@op(
    weight=("channel", "none"),
    bias=("channel", "none"),
    torch_function="torch.nn.functional.group_norm",
    adapter=_group_norm,
)
def groupnorm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    groups: int = 32,
    eps: float = 1e-5,
) -> Tensor:
    return F.group_norm(x, groups, weight, bias, eps)


def _instance_norm(
    input: Tensor,  # noqa: ARG001
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,  # noqa: ARG001
    bias: Tensor | None = None,  # noqa: ARG001
    use_input_stats: bool = True,
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Mapping[str, Any] | str:
    if running_mean is not None or running_var is not None or not use_input_stats:
        return "there are running statistics"
    return {"eps": eps}


@op(
    weight=("channel", "none"),
    bias=("channel", "none"),
    torch_function="torch.nn.functional.instance_norm",
    adapter=_instance_norm,
)
def instancenorm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    return F.instance_norm(x, weight=weight, bias=bias, eps=eps)


def _batch_norm(
    input: Tensor,  # noqa: ARG001
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,  # noqa: ARG001
    bias: Tensor | None = None,  # noqa: ARG001
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Mapping[str, Any] | str:
    if training or running_mean is None or running_var is None:
        return "the statistics are those of the batch"
    return {"eps": eps}


@op(
    running_mean="channel",
    running_var="channel",
    weight=("channel", "none"),
    bias=("channel", "none"),
    torch_function="torch.nn.functional.batch_norm",
    adapter=_batch_norm,
)
def batchnorm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """With statistics that are given, as in inference."""
    return F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.0, eps)


@op(weight=("channel", "none"), bias=("channel", "none"))
def batchnorm_training(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """With the statistics of the batch itself, and without any that are kept."""
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


alias("group_norm", "groupnorm")
alias("instance_norm", "instancenorm")
alias("batch_norm", "batchnorm")
