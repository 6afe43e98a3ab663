"""Decoupled direction and norm: the nearest adversarial point in L2."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING

from autoshield_bench.balls import distance
from autoshield_bench.builtin.attacks.losses import cross_entropy
from autoshield_bench.builtin.attacks.steps import steepest
from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

_LAST_SHARE = 0.01
"""Length of the last step in units of the first."""


@dataclass(frozen=True, kw_only=True)
class DDN(Attack):
    """Steps along the gradient on a sphere that shrinks while the point is adversarial and grows while it is not.

    The way from the image to the nearest point found is bisected at the end. An image for which no adversarial point
    was found comes back as it is.
    Source: Rony et al. 2019, arXiv:1811.09600, algorithm 1.
    """

    steps: int = 100
    """Gradient steps."""

    initial_radius: float = 1.0
    """Radius of the first sphere."""

    factor: float = 0.05
    """Share by which the radius changes in a step."""

    bisections: int = 10
    """Halvings of the last interval."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError("steps", f"{self.steps} is too small; give at least 1")
        if self.bisections < 0:
            raise ParameterError("bisections", f"{self.bisections} is negative; give at least 0")
        if not 0 < self.initial_radius < float("inf"):
            raise ParameterError("initial_radius", f"{self.initial_radius:g} is not positive; give a positive length")
        if not 0 < self.factor < 1:
            raise ParameterError("factor", f"{self.factor:g} is not between 0 and 1")

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image."""
        return self.steps

    def run(self, request: AttackRequest) -> Tensor:
        """Return the nearest adversarial point found of each image."""
        import torch

        images, loss = request.images, cross_entropy(request.labels)
        shape = (-1, *[1] * (images.dim() - 1))
        best = images.clone()
        nearest = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)
        radius = torch.full((len(images),), self.initial_radius, device=images.device)

        def keep(x: Tensor, fallen: Tensor) -> None:
            away = distance(x, images, "l2").to(nearest)
            nearer = fallen & (away < nearest)
            nearest[nearer], best[nearer] = away[nearer], x[nearer]

        offset = torch.zeros_like(images)
        for step in range(self.steps):
            here = request.target.loss_gradient(images + offset, loss)
            fallen = here.logits.argmax(1) != request.labels
            keep(images + offset, fallen)
            length = _LAST_SHARE + (1 - _LAST_SHARE) * (1 + cos(pi * step / self.steps)) / 2
            direction = steepest(offset + length * steepest(here.gradient, "l2"), "l2")
            radius = radius * torch.where(fallen, 1 - self.factor, 1 + self.factor)
            offset = (images + radius.view(shape) * direction).clamp(0, 1) - images
        with torch.no_grad():
            last = images + offset
            keep(last, request.target.labels(last) != request.labels)
            low, high = torch.zeros_like(radius), torch.ones_like(radius)
            way = best - images
            for _ in range(self.bisections):
                middle = (low + high) / 2
                x = (images + middle.view(shape) * way).clamp(0, 1)
                fallen = request.target.labels(x) != request.labels
                keep(x, fallen)
                low, high = torch.where(fallen, low, middle), torch.where(fallen, middle, high)
        return best
