"""Shift-tolerant LPIPS: a learned perceptual distance that forgives a shift by a pixel."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autoshield_bench.contracts import MetricValues, PairMetric
from autoshield_bench.errors import ParameterError, Unavailable

from aubench_stlpips import pretrained

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_SIDE = 64
"""Pixels. The human judgments that the metric is calibrated on were made on patches of this size."""

CHUNK_PIXELS = 16 * SMALLEST_SIDE**2
"""Pixels measured at once. The first convolution has stride 1, so memory grows with pixels times 64 channels."""


@dataclass(frozen=True, kw_only=True)
class Stlpips(PairMetric):
    """Shift-tolerant learned perceptual distance (Ghildyal and Liu 2022, arXiv:2207.13686); 0 is identical.

    Grayscale images are repeated to three channels, and [0, 1] is mapped to [-1, 1].
    """

    network: Literal["alex", "vgg"] = "alex"
    """Backbone whose activations are compared. Values of different backbones do not compare."""

    images: int | None = 500
    """Largest number of images it is taken on; None: all of them."""

    def __post_init__(self) -> None:
        if self.network not in pretrained.SHA256:
            raise ParameterError("network", f"{self.network!r} is not one of {', '.join(pretrained.SHA256)}")
        if self.images is not None and self.images < 1:
            raise ParameterError("images", f"{self.images} is not at least 1")

    def prepare(self) -> None:
        """Read and verify the weights. Raises ``Unavailable``, with the remedy; nothing is downloaded."""
        _loaded(self.network, "cpu")

    def unavailable(self) -> str | None:
        """Return what is not installed; a file that is there is verified when it is read."""
        reason = pretrained.missing(self.network)
        return None if reason is None else f"ST-LPIPS with {self.network}: {reason}"

    def notes(self) -> str:
        """Return backbone, version and the treatment of small images."""
        return (
            f"shift-tolerant backbone {self.network}, {pretrained.version()}; images under {SMALLEST_SIDE} px are "
            f"resized to {SMALLEST_SIDE} px (bilinear) and uncalibrated there"
        )

    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        """Return the distance of each pair.

        Raises:
            Unavailable: The weights are missing or not the published ones, or the images are neither gray nor RGB.
        """
        import torch

        count, channels = reference.shape[:2]
        values = torch.empty(count, dtype=torch.float64, device=reference.device)
        if count == 0:
            return MetricValues(values=values)
        if channels not in (1, 3):
            raise Unavailable(f"ST-LPIPS takes images of 1 or 3 channels, not {channels}; leave this metric out")
        distance = _loaded(self.network, str(reference.device))
        height, width = _size(reference)
        chunk = max(1, CHUNK_PIXELS // (height * width))
        with torch.no_grad():
            for start in range(0, count, chunk):
                rows = slice(start, start + chunk)
                distances = distance(_prepared(reference[rows]), _prepared(other[rows]), normalize=True)
                values[rows] = distances.flatten().double()
        return MetricValues(values=values)


def _size(images: Tensor) -> tuple[int, int]:
    """Return height and width at which images are compared."""
    height, width = images.shape[2:]
    shorter = min(height, width)
    if shorter >= SMALLEST_SIDE:
        return height, width
    return round(height * SMALLEST_SIDE / shorter), round(width * SMALLEST_SIDE / shorter)


def _prepared(images: Tensor) -> Tensor:
    from torch.nn.functional import interpolate

    images = images.float().expand(-1, 3, -1, -1)
    size = _size(images)
    if size == tuple(images.shape[2:]):
        return images
    return interpolate(images, size=size, mode="bilinear", align_corners=False)


@functools.cache
def _loaded(backbone: str, device: str) -> nn.Module:
    return pretrained.load(backbone).to(device)
