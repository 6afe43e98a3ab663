"""Canaries whose gradients say nothing: each calls itself differentiable, and none of them is in any useful sense.

They show the masks that Athalye et al. 2018 (arXiv:1802.00420) name: shattered, missing and vanishing gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench.contracts import Defense
from autoshield_bench.seeding import ImageRandom

Strength = Literal[1, 2, 3]
"""How wrong a canary is: mild, plain or gross."""


@dataclass(frozen=True, kw_only=True)
class Shatterer(Defense):
    """Adds a ripple too fine to see and so steep that the sign of the gradient is that of the ripple."""

    strength: Strength = 2
    """Slope of the ripple, of which the image itself has 1: mild 5, plain 50, gross 500."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the image with the ripple, whose zeros include the multiples of 1/16."""
        height, waves = {1: (0.01, 80), 2: (0.02, 400), 3: (0.04, 2000)}[self.strength]
        return (x + height * torch.sin(2 * math.pi * waves * x)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Quantiser(Defense):
    """Rounds each value: a staircase, whose gradient is zero wherever it exists."""

    strength: Strength = 2
    """Steps of the staircase: mild 16, plain 4, gross 1."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the nearest values of the staircase."""
        steps = {1: 16, 2: 4, 3: 1}[self.strength]
        return (x * steps).round() / steps


@dataclass(frozen=True, kw_only=True)
class Detacher(Defense):
    """Cuts most of the image, or all, from the graph, and smooths it; no gradient reaches those values."""

    strength: Strength = 2
    """Values that a gradient still reaches: mild one in four, plain one in sixteen, gross none."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the smoothed image."""
        cut = x.detach().clone()
        if self.strength < 3:
            spacing = 2 if self.strength == 1 else 4
            cut[..., ::spacing, ::spacing] = x[..., ::spacing, ::spacing]
        edge = functional.pad(cut, (1, 1, 1, 1), mode="replicate")
        return 0.7 * cut + 0.3 * functional.avg_pool2d(edge, 3, stride=1)


@dataclass(frozen=True, kw_only=True)
class Rescaler(Defense):
    """Multiplies logits until the softmax is exactly 0 or 1 in float32, and the gradient of cross-entropy is zero.

    The predictions are the classifier's own. Carlini and Wagner 2016 (arXiv:1607.04311) on defensive distillation.
    """

    strength: Strength = 2
    """Factor of the logits: mild 30, plain 1,000, gross 1,000,000."""

    def defend(self, classifier: nn.Module) -> nn.Module:
        """Return the classifier with larger logits."""
        return _Scaled(classifier, {1: 30.0, 2: 1e3, 3: 1e6}[self.strength])


@dataclass(frozen=True, kw_only=True)
class ScoreHider(Defense):
    """Gives away the prediction and as little else as it can: nothing but the scores is any different."""

    strength: Strength = 2
    """What is left of the probabilities: mild two decimals, plain one, gross the predicted class alone."""

    def defend(self, classifier: nn.Module) -> nn.Module:
        """Return the classifier behind coarse scores."""
        return _Coarse(classifier, {1: 100, 2: 10, 3: 0}[self.strength])


class _Scaled(nn.Module):
    def __init__(self, classifier: nn.Module, factor: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.classifier(x) * self.factor
        return result


class _Coarse(nn.Module):
    def __init__(self, classifier: nn.Module, steps: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        best = functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)
        if not self.steps:
            return best
        # Half a step for the predicted class: rounding may not change the prediction.
        return (logits.softmax(1) * self.steps).round() / self.steps + best / (2 * self.steps)
