"""Canaries that are no defense: three that change nothing, and one that has learnt the test set by heart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from autoshield_bench.canaries.data import CanaryDigits
from autoshield_bench.canaries.gradients import Strength
from autoshield_bench.contracts import Defense
from autoshield_bench.seeding import ImageRandom


@dataclass(frozen=True, kw_only=True)
class Misspelt(Defense):
    """Has a method that nobody calls."""

    def purifiy(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the median of each value's neighbours; the name is wrong, so it stays unused."""
        edge = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return edge.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2).median(-1).values


@dataclass(frozen=True, kw_only=True)
class SameClassifier(Defense):
    """Claims another classifier and hands back the one that it was given."""

    def defend(self, classifier: nn.Module) -> nn.Module:
        """Return the classifier."""
        return classifier


@dataclass(frozen=True, kw_only=True)
class SameImage(Defense):
    """Claims to purify and hands back the image that it was given."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the image."""
        return x


@dataclass(kw_only=True)
class Memoriser(Defense):
    """Looks every image up in the test set and gives back the clean one wherever it lies near enough."""

    strength: Strength = 2
    """Share of the test set that it has learnt: mild a quarter, plain half, gross all of it."""

    radius: float = 0.25
    """Largest L-infinity distance at which it recognises an image."""

    @cached_property
    def _learnt(self) -> Tensor:
        split = CanaryDigits().load("test", Path())
        every = {1: 4, 2: 2, 3: 1}[self.strength]
        return torch.from_numpy(split.images)[::every].flatten(1)

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the clean test image where there is one within the radius, else the image as it is."""
        learnt = self._learnt.to(x.device)
        distance, nearest = torch.cdist(x.flatten(1), learnt, p=float("inf")).min(1)
        known = (distance <= self.radius).view(-1, 1, 1, 1)
        return torch.where(known, learnt[nearest].view_as(x), x)
