"""A network whose logits are not negative, for the one attack that needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoshield_bench.target_module import TargetModule

if TYPE_CHECKING:
    from torch import Tensor


class NonNegative(TargetModule):
    """The target's logits, less the smallest of each image.

    ``torchattacks.CW`` masks logits by multiplying with zero and then takes the largest: where all other logits are
    negative, that is the mask itself, and the loss has no gradient. Logits mean the same when a number is added to all
    of them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]``, the smallest of each image 0."""
        logits = super().forward(x)
        return logits - logits.detach().amin(1, keepdim=True)
