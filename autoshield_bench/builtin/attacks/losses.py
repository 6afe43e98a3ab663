"""Per-image losses that an attack raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the map from logits ``[N, classes]`` to the cross-entropy of each image's true label ``[N]``."""
    from torch.nn import functional

    def loss(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, reduction="none")

    return loss
