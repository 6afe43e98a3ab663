"""Random noise of the size of the ball: the floor that every attack has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.balls import Ball
from autoshield_bench.builtin.attacks.best import Best
from autoshield_bench.builtin.attacks.losses import margin
from autoshield_bench.builtin.attacks.steps import steepest
from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """The best of a few random points at distance eps: signs for ``linf``, directions for ``l2``."""

    draws: int = 10
    """Random points per image."""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ParameterError("draws", f"{self.draws} is too small; give at least 1")

    def forward_passes(self) -> int:
        """Return the points per image."""
        return self.draws

    def run(self, request: AttackRequest) -> Tensor:
        """Return the draw of largest margin."""
        ball, best = Ball(request.images, request.threat), Best(request.images, request.labels)
        for draw in range(self.draws):
            direction = request.rng.normal(request.images.shape[1:], "noise", draw).to(request.images)
            x = ball.project(request.images + request.threat.eps * steepest(direction, request.threat.norm))
            logits = request.target.logits(x)
            best.keep(x, margin(request.labels)(logits), logits)
        return best.x
