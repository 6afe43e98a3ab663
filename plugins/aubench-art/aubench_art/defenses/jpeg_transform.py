"""JPEG as arithmetic: colour transform, halved chroma, cosine transform, rounding, and all of it backwards.

What the format leaves to the encoder follows libjpeg, which Pillow uses: 4:2:0 chroma, edges repeated to full blocks,
smooth upsampling. The tables are read from a file that Pillow wrote. Source: ITU-T T.81; JFIF 1.02.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 8
LEVELS = 255.0
MIDDLE = 128.0

Rounding = Callable[["Tensor", "Tensor"], "Tensor"]
"""Maps coefficients in steps, and the width of a step in the units of images, to coefficients in steps."""


def compressed(x: Tensor, quality: int, rounding: Rounding) -> Tensor:
    """Return images ``[N, C, H, W]`` in [0, 1], encoded and decoded with ``rounding`` in place of the rounding of
    coefficients; three channels are a colour image, any other number are grey planes. Nothing is clipped."""
    brightness, chroma = (table.to(x) for table in quantisation_tables(quality))
    if x.shape[1] != 3:
        return _planes(x * LEVELS - MIDDLE, brightness, rounding).add(MIDDLE) / LEVELS
    transform = _colour_transform().to(x)
    parts = torch.einsum("ij,njhw->nihw", transform, x * LEVELS)
    height, width = x.shape[2:]
    bright = _planes(parts[:, :1] - MIDDLE, brightness, rounding) + MIDDLE
    halved = functional.avg_pool2d(functional.pad(parts[:, 1:], (0, width % 2, 0, height % 2), mode="replicate"), 2)
    colour = functional.interpolate(_planes(halved, chroma, rounding), scale_factor=2.0, mode="bilinear")
    parts = torch.cat([bright, colour[:, :, :height, :width]], dim=1)
    return torch.einsum("ij,njhw->nihw", torch.linalg.inv(transform), parts) / LEVELS


@functools.cache
def quantisation_tables(quality: int) -> tuple[Tensor, Tensor]:
    """Return the steps ``[8, 8]`` to which Pillow rounds coefficients at this quality: of brightness and of chroma."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (BLOCK, BLOCK)).save(file, format="jpeg", quality=quality)
    tables = Image.open(file).quantization  # type: ignore[attr-defined]
    brightness, chroma = (torch.tensor(tables[place], dtype=torch.float64).view(BLOCK, BLOCK) for place in (0, 1))
    return brightness, chroma


def _planes(planes: Tensor, table: Tensor, rounding: Rounding) -> Tensor:
    """Return planes ``[N, C, H, W]`` with the coefficients of each block rounded to whole steps of ``table``."""
    cosines = _cosines().to(planes)
    count, channels, height, width = planes.shape
    padded = functional.pad(planes, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    grid = (count, channels, padded.shape[2] // BLOCK, BLOCK, padded.shape[3] // BLOCK, BLOCK)
    blocks = padded.reshape(grid).transpose(3, 4)
    coefficients = cosines @ blocks @ cosines.T
    blocks = cosines.T @ (rounding(coefficients / table, table / LEVELS) * table) @ cosines
    return blocks.transpose(3, 4).reshape(padded.shape)[:, :, :height, :width]


def _cosines() -> Tensor:
    """Return the orthonormal cosine transform ``[8, 8]``, one row for each frequency."""
    place = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(math.pi / BLOCK * (place + 0.5) * place[:, None])
    waves[0] /= math.sqrt(2.0)
    return waves / math.sqrt(BLOCK / 2)


def _colour_transform() -> Tensor:
    """Return the matrix from red, green and blue to brightness and two centred differences of colour (JFIF 1.02)."""
    red, green, blue = 0.299, 0.587, 0.114
    return torch.tensor(
        [
            [red, green, blue],
            [-0.5 * red / (1 - blue), -0.5 * green / (1 - blue), 0.5],
            [0.5, -0.5 * green / (1 - red), -0.5 * blue / (1 - red)],
        ],
        dtype=torch.float64,
    )
