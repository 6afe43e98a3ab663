"""Fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.balls import Ball
from autoshield_bench.builtin.attacks.losses import cross_entropy
from autoshield_bench.builtin.attacks.steps import steepest
from autoshield_bench.contracts import Attack, AttackRequest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of the size of the ball along the gradient of the cross-entropy.

    For L2 the step is along the normalised gradient (fast gradient method). Source: Goodfellow et al. 2015,
    arXiv:1412.6572, section 4.
    """

    def run(self, request: AttackRequest) -> Tensor:
        """Return the images after one step, clipped to [0, 1]."""
        ball = Ball(request.images, request.threat)
        at_start = request.target.loss_gradient(request.images, cross_entropy(request.labels))
        step = steepest(at_start.gradient, request.threat.norm)
        return ball.project(request.images + request.threat.eps * step)

    def gradient_steps(self) -> int:
        """Return 1."""
        return 1
