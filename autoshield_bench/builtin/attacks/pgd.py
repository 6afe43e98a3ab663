"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autoshield_bench.balls import Ball
from autoshield_bench.builtin.attacks.apgd import loss_of
from autoshield_bench.builtin.attacks.best import Best
from autoshield_bench.builtin.attacks.objectives import Objective, purified_decoys, raising, reconstruction
from autoshield_bench.builtin.attacks.steps import steepest
from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Steps along the gradient of the loss, projected back into the ball; the best point seen is returned.

    A misclassified point is better than one that is not; among equals the higher loss is better, or the larger margin
    where the loss is ``reconstruction``.
    Source: Madry et al. 2018, arXiv:1706.06083, equation 2.
    """

    loss: Literal["cross-entropy", "margin", "dlr", "reconstruction"] = "cross-entropy"
    """Loss that is raised. ``reconstruction``, for purifiers: minus the distance between what the purifier makes of the
    point and what it makes of the nearest validation image of another class."""

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
        """Return the best point over all restarts and steps, the starts included.

        Raises CellError where the reconstruction loss is asked for and the request has no decoys.
        """
        import torch

        ball, best = Ball(request.images, request.threat), Best(request.images, request.labels)
        wanted = purified_decoys(request) if self.loss == "reconstruction" else None
        alive = torch.arange(len(best.x), device=best.x.device)
        for restart in range(self.restarts):
            at_image = restart == 0 and not self.random_start
            start = request.images if at_image else ball.random_start(request.rng, "start", restart)
            self._climb(request, best, ball, start, alive, wanted)
            if request.stop_on_success:
                alive = (~best.wrong).nonzero()[:, 0]
        return best.x

    def _climb(
        self, request: AttackRequest, best: Best, whole: Ball, start: Tensor, alive: Tensor, wanted: Tensor | None
    ) -> None:
        """Take the steps of one run for the images at ``alive``; those that fall leave where the request permits."""
        import torch

        x, rows = start[alive], alive
        for step in range(self.steps + 1):
            if step == 0 or (request.stop_on_success and bool(best.wrong[rows].any())):
                kept = ~best.wrong[rows] if request.stop_on_success else torch.ones_like(rows, dtype=torch.bool)
                rows, x = rows[kept], x[kept]
                everything = len(rows) == len(best.x)
                target = request.target if everything else request.target.select(rows)
                ball = whole if everything else whole.select(rows)
                objective = self._objective(request.labels[rows], None if wanted is None else wanted[rows])
            if not len(rows) and len(best.x):
                return
            if step == self.steps:
                with torch.no_grad():
                    logits = target.logits(x)
                    best.keep(x, objective.rank(logits), logits, rows)
                return
            here = objective.ask(target, x)
            best.keep(x, objective.worth(here), here.logits, rows)
            x = ball.project(x + self._length(request.threat.eps) * steepest(here.gradient, request.threat.norm))

    def _objective(self, labels: Tensor, wanted: Tensor | None) -> Objective:
        if self.loss == "reconstruction":
            assert wanted is not None
            return reconstruction(labels, wanted)
        return raising(loss_of(self.loss, labels))

    def _length(self, eps: float) -> float:
        if self.step_size is not None:
            return self.step_size
        return eps * (self.relative_step_size or 2.5 / self.steps)
