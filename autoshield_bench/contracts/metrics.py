"""What a metric looks at and returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MetricValues:
    """One value per image."""

    values: Tensor
    """Float tensor ``[N]``; finite wherever ``defined``."""

    defined: Tensor | None = None
    """Boolean tensor ``[N]``, False where the value does not exist (PSNR of identical images); None: all defined."""


class _Metric:
    """What both kinds of metric share."""

    images: int | None = None
    """Largest number of images it is taken on (a fixed stratified subset); None: all of them."""

    def prepare(self) -> None:
        """Fetch what is needed, such as weights. Raises ``Unavailable``, with the remedy, where it cannot be had."""

    def unavailable(self) -> str | None:
        """Return why the metric cannot be taken here at this moment, without touching a network; None if it can."""
        return None

    def notes(self) -> str:
        """Return what a reader must know about the value, such as window, data range or backbone."""
        return ""

    def aggregate(self, values: Sequence[float], undefined: int) -> float | None:
        """Return the value over many images from the defined ones, None where it does not exist. Default: the mean."""
        return math.fsum(values) / len(values) if values else None


class PredictionMetric(_Metric, ABC):
    """Base class of metrics that look at predictions."""

    @abstractmethod
    def per_image(self, labels: Tensor, clean_logits: Tensor, logits: Tensor) -> MetricValues:
        """Return one value per image from its label ``[N]`` and the defended pipeline's logits ``[N, classes]`` on the
        clean image and on the image that is scored (the same one in a clean cell)."""


class PairMetric(_Metric, ABC):
    """Base class of metrics that compare two images."""

    @abstractmethod
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        """Return one value per image; ``reference`` is the clean image, both are ``[N, C, H, W]`` in [0, 1]."""
