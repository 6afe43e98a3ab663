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


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """ART's ``AutoProjectedGradientDescent`` on the cross-entropy: momentum, and a step that halves where it stalls.

    An image that has fallen is left alone. For one that stands to the end ART returns the random start of its last
    run, though it has kept the point of highest loss of that run: here that point is returned. Source: Croce and Hein
    2020, arXiv:2003.01690.
    """

    steps: int = 100
    """Gradient steps per run; ART's ``max_iter``."""

    relative_step_size: float = 2.0
    """First length of a step in units of eps, 2 in the paper. ART's ``eps_step`` is 0.1 at any eps."""

    restarts: int = 1
    """Runs, each from a random point of the ball and with the images that still stand; 5 in ART."""

    def __post_init__(self) -> None:
        for key in ("steps", "restarts"):
            if getattr(self, key) < 1:
                raise ParameterError(key, f"{getattr(self, key)} is too small; give at least 1")
        if not 0 < self.relative_step_size < float("inf"):
            raise ParameterError("relative_step_size", f"{self.relative_step_size:g} is not a positive length")

    def run(self, request: AttackRequest) -> Tensor:
        """Return the last points of images that fell, and the points of highest loss of the others."""
        import torch

        if not len(request.images) or request.threat.eps == 0:
            return request.images.clone()
        from art.attacks.evasion import AutoProjectedGradientDescent

        from aubench_art.attacks.classifier import GradientClassifier, quiet

        with quiet():
            classifier = GradientClassifier(request)
            with classifier.unasked():
                attack = AutoProjectedGradientDescent(
                    classifier,
                    norm=order(request.threat.norm),
                    eps=request.threat.eps,
                    eps_step=request.threat.eps * self.relative_step_size,
                    max_iter=self.steps,
                    targeted=request.targets is not None,
                    nb_random_init=self.restarts,
                    batch_size=len(request.images),
                    verbose=False,
                )
            result = attack.generate(points(request.images), goal(request))
        wanted = request.labels if request.targets is None else request.targets
        kept = getattr(attack, "x_max", result[:0])
        if len(kept) == len(classifier.last):  # else ART asked about the whole batch last, and all of it has fallen
            rows = classifier.module.rows if len(kept) < len(result) else torch.arange(len(result)).to(wanted)
            told = classifier.last == wanted[rows]
            stands = told if request.targets is None else ~told
            result[rows[stands].cpu().numpy()] = kept[stands.cpu().numpy()]
        return within_ball(result, request)

    def gradient_steps(self) -> int:
        """Return the gradient evaluations of an image that stands to the end."""
        return self.steps * self.restarts
