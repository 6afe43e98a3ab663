"""Structural similarity, batched, in float64; scikit-image's ``structural_similarity`` is the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import MetricValues, PairMetric
from autoshield_bench.errors import ParameterError, Unavailable

if TYPE_CHECKING:
    from torch import Tensor

# Wang et al. 2004, section III-C, for a data range of 1.0.
C1 = 0.01**2
C2 = 0.03**2
SIGMA = 1.5
GAUSSIAN_RADIUS = 5
"""Where scikit-image cuts the Gaussian off: 3.5 sigma, which gives the 11 x 11 window of Wang et al."""

CHUNK_VALUES = 2**15
"""Pixel values of a chunk of images: small enough for the intermediate maps to stay in the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Ssim(PairMetric):
    """Structural similarity (Wang et al. 2004), averaged over positions and channels; data range 1.0.

    The values are those of scikit-image: by default a uniform window and the sample covariance; with ``gaussian`` its
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``. ``gaussian = true, window = 11`` is the
    definition of Wang et al.
    """

    window: int = 7
    """Side of the uniform window, an odd number of pixels. The Gaussian is always 11 wide: beside it this only sets
    the border left out of the mean, ``(window - 1) / 2``, with the image mirrored where the Gaussian reaches outside.
    """

    gaussian: bool = False
    """Weigh by a Gaussian of sigma 1.5 instead of uniformly."""

    def __post_init__(self) -> None:
        if self.window < 3 or self.window % 2 == 0:
            raise ParameterError("window", f"{self.window} is not an odd number of at least 3")

    def notes(self) -> str:
        """Return window and data range."""
        if self.gaussian:
            return f"Gaussian 11x11 window (sigma {SIGMA}), border of {self._border} px left out, data range 1.0"
        return f"uniform {self.window}x{self.window} window, sample covariance, data range 1.0"

    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        """Return the similarity of each pair.

        Raises:
            Unavailable: The images are smaller than the window.
        """
        import torch

        count, channels, height, width = reference.shape
        if min(height, width) < self.window:
            raise Unavailable(_too_small(self.window, height, width))
        values = torch.empty(count, dtype=torch.float64, device=reference.device)
        step = max(1, CHUNK_VALUES // max(1, channels * height * width))
        for start in range(0, count, step):
            rows = slice(start, start + step)
            values[rows] = self._similarity(reference[rows].double(), other[rows].double()).flatten(1).mean(1)
        return MetricValues(values=values)

    def _similarity(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the map of equation 13, without its border."""
        import torch

        # The variances enter as a sum alone, so one filtered map serves both.
        maps = torch.stack((x, y, x * x + y * y, x * y))
        mean_x, mean_y, mean_squares, mean_product = self._local_means(maps)
        products, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
        covariance = self._normalisation * (mean_product - products)
        variances = self._normalisation * (mean_squares - squares)
        similarity: Tensor = (2 * products + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))
        return similarity

    def _local_means(self, maps: Tensor) -> Tensor:
        weights = _gaussian_weights() if self.gaussian else [1.0 / self.window] * self.window
        margin = self._border - len(weights) // 2
        for dim in (-2, -1):
            maps = _correlate(_mirrored(maps, dim, margin), weights, dim)
        return maps

    @property
    def _border(self) -> int:
        return (self.window - 1) // 2

    @property
    def _normalisation(self) -> float:
        """From the mean to the sample covariance over the window."""
        samples = self.window**2
        return 1.0 if self.gaussian else samples / (samples - 1)


def _correlate(maps: Tensor, weights: list[float], dim: int) -> Tensor:
    length = maps.shape[dim] - len(weights) + 1
    total = maps.narrow(dim, 0, length) * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        total.add_(maps.narrow(dim, offset, length), alpha=weight)
    return total


def _mirrored(maps: Tensor, dim: int, margin: int) -> Tensor:
    """Drop ``margin`` lines at both ends of a dimension; where it is negative, mirror as many (``cba|abc|cba``)."""
    import torch

    if margin == 0:
        return maps
    length = maps.shape[dim]
    index = torch.arange(margin, length - margin, device=maps.device).remainder(2 * length)
    return maps.index_select(dim, torch.where(index < length, index, 2 * length - 1 - index))


def _gaussian_weights() -> list[float]:
    weights = [math.exp(-0.5 * (x / SIGMA) ** 2) for x in range(-GAUSSIAN_RADIUS, GAUSSIAN_RADIUS + 1)]
    return [weight / math.fsum(weights) for weight in weights]


def _too_small(window: int, height: int, width: int) -> str:
    largest = (min(height, width) - 1) // 2 * 2 + 1
    remedy = f"set window to {largest} or less" if largest >= 3 else "leave this metric out"
    return f"SSIM: a window of {window} px does not fit images of {height}x{width} px; {remedy}"
