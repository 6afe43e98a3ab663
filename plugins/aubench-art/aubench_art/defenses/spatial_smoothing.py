"""The median of a neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Defense
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from autoshield_bench.seeding import ImageRandom
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SpatialSmoothing(Defense):
    """Replaces each value by the median of the square window around it, in its own channel.

    The other half of the feature squeezing of the paper. Source: Xu et al. 2018, arXiv:1704.01155, section 3.2;
    computed by ``art.defences.preprocessor.SpatialSmoothing``. ART's version in PyTorch gives other images: it mirrors
    them about their outermost pixels instead of their edges, and takes the lower of two middle values.
    """

    window_size: int = 3
    """Side of the window in pixels; ART's default, and with 2 one of the paper's two values."""

    def __post_init__(self) -> None:
        if self.window_size < 1:
            raise ParameterError("window_size", f"{self.window_size} is too small; give at least 1")

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the smoothed images."""
        from art.defences.preprocessor import SpatialSmoothing as Smoothing

        from aubench_art.arrays import as_array, as_images

        smoothing = Smoothing(window_size=self.window_size, channels_first=True, clip_values=(0.0, 1.0))
        smoothed, _labels = smoothing(as_array(x))
        return as_images(smoothed, x)

    def surrogate(self, x: Tensor) -> Tensor:
        """Return the very same values, with the gradient of the median wherever it has one."""
        return median_filter(x, self.window_size)


def median_filter(x: Tensor, window_size: int) -> Tensor:
    """Return the running median of images ``[N, C, H, W]``, equal to that of ``scipy.ndimage`` (mode ``reflect``).

    The gradient goes to the value that is the median. Where several are equal, as in the black background of a digit,
    the median has none, and they share it: one picked by its place in memory would hide the others from an attack.
    """
    import torch

    for axis in (2, 3):
        x = x.index_select(axis, torch.tensor(_mirrored(x.shape[axis], window_size), device=x.device))
    windows = x.unfold(2, window_size, 1).unfold(3, window_size, 1).flatten(4)
    values = windows.detach()
    median = values.kthvalue(window_size**2 // 2 + 1, dim=4, keepdim=True).values
    equal = (values == median).to(x)
    # The median itself plus a difference of zero: a mean over equal values would be off by a rounding error.
    return median.squeeze(4) + ((windows - median) * equal / equal.sum(4, keepdim=True)).sum(4)


def _mirrored(size: int, window_size: int) -> list[int]:
    """Return the rows that the windows look at, mirrored about the edges as often as needed (``b a | a b c | c b``)."""
    before = window_size // 2
    places = (place % (2 * size) for place in range(-before, size - before + window_size - 1))
    return [place if place < size else 2 * size - 1 - place for place in places]
