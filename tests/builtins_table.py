"""The built-in ops in every form that their options give them: what more than one test goes through."""

from __future__ import annotations

from ksearch.types import Option

VARIANTS: tuple[tuple[str, dict[str, Option]], ...] = (
    ("sigmoid", {}),
    ("tanh", {}),
    ("exp", {}),
    ("relu", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": -0.5}),
    ("elu", {}),
    ("elu", {"alpha": 0.5}),
    ("selu", {}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("silu", {}),
    ("mish", {}),
    ("hardsigmoid", {}),
    ("hardswish", {}),
    ("hardtanh", {}),
    ("hardtanh", {"min_val": -0.5, "max_val": 2.0}),
    ("softplus", {}),
    ("softplus", {"beta": 2.0, "threshold": 5.0}),
    ("softsign", {}),
    ("clamp", {"min": -1.0}),
    ("clamp", {"max": 0.5}),
    ("clamp", {"min": 1.0, "max": -1.0}),
    ("add", {}),
    ("add", {"other": "row"}),
    ("add", {"other": "column", "alpha": 0.3}),
    ("add", {"other": "scalar"}),
    ("mul", {}),
    ("mul", {"other": "row"}),
    ("mul", {"other": "column"}),
    ("mul", {"other": "scalar"}),
    ("residual_add", {}),
    ("residual_add", {"scale": 0.5}),
    ("swiglu", {}),
    ("geglu", {}),
    ("geglu", {"approximate": "tanh"}),
    ("softmax", {}),
    ("log_softmax", {}),
    ("scaled_masked_softmax", {"scale": 0.125}),
    ("scaled_masked_softmax", {"mask": "row"}),
    ("scaled_masked_softmax", {"mask": "none", "scale": 2.0}),
    ("rmsnorm", {}),
    ("rmsnorm", {"weight": "none", "eps": 1e-5}),
    ("layernorm", {}),
    ("layernorm", {"bias": "none"}),
    ("layernorm", {"weight": "none"}),
    ("layernorm", {"weight": "none", "bias": "none"}),
    ("add_rmsnorm", {}),
    ("add_rmsnorm", {"weight": "none"}),
    ("add_layernorm", {}),
    ("add_layernorm", {"weight": "none", "bias": "none"}),
    ("l1norm", {}),
    ("l2norm", {}),
    ("softmax_backward", {}),
    ("log_softmax_backward", {}),
    ("rmsnorm_backward", {}),
    ("rmsnorm_backward", {"weight": "none", "eps": 1e-5}),
    ("layernorm_backward", {}),
    ("layernorm_backward", {"weight": "none"}),
)


LINEAR_VARIANTS: tuple[tuple[str, dict[str, Option]], ...] = (
    ("linear", {}),
    ("linear", {"bias": "none"}),
    ("linear_relu", {}),
    ("linear_relu", {"bias": "none"}),
    ("linear_gelu", {}),
    ("linear_gelu", {"bias": "none", "approximate": "tanh"}),
    ("linear_silu", {}),
    ("linear_silu", {"bias": "none"}),
    ("linear_sigmoid_scale_residual", {}),
    ("linear_sigmoid_scale_residual", {"bias": "none", "scale": 0.5}),
    ("linear_sigmoid_sum", {}),
    ("linear_sigmoid_sum", {"bias": "none"}),
    ("linear_logsumexp", {}),
    ("linear_logsumexp", {"bias": "none"}),
)
"""Those that start with a linear: their shapes are BATCHxINxOUT."""


def label(variant: tuple[str, dict[str, Option]]) -> str:
    name, options = variant
    return "-".join([name, *(f"{option}={value}" for option, value in options.items())])
