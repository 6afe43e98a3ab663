"""Per-image losses that an attack raises: each maps logits ``[N, classes]`` to one value per image ``[N]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autoshield_bench.margins import margins

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor"], "Tensor"]


def cross_entropy(labels: Tensor) -> Loss:
    """Return the cross-entropy of each image's true label."""
    from torch.nn import functional

    def loss(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, reduction="none")

    return loss


def margin(labels: Tensor) -> Loss:
    """Return the best other class's logit minus the true one's: positive where misclassified."""

    def loss(logits: Tensor) -> Tensor:
        return margins(logits, labels)

    return loss


def targeted_margin(labels: Tensor, targets: Tensor) -> Loss:
    """Return the target's logit minus the true one's; where it is positive the image is misclassified."""

    def loss(logits: Tensor) -> Tensor:
        return _at(logits, targets) - _at(logits, labels)

    return loss


def dlr(labels: Tensor) -> Loss:
    """Return the difference of logits ratio, which ignores shifts and scales of the logits; needs three classes.

    Source: Croce and Hein 2020, arXiv:2003.01690, equation 6.
    """

    def loss(logits: Tensor) -> Tensor:
        ordered = logits.sort(dim=1, descending=True).values
        spread = ordered[:, 0] - ordered[:, 2]
        return margin(labels)(logits) / (spread + _TINY)

    return loss


def targeted_dlr(labels: Tensor, targets: Tensor) -> Loss:
    """Return the targeted difference of logits ratio; needs four classes.

    Source: Croce and Hein 2020, arXiv:2003.01690, equation 7.
    """

    def loss(logits: Tensor) -> Tensor:
        ordered = logits.sort(dim=1, descending=True).values
        spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
        return targeted_margin(labels, targets)(logits) / (spread + _TINY)

    return loss


_TINY = 1e-12


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]
