"""JPEG compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Defense
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from autoshield_bench.seeding import ImageRandom
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Jpeg(Defense):
    """Encodes each image as JPEG and decodes it: three channels as a colour image, others one by one in grey.

    ART cuts values to whole steps of 1 / 255 first. Source: Dziugaite et al. 2016, arXiv:1608.00853, and Das et al.
    2017, arXiv:1705.02900; computed by ``art.defences.preprocessor.JpegCompression``.
    """

    quality: int = 50
    """Quality of the encoder, 1 (worst) to 100; 50 is ART's default, and Dziugaite et al. use 75."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ParameterError("quality", f"{self.quality} is not between 1 and 100")

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the decoded images."""
        from art.defences.preprocessor import JpegCompression

        from aubench_art.arrays import as_array, as_images

        if not len(x):
            return x  # ART asks for the smallest value, and there is none
        compression = JpegCompression(clip_values=(0.0, 1.0), quality=self.quality, channels_first=True)
        decoded, _labels = compression(as_array(x))
        return as_images(decoded, x)

    def surrogate(self, x: Tensor) -> Tensor:
        """Return the images through the same compression with its rounding made smooth.

        With the identity an attack spends its budget on what no JPEG image can hold, fine colour above all.
        """
        from aubench_art.defenses.jpeg_transform import compressed
        from aubench_art.defenses.rounding import soft_round

        return compressed(x, self.quality, soft_round)
