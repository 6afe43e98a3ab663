"""Metrics of two images' pixels: errors and distances, evaluated in float64. Images are in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.balls import distance
from autoshield_bench.contracts import MetricValues, PairMetric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mse(PairMetric):
    """Mean squared error over all values of an image."""

    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        """Return the mean squared error of each pair."""
        return MetricValues(values=_mean_squared_error(reference, other))


@dataclass(frozen=True, kw_only=True)
class Psnr(PairMetric):
    """Peak signal-to-noise ratio in dB, ``-10 log10(MSE)`` for a data range of 1.0.

    Undefined, not infinite, where the images are identical.
    """

    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        """Return the ratio of each pair that differs."""
        mse = _mean_squared_error(reference, other)
        differs = mse > 0
        return MetricValues(values=-10.0 * mse.where(differs, mse.new_ones(())).log10(), defined=differs)

    def aggregate(self, values: Sequence[float], undefined: int) -> float | None:
        """Return the ratio at the mean MSE over all images; an undefined one (identical images) has an MSE of zero.

        A mean of decibels would let the few images that hardly changed drown the others. None if all are identical.
        """
        if not values:
            return None
        return -10.0 * math.log10(math.fsum(10.0 ** (-value / 10.0) for value in values) / (len(values) + undefined))

    def notes(self) -> str:
        """Return the data range and how many images become one figure."""
        return "data range 1.0; over many images from the mean MSE, identical images included"


@dataclass(frozen=True, kw_only=True)
class LinfDistance(PairMetric):
    """Largest absolute change of any value of an image."""

    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        """Return the L-infinity distance of each pair."""
        return MetricValues(values=distance(reference, other, "linf"))


@dataclass(frozen=True, kw_only=True)
class L2Distance(PairMetric):
    """Euclidean length of the change over all values of an image; it grows with the size of the image."""

    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        """Return the L2 distance of each pair."""
        return MetricValues(values=distance(reference, other, "l2"))


def _mean_squared_error(reference: Tensor, other: Tensor) -> Tensor:
    return (reference.double() - other.double()).flatten(1).square().mean(1)
