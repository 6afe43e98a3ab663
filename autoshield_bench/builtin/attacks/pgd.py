"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.balls import Ball
from autoshield_bench.builtin.attacks.losses import cross_entropy
from autoshield_bench.builtin.attacks.steps import steepest
from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Steps along the gradient of the cross-entropy, projected back into the ball; the best point seen is returned.

    A misclassified point is better than one that is not; among equals the higher loss is better. (The highest loss
    alone could prefer a point that is still classified correctly, since cross-entropy does not order the two.)
    Source: Madry et al. 2018, arXiv:1706.06083, equation 2.
    """

    steps: int = 40
    """Gradient steps per restart."""

    step_size: float | None = None
    """Length of a step in the units of the images; not together with ``relative_step_size``."""

    relative_step_size: float | None = None
    """Length of a step in units of eps; 2.5 / steps where neither is given."""

    restarts: int = 1
    """Runs from different starts; the best point of all is returned."""

    random_start: bool = True
    """Start at a random point of the ball; else the first run starts at the image itself, later ones at random."""

    def __post_init__(self) -> None:
        for key in ("steps", "restarts"):
            if getattr(self, key) < 1:
                raise ParameterError(key, f"{getattr(self, key)} is too small; give at least 1")
        for key in ("step_size", "relative_step_size"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise ParameterError(key, f"{value:g} is not positive; give a positive length")
        if self.step_size is not None and self.relative_step_size is not None:
            raise ParameterError("step_size", "give either step_size or relative_step_size, not both")

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image."""
        return self.steps * self.restarts

    def run(self, request: AttackRequest) -> Tensor:
        """Return the best point over all restarts and steps, the starts included."""
        import torch

        ball = Ball(request.images, request.threat)
        loss = cross_entropy(request.labels)
        best = request.images.clone()
        best_loss = torch.full((len(best),), -torch.inf, device=best.device)
        best_wrong = torch.zeros(len(best), dtype=torch.bool, device=best.device)

        def keep(x: Tensor, losses: Tensor, logits: Tensor) -> None:
            wrong = logits.argmax(1) != request.labels
            better = (wrong & ~best_wrong) | ((wrong == best_wrong) & (losses > best_loss))
            best_loss[better], best_wrong[better] = losses[better], wrong[better]
            best[better] = x[better]

        for restart in range(self.restarts):
            at_image = restart == 0 and not self.random_start
            x = request.images if at_image else ball.random_start(request.rng, "start", restart)
            for _step in range(self.steps):
                here = request.target.loss_gradient(x, loss)
                keep(x, here.loss, here.logits)
                x = ball.project(x + self._length(request.threat.eps) * steepest(here.gradient, request.threat.norm))
            with torch.no_grad():
                logits = request.target.logits(x)
                keep(x, loss(logits), logits)
        return best

    def _length(self, eps: float) -> float:
        if self.step_size is not None:
            return self.step_size
        return eps * (self.relative_step_size or 2.5 / self.steps)
