"""torch.nn.functional, imported when something of it is first used: looking an op up need not take 2 s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["F"]

if TYPE_CHECKING:
    import torch.nn.functional as F  # noqa: N812
else:

    class _Functional:
        def __getattr__(self, name: str) -> Any:
            import torch.nn.functional

            return getattr(torch.nn.functional, name)

    F = _Functional()
