"""What is done with calls that look the same, and how a call looks."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from ksearch.runtime.handle import Handle
from ksearch.runtime.reading import Reading

MOST_ROUTES = 4096
"""Ways of calling that are kept, with their handles: numbers as arguments could make new ones without end."""


@dataclass(frozen=True, slots=True)
class Route:
    """What is done with calls that look the same."""

    reading: Reading
    handle: Handle | None
    """None: PyTorch runs what the reading says."""
    is_plain: bool = False
    """The arguments are the handle's tensors in order, and nothing else."""


def look(thing: Any) -> Hashable:
    """What of an argument decides how a call is read, and which kernel it needs."""
    if isinstance(thing, torch.Tensor):
        return None if thing.is_nested else thing.shape, thing.dtype, thing.device
    return type(thing), repr(thing)  # as text: 1, 1.0 and True are equal, but not the same option
