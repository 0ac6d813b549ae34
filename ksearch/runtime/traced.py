"""Whether PyTorch only looks at what is called."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Whether something records what PyTorch runs, or runs it in another way: a compiler, torch.jit.trace,
    make_fx, a mode of fake tensors. It must see PyTorch's own functions, and may have no values yet."""
    compiling: bool = torch.compiler.is_compiling()
    return compiling or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack() > 0


def is_compiled() -> bool:
    """Whether torch.compile looks, whose graphs run here; what torch.export makes may go anywhere.

    By the flag itself: torch.compile of PyTorch 2.11 takes `is_exporting()` for true wherever it looks.
    """
    return torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag
