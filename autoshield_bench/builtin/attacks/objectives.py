"""What an attack climbs, and what tells a better point from a worse one: not always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.builtin.attacks.losses import Loss, margin
from autoshield_bench.contracts import AttackRequest, LossGradient, Target, TargetOutput
from autoshield_bench.errors import CellError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Objective:
    """For one batch: a loss with its gradient, and the order of points."""

    ask: Callable[[Target, Tensor], LossGradient]
    """Returns the loss that is raised, its gradient and the logits."""

    rank: Loss
    """Of logits: higher is better, among points that are equally misclassified."""

    ranks_by_loss: bool = True
    """Whether ``rank`` is the loss that is raised, so that it need not be computed twice."""

    def worth(self, here: LossGradient) -> Tensor:
        """Return what points are worth ``[N]``."""
        return here.loss if self.ranks_by_loss else self.rank(here.logits)


def raising(loss: Loss) -> Objective:
    """Return the objective of a loss of the logits."""
    return Objective(ask=lambda target, x: target.loss_gradient(x, loss), rank=loss)


def reconstruction(labels: Tensor, wanted: Tensor) -> Objective:
    """Return the objective of driving the purified image to ``wanted``: minus the mean squared distance is raised.

    Points are ranked by their margin: being near a decoy is the means, being misclassified the end.
    Source: Sabour et al. 2016, arXiv:1511.05122, equation 1, with the purifier as the representation; for autoencoders
    Tabacof et al. 2016, arXiv:1612.00155.
    """

    def loss(output: TargetOutput) -> Tensor:
        return -(output.purified - wanted).flatten(1).square().mean(1)

    return Objective(ask=lambda target, x: target.output_gradient(x, loss), rank=margin(labels), ranks_by_loss=False)


def purified_decoys(request: AttackRequest) -> Tensor:
    """Return what the purifier makes of an image of another class, per image. Raises CellError without decoys."""
    import torch

    if request.decoys is None:
        raise CellError("the reconstruction loss needs decoys and this request has none; choose another loss")
    with torch.no_grad():
        return request.target.output(request.decoys()).purified
