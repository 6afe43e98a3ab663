"""Learned perceptual similarity (LPIPS), by the ``lpips`` package on verified weights."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from autoshield_bench.builtin.metrics import backbone_weights
from autoshield_bench.builtin.metrics.backbone_weights import BACKBONES
from autoshield_bench.contracts import MetricValues, PairMetric
from autoshield_bench.errors import ParameterError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SMALLEST_SIDE = 64
"""Pixels. The human judgments that LPIPS is calibrated on were made on patches of this size."""

CHUNK_IMAGES = 100


@dataclass(frozen=True, kw_only=True)
class Lpips(PairMetric):
    """Learned perceptual image patch similarity, version 0.1 (Zhang et al. 2018); 0 is identical.

    Grayscale images are repeated to three channels, and [0, 1] is mapped to [-1, 1].
    """

    backbone: Literal["squeeze", "alex", "vgg"] = "squeeze"
    """Network whose activations are compared. Values of different backbones do not compare."""

    images: int | None = 500
    """Largest number of images it is taken on; None: all of them."""

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ParameterError("backbone", f"{self.backbone!r} is not one of {', '.join(BACKBONES)}")
        if self.images is not None and self.images < 1:
            raise ParameterError("images", f"{self.images} is not at least 1")

    def prepare(self) -> None:
        """Find or download the weights, and verify them. Raises ``Unavailable``, with the remedy."""
        weights = BACKBONES[self.backbone]
        backbone_weights.load_features(weights, backbone_weights.fetch(weights))

    def unavailable(self) -> str | None:
        """Return why the weights are missing; a file that is there is verified when it is read."""
        weights = BACKBONES[self.backbone]
        if backbone_weights.find(weights) is not None:
            return None
        return f"LPIPS with {self.backbone}: {backbone_weights.missing(weights)}"

    def notes(self) -> str:
        """Return backbone and the treatment of small images."""
        return (
            f"backbone {self.backbone}; images under {SMALLEST_SIDE} px are resized to {SMALLEST_SIDE} px (bilinear) "
            "and uncalibrated there"
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
            raise Unavailable(f"LPIPS takes images of 1 or 3 channels, not {channels}; leave this metric out")
        path = backbone_weights.find(BACKBONES[self.backbone])
        if path is None:
            raise Unavailable(str(self.unavailable()))
        network = _network(self.backbone, path, str(reference.device))
        with torch.no_grad():
            for start in range(0, count, CHUNK_IMAGES):
                rows = slice(start, start + CHUNK_IMAGES)
                distances = network(_prepared(reference[rows]), _prepared(other[rows]), normalize=True)
                values[rows] = distances.flatten().double()
        return MetricValues(values=values)


def _prepared(images: Tensor) -> Tensor:
    from torch.nn.functional import interpolate

    images = images.float().expand(-1, 3, -1, -1)
    height, width = images.shape[2:]
    shorter = min(height, width)
    if shorter >= SMALLEST_SIDE:
        return images
    size = [round(side * SMALLEST_SIDE / shorter) for side in (height, width)]
    return interpolate(images, size=size, mode="bilinear", align_corners=False)


@functools.cache
def _network(backbone: str, path: Path, device: str) -> Any:
    import torch

    features = backbone_weights.load_features(BACKBONES[backbone], path)
    # lpips prints, torchvision warns of an argument that lpips passes, and the weights drawn at random for the moment
    # must not advance the caller's generator.
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        import lpips

        network = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    # lpips names a weight "slice2.3.bias" that torchvision names "features.3.bias".
    try:
        network.net.load_state_dict({name: features[name.partition(".")[2]] for name in network.net.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise Unavailable(f"{path}: does not fit the network {backbone}; replace or remove it") from error
    # Half the time of torch's default layout, and the same distances but for the last bits.
    return network.requires_grad_(False).eval().to(device).to(memory_format=torch.channels_last)
