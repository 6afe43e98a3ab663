"""The margin of a prediction: what misclassification means, as a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the best other class's logit minus the label's ``[N]``: positive where misclassified; differentiable.

    Source: Carlini and Wagner 2017, arXiv:1608.04644, objective f6 without its cut-off.
    """
    import torch

    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, labels[:, None])[:, 0]
