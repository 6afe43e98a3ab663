"""Fewer bits per value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Defense
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from autoshield_bench.seeding import ImageRandom
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FeatureSqueezing(Defense):
    """Rounds each value to one of ``2 ** bit_depth`` levels; one half of the feature squeezing of the paper.

    Source: Xu et al. 2018, arXiv:1704.01155, section 3.1; computed by ``art.defences.preprocessor.FeatureSqueezing``.
    """

    bit_depth: int = 1
    """Bits per value, 1 to 64. The paper's value for MNIST; it uses 4 and 5 for colour images. ART's own default of 8
    gives images of 8 bits back as they are."""

    def __post_init__(self) -> None:
        if not 1 <= self.bit_depth <= 64:
            raise ParameterError("bit_depth", f"{self.bit_depth} is not between 1 and 64")

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the squeezed images."""
        from art.defences.preprocessor import FeatureSqueezing as Squeezing

        from aubench_art.arrays import as_array, as_images

        squeezed, _labels = Squeezing(clip_values=(0.0, 1.0), bit_depth=self.bit_depth)(as_array(x))
        return as_images(squeezed, x)

    def surrogate(self, x: Tensor) -> Tensor:
        """Return the images on a smooth staircase, steepest where a value is about to change."""
        from aubench_art.defenses.rounding import soft_round

        steps = float(2**self.bit_depth - 1)
        return soft_round(x * steps, 1 / steps) / steps
