"""Modules that run the best kernel that is known: `ksearch.nn.Softmax` for `torch.nn.Softmax`.

Each is derived from the module of torch.nn of that name: the constructor, the parameters and the state_dict
are torch's own, and so is the answer where there is no kernel.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ksearch import ops
from ksearch.runtime.layer import PackedLayer
from ksearch.runtime.traced import is_traced


class _Module(nn.Module):
    """What the modules share; it comes before torch's class among their bases."""

    op: ClassVar[str]
    """What it runs."""

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How the op is called, by position and by name."""
        return (input,), {}

    def forward(self, input: Tensor) -> Tensor:
        inplace = getattr(self, "inplace", False)
        if inplace and input.requires_grad and torch.is_grad_enabled():
            result: Tensor = super().forward(input)  # what is overwritten is part of the gradient
            return result
        args, named = self.arguments(input)
        if inplace:
            named["out"] = input
        found: Tensor = getattr(ops, self.op)(*args, **named)
        return found


class _OverDim(_Module):
    dim: int | None

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (input, self.dim), {}


class Softmax(_OverDim, nn.Softmax):
    op = "softmax"


class LogSoftmax(_OverDim, nn.LogSoftmax):
    op = "log_softmax"


class RMSNorm(_Module, nn.RMSNorm):
    """Without eps it runs PyTorch, where that depends on the dtype."""

    op = "rmsnorm"

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (input, self.normalized_shape, self.weight, self.eps), {}


class LayerNorm(_Module, nn.LayerNorm):
    op = "layernorm"

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (input, self.normalized_shape, self.weight, self.bias, self.eps), {}


class GroupNorm(_Module, nn.GroupNorm):
    op = "groupnorm"

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (input, self.num_groups, self.weight, self.bias, self.eps), {}


class _BatchNorm(_Module):
    """A kernel in evaluation, with the statistics that were kept.

    In training, and where none are kept, PyTorch's own: it is the module that keeps them, a kernel has no
    outputs of another shape than its result's, and a gradient would be PyTorch's anyway.
    """

    op = "batchnorm"
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: nn.Parameter
    bias: nn.Parameter
    eps: float

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        statistics = self.running_mean, self.running_var
        return (input, *statistics, self.weight, self.bias, False, 0.0, self.eps), {}

    def forward(self, input: Tensor) -> Tensor:
        if self.training or self.running_mean is None:
            result: Tensor = super(_Module, self).forward(input)
            return result
        self._check_input_dim(input)  # type: ignore[operator]  # of torch's class
        return super().forward(input)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    pass


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    pass


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    pass


class Linear(_Module, nn.Linear):
    op = "linear"

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (input, self.weight, self.bias), {}


class PrepackedLinear(Linear):
    """A linear of evaluation: its weight is packed once for each number of rows that it is called with, up to
    four, where a kernel is known that takes it so; in training, and for all else, it is a `Linear`.

    A weight that changed is packed again, before the next call: in place, as an optimizer or load_state_dict
    changes it, or another one in its stead. No count is kept of changes by way of `weight.data`: say
    `repack()` then.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training or is_traced() or type(self.weight) is not nn.Parameter:
            return super().forward(input)
        handle = self.packed.find(input, self.bias)
        if isinstance(handle, str):
            return super().forward(input)
        result = handle(input, self.bias)
        assert isinstance(result, Tensor)
        return result

    def repack(self) -> None:
        """Pack the weight again, after a change of which PyTorch keeps no count."""
        self.packed.repack()

    @property
    def packed(self) -> PackedLayer:
        """The handles of the weight as it is called now."""
        found: PackedLayer | None = self.__dict__.get("_packed")
        if found is None or found.weight is not self.weight:
            self.packed = found = PackedLayer(self.weight)
        return found

    @packed.setter
    def packed(self, layer: PackedLayer) -> None:
        self.__dict__["_packed"] = layer

    def unpack(self) -> None:
        """Let go of the packed weights."""
        self.__dict__.pop("_packed", None)

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weights: a copy packs its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


class GELU(_Module, nn.GELU):
    op = "gelu"

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (input,), {"approximate": self.approximate}


class LeakyReLU(_Module, nn.LeakyReLU):
    op = "leaky_relu"

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (input,), {"negative_slope": self.negative_slope}


class ELU(_Module, nn.ELU):
    op = "elu"

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (input,), {"alpha": self.alpha}


class Hardtanh(_Module, nn.Hardtanh):
    op = "hardtanh"

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (input,), {"min_val": self.min_val, "max_val": self.max_val}


class Softplus(_Module, nn.Softplus):
    op = "softplus"

    def arguments(self, input: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (input,), {"beta": self.beta, "threshold": self.threshold}


class Sigmoid(_Module, nn.Sigmoid):
    op = "sigmoid"


class Tanh(_Module, nn.Tanh):
    op = "tanh"


class ReLU(_Module, nn.ReLU):
    op = "relu"


class SELU(_Module, nn.SELU):
    op = "selu"


class SiLU(_Module, nn.SiLU):
    op = "silu"


class Mish(_Module, nn.Mish):
    op = "mish"


class Hardsigmoid(_Module, nn.Hardsigmoid):
    op = "hardsigmoid"


class Hardswish(_Module, nn.Hardswish):
    op = "hardswish"


class Softsign(_Module, nn.Softsign):
    op = "softsign"


MODULES: dict[type[nn.Module], type[_Module]] = {
    getattr(nn, name): found
    for name, found in tuple(globals().items())
    if isinstance(found, type) and issubclass(found, _Module) and hasattr(nn, name)
}
"""By the module of torch.nn that each stands for."""
