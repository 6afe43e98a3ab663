"""The built-in classifiers and the recipes they are trained by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Model, Recipe
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class SmallCNN(Model):
    """Two convolutions and two fully connected layers: the classifier of the study's size."""

    features: int = 24
    """Channels of the first convolution."""
    epochs: int = 5
    """Passes over the fitting part."""

    def __post_init__(self) -> None:
        _at_least_one(self, "features", "epochs")

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the untrained network."""
        from autoshield_bench.builtin.models.networks import small_cnn

        return small_cnn(*image_shape, classes, self.features)

    def recipe(self) -> Recipe:
        """Return how it is trained."""
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=2e-3, weight_decay=0.05)


@dataclass(frozen=True, kw_only=True)
class DeepCNN(Model):
    """A residual network of seven layers: the more complex classifier that the study asks for."""

    features: int = 24
    """Channels of the first convolution."""
    epochs: int = 3
    """Passes over the fitting part."""

    def __post_init__(self) -> None:
        _at_least_one(self, "features", "epochs")

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the untrained network."""
        from autoshield_bench.builtin.models.networks import deep_cnn

        return deep_cnn(image_shape[0], classes, self.features)

    def recipe(self) -> Recipe:
        """Return how it is trained."""
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=4e-3, weight_decay=0.05)


def _at_least_one(model: Model, *keys: str) -> None:
    for key in keys:
        if getattr(model, key) < 1:
            raise ParameterError(key, f"{getattr(model, key)} is too small; give at least 1")
