"""Purifiers that learn nothing: what an autoencoder in front of the classifier has to be better than."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from autoshield_bench.builtin.defenses.matching import MatchedPurifier
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

_SIGMAS_PER_PIXEL = 500


@dataclass(kw_only=True)
class GaussianBlur(MatchedPurifier):
    """Gaussian blur, cut off four standard deviations from the centre or at the size of the image.

    Borders are reflected.
    """

    sigma: float | None = None
    """Standard deviation in pixels; 1 where ``clean_psnr`` is not given either."""

    strength_parameter: ClassVar[str] = "sigma"
    default_strength: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma is not None and not 0 < self.sigma < float("inf"):
            raise ParameterError("sigma", f"{self.sigma:g} is not positive; give a number of pixels")

    def strengths(self, height: int, width: int) -> Sequence[float]:
        """Return standard deviations up to the size of the image, in steps that change the PSNR by about 0.04 dB."""
        return [step / _SIGMAS_PER_PIXEL for step in range(1, max(height, width) * _SIGMAS_PER_PIXEL + 1)]

    def transform(self, x: Tensor, strength: float) -> Tensor:
        """Return blurred images."""
        from torchvision.transforms.functional import gaussian_blur

        from autoshield_bench.straight_through import clip_to_range

        radius = max(1, round(4 * strength))
        # Reflection needs a border narrower than the image.
        kernel = [2 * min(radius, size - 1) + 1 for size in (x.shape[-1], x.shape[-2])]
        return clip_to_range(gaussian_blur(x, kernel, [strength, strength])) if len(x) else x


@dataclass(kw_only=True)
class Median(MatchedPurifier):
    """Median over a square window; of the two middle values of an even window the higher one is taken.

    Borders are repeated. Declared not differentiable, since in an image's areas of one value a median has no gradient:
    backward, the values that equal the median share it. With the identity in its place, white-box PGD
    at eps 0.15 left twice as many images of MNIST standing behind a window of 2. Source of its use as a defense: Xu et
    al. 2018, arXiv:1704.01155, section 3.2.
    """

    size: int | None = None
    """Height and width of the window in pixels; 3 where ``clean_psnr`` is not given either."""

    strength_parameter: ClassVar[str] = "size"
    default_strength: ClassVar[float] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and self.size < 2:
            raise ParameterError("size", f"{self.size} is too small; give at least 2")

    def strengths(self, height: int, width: int) -> Sequence[float]:
        """Return the windows of 2 to 9 pixels."""
        return range(2, 10)

    def transform(self, x: Tensor, strength: float) -> Tensor:
        """Return filtered images."""
        windows = _windows(x, int(strength))
        values: Tensor = windows.kthvalue(windows.shape[-1] // 2 + 1, dim=-1).values
        return values

    def surrogate(self, x: Tensor) -> Tensor:
        """Return the filtered images as means over the values of each window that equal its median."""
        windows = _windows(x, int(self.strength))
        equal = (windows == self.transform(x, self.strength).detach()[..., None]).to(x.dtype)
        shared: Tensor = (windows * equal).sum(-1) / equal.sum(-1)
        return shared


@dataclass(kw_only=True)
class BitDepth(MatchedPurifier):
    """Each value rounded to the nearest of ``2 ** bits`` levels from 0 to 1.

    Not differentiable; backward it is the identity. Images that are nearly black and white, such as MNIST's, are a
    special case: with one bit only values within eps of the threshold can change at all, so that the robustness in
    L-infinity is real, and says little of other images (Schott et al. 2019, arXiv:1805.09190).
    Source: Xu et al. 2018, arXiv:1704.01155, section 3.1.
    """

    bits: int | None = None
    """Bits per value, from 1 to 8; 1 where ``clean_psnr`` is not given either."""

    strength_parameter: ClassVar[str] = "bits"
    default_strength: ClassVar[float] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits is not None and not 1 <= self.bits <= 8:
            raise ParameterError("bits", f"{self.bits} is not between 1 and 8")

    def strengths(self, height: int, width: int) -> Sequence[float]:
        """Return the depths from 8 bits to 1."""
        return range(8, 0, -1)

    def transform(self, x: Tensor, strength: float) -> Tensor:
        """Return images of that depth."""
        levels = 2 ** int(strength) - 1
        rounded: Tensor = (x * levels).round() / levels
        return rounded


@dataclass(kw_only=True)
class Jpeg(MatchedPurifier):
    """Each image stored as JPEG and read back; grey or colour, with Pillow's own subsampling of colour.

    Values are rounded to 8 bits first. Not differentiable; backward it is the identity.
    Source of its use as a defense: Dziugaite et al. 2016, arXiv:1608.00853.
    """

    quality: int | None = None
    """Quality as libjpeg counts it, from 1 to 95; 75 where ``clean_psnr`` is not given either."""

    strength_parameter: ClassVar[str] = "quality"
    default_strength: ClassVar[float] = 75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quality is not None and not 1 <= self.quality <= 95:
            raise ParameterError("quality", f"{self.quality} is not between 1 and 95")

    def strengths(self, height: int, width: int) -> Sequence[float]:
        """Return the qualities from 95 to 1."""
        return range(95, 0, -1)

    def transform(self, x: Tensor, strength: float) -> Tensor:
        """Return the images after storage. Raises ValueError where they have neither one channel nor three."""
        import numpy as np
        import torch

        if x.shape[1] not in (1, 3):
            raise ValueError(f"jpeg stores images of one channel or three, not of {x.shape[1]}")
        if not len(x):
            return x
        pixels = (x.detach() * 255.0).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        stored = np.stack([_stored(image, int(strength)) for image in pixels])
        restored: Tensor = (torch.from_numpy(stored).permute(0, 3, 1, 2).double() / 255.0).to(x)
        return restored


def _windows(x: Tensor, size: int) -> Tensor:
    """Return the values ``[N, C, H, W, size * size]`` around each pixel; borders are repeated."""
    from torch.nn import functional

    if not len(x):
        return x[..., None]
    before, after = size // 2, size - 1 - size // 2
    padded = functional.pad(x, (before, after, before, after), mode="replicate")
    return padded.unfold(-2, size, 1).unfold(-2, size, 1).flatten(-2)


def _stored(
    image: numpy.ndarray[tuple[int, int, int], numpy.dtype[numpy.uint8]], quality: int
) -> numpy.ndarray[tuple[int, int, int], numpy.dtype[numpy.uint8]]:
    """Return a uint8 image ``[H, W, C]`` as it comes back from a JPEG file in memory."""
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(file, "JPEG", quality=quality)
    with Image.open(file) as read:
        return np.asarray(read, dtype=np.uint8).reshape(image.shape)
