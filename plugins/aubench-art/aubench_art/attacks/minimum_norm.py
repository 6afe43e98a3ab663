"""ART's minimum-norm attacks with gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

from aubench_art.attacks.requests import goal, one_by_one, points, within_range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """ART's ``DeepFool``: steps to the nearest face of the linearised decision boundary, until the class changes.

    ART moves away from the predicted class, right or wrong: an image that is misclassified to begin with stays the
    clean image, at distance 0. A step takes a gradient per class. Where fewer classes are looked at than there are,
    ART takes the union over its batch, so that images are run one by one. Source: Moosavi-Dezfooli et al. 2016,
    arXiv:1511.04599.
    """

    steps: int = 50
    """Largest number of steps; ART's ``max_iter``, 100 there, and 50 in the paper."""

    overshoot: float = 0.02
    """Share added to the way at the end; ART's ``epsilon``, 1e-6 there, and 0.02 in the paper."""

    classes: int = 10
    """Likeliest classes to look at; ART's ``nb_grads``."""

    def __post_init__(self) -> None:
        for key, least in (("steps", 1), ("classes", 2)):
            if getattr(self, key) < least:
                raise ParameterError(key, f"{getattr(self, key)} is too small; give at least {least}")
        if not 0 <= self.overshoot < float("inf"):
            raise ParameterError("overshoot", f"{self.overshoot:g} is not a share of at least 0")

    def run(self, request: AttackRequest) -> Tensor:
        """Return the points behind the boundary."""
        import torch

        if not len(request.images):
            return request.images.clone()
        if self.classes >= request.target.classes:
            return self._run(request)
        return torch.cat([self._run(one) for one in one_by_one(request)])

    def _run(self, request: AttackRequest) -> Tensor:
        import torch
        from art.attacks.evasion import DeepFool as ArtDeepFool

        from aubench_art.attacks.classifier import GradientClassifier, quiet

        with quiet():
            classifier = GradientClassifier(request)
            attack = ArtDeepFool(
                classifier,
                max_iter=self.steps,
                epsilon=self.overshoot,
                nb_grads=self.classes,
                batch_size=len(request.images),
                verbose=False,
            )
            result = within_range(attack.generate(points(request.images)), request)
        right = classifier.first.eq(request.labels)
        return torch.where(right.view(-1, 1, 1, 1), result, request.images)


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(Attack):
    """ART's ``CarliniL2Method``: the distance and a weighted margin, minimised in tanh space with a line search.

    The weight is found by binary search. Images are run one by one, since ART takes an image for fallen on a stale
    loss where another one of its batch moves. Source: Carlini and Wagner 2017, arXiv:1608.04644.
    """

    search_steps: int = 10
    """Steps of the binary search over the weight; ART's ``binary_search_steps``."""

    steps: int = 10
    """Gradient steps at each weight; ART's ``max_iter``."""

    learning_rate: float = 0.01
    """First length of a step of the line search."""

    initial_weight: float = 0.01
    """Weight of the margin to begin with; ART's ``initial_const``."""

    confidence: float = 0.0
    """Margin of logits to reach beyond the boundary."""

    halvings: int = 5
    """Largest number of halvings of the step in a line search; ART's ``max_halving``."""

    doublings: int = 5
    """Largest number of doublings of the step in a line search; ART's ``max_doubling``."""

    def __post_init__(self) -> None:
        for key in ("search_steps", "steps", "halvings", "doublings"):
            if getattr(self, key) < 1:
                raise ParameterError(key, f"{getattr(self, key)} is too small; give at least 1")
        for key in ("learning_rate", "initial_weight"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ParameterError(key, f"{getattr(self, key):g} is not positive")
        if not 0 <= self.confidence < float("inf"):
            raise ParameterError("confidence", f"{self.confidence:g} is not a margin of at least 0")

    def run(self, request: AttackRequest) -> Tensor:
        """Return the nearest points that succeed, and the clean image where none does."""
        import torch

        if not len(request.images):
            return request.images.clone()
        return torch.cat([self._run(one) for one in one_by_one(request)])

    def _run(self, request: AttackRequest) -> Tensor:
        from art.attacks.evasion import CarliniL2Method

        from aubench_art.attacks.classifier import GradientClassifier, quiet

        with quiet():
            attack = CarliniL2Method(
                GradientClassifier(request),
                confidence=self.confidence,
                targeted=request.targets is not None,
                learning_rate=self.learning_rate,
                binary_search_steps=self.search_steps,
                max_iter=self.steps,
                initial_const=self.initial_weight,
                max_halving=self.halvings,
                max_doubling=self.doublings,
                batch_size=1,
                verbose=False,
            )
            return within_range(attack.generate(points(request.images), goal(request)), request)
