"""What the caller lets PyTorch do with float32."""

from __future__ import annotations

import torch


def allows_tf32() -> bool:
    """Whether PyTorch may round the operands of a product to TF32.

    Asked in the one way that answers however it was set: once `fp32_precision` was, the older
    `get_float32_matmul_precision` and `allow_tf32` raise.
    """
    precision: str = torch.backends.cuda.matmul.fp32_precision
    return precision == "tf32"
