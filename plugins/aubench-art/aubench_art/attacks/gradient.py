"""ART's fixed-budget attacks with gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

from aubench_art.attacks.requests import goal, order, points, within_ball

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """ART's ``FastGradientMethod``: one step of length eps along the gradient of the cross-entropy.

    For L2 along the normalised gradient. Deterministic: no random start. Source: Goodfellow et al. 2015,
    arXiv:1412.6572.
    """

    def run(self, request: AttackRequest) -> Tensor:
        """Return the images after one step."""
        if not len(request.images) or request.threat.eps == 0:
            return request.images.clone()
        from art.attacks.evasion import FastGradientMethod

        from aubench_art.attacks.classifier import GradientClassifier, quiet

        with quiet():
            attack = FastGradientMethod(
                GradientClassifier(request),
                norm=order(request.threat.norm),
                eps=request.threat.eps,
                targeted=request.targets is not None,
                batch_size=len(request.images),
            )
            result = attack.generate(points(request.images), goal(request))
        return within_ball(result, request)

    def gradient_steps(self) -> int:
        """Return 1."""
        return 1


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """ART's ``ProjectedGradientDescentPyTorch``: steps along the gradient, projected back into the ball.

    The point after the last step is returned, that of the first run unless a later one succeeds. This is the
    implementation that ART's facade ``ProjectedGradientDescent`` picks for a classifier of torch. Source: Madry et
    al. 2018, arXiv:1706.06083.
    """

    steps: int = 40
    """Gradient steps per run; ART's ``max_iter``, 100 there."""

    relative_step_size: float | None = None
    """Length of a step in units of eps; 2.5 / steps where it is not given. ART's ``eps_step`` is 0.1 at any eps."""

    restarts: int = 1
    """Runs, each from a random point of the ball; 0 is one run from the image itself, ART's default."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError("steps", f"{self.steps} is too small; give at least 1")
        if self.restarts < 0:
            raise ParameterError("restarts", f"{self.restarts} is negative; give at least 0")
        if self.relative_step_size is not None and not 0 < self.relative_step_size < float("inf"):
            raise ParameterError("relative_step_size", f"{self.relative_step_size:g} is not a positive length")

    def run(self, request: AttackRequest) -> Tensor:
        """Return the point after the last step of the run that counts."""
        if not len(request.images) or request.threat.eps == 0:
            return request.images.clone()
        from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
            ProjectedGradientDescentPyTorch,
        )

        from aubench_art.attacks.classifier import GradientClassifier, quiet

        with quiet():
            attack = ProjectedGradientDescentPyTorch(
                GradientClassifier(request),
                norm=order(request.threat.norm),
                eps=request.threat.eps,
                eps_step=request.threat.eps * (self.relative_step_size or 2.5 / self.steps),
                max_iter=self.steps,
                targeted=request.targets is not None,
                num_random_init=self.restarts,
                batch_size=len(request.images),
                verbose=False,
            )
            result = attack.generate(points(request.images), goal(request))
        return within_ball(result, request)

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image."""
        return self.steps * max(1, self.restarts)
