"""Data sets and classifiers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a data set before it is read."""

    image_shape: tuple[int, int, int]
    """Channels, height, width."""

    classes: int
    """Number of classes."""

    train_size: int
    """Number of training images, before they are split into a fitting and a validation part."""

    test_size: int
    """Number of test images."""

    @property
    def validation_size(self) -> int:
        """Number of images of the validation part: one twelfth, which is 5,000 of MNIST's 60,000."""
        return round(self.train_size / 12)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images and labels of one split, in the data set's own order."""

    images: numpy.ndarray[Any, Any]
    """``[N, C, H, W]``: uint8 (the host divides by 255) or float32 in [0, 1]."""

    labels: numpy.ndarray[Any, Any]
    """``[N]``, int64."""


class Dataset(ABC):
    """Base class of data sets; a dataclass whose keyword-only fields are its parameters."""

    @abstractmethod
    def info(self) -> DatasetInfo:
        """Return shape and sizes, without reading the data."""

    @abstractmethod
    def fetch(self, data_dir: Path) -> Path:
        """Make sure the data lie below ``data_dir``, and return where. Verifies them.

        Raises ``DataError`` naming the places looked in and the remedy.
        """

    @abstractmethod
    def fingerprint(self, data_dir: Path) -> str:
        """Return a hash of the content, the same wherever the data came from; cheap, and called after ``fetch``."""

    @abstractmethod
    def load(self, split: Literal["train", "test"], data_dir: Path) -> Split:
        """Return one split; called after ``fetch``."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the harness trains a classifier: cross-entropy, AdamW, one-cycle learning rate, shuffled each epoch."""

    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule (Smith and Topin 2019, arXiv:1708.07120)."""
    weight_decay: float = 1e-2


class Model(ABC):
    """Base class of classifiers; a dataclass whose keyword-only fields are its parameters."""

    @abstractmethod
    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return a network from images in [0, 1] to logits. Its input normalisation is part of it."""

    def recipe(self) -> Recipe:
        """Return how the harness trains it."""
        return Recipe()

    def fingerprint(self) -> str:
        """Return a hash of the weights of a model that comes trained; empty for one that the harness trains."""
        return ""
