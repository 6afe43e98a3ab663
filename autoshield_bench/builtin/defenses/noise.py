"""Noise for the training of denoisers: no kind of it looks at a classifier or at an attack."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

NoiseKind = Literal["smooth-sign", "sign", "uniform", "gaussian"]

CELLS = (2.8, 4.0, 5.6)
"""Sizes, in pixels, of the cells of the random field under ``smooth-sign``; one is drawn per image."""


def corrupt(images: Tensor, kind: NoiseKind, low: float, high: float, generator: Generator) -> Tensor:
    """Return noisy copies ``[N, C, H, W]``, clipped to [0, 1]; each image draws its amplitude from [low, high].

    ``gaussian`` takes the amplitude as the standard deviation, ``uniform`` as the half-width; ``sign`` adds plus or
    minus the amplitude per value, and ``smooth-sign`` adds the sign of a smooth random field, whose patches are a few
    pixels wide, times the amplitude.
    """
    amplitude = low + (high - low) * torch.rand((len(images), 1, 1, 1), generator=generator)
    if kind == "gaussian":
        pattern = torch.randn(images.shape, generator=generator)
    elif kind == "uniform":
        pattern = torch.rand(images.shape, generator=generator) * 2 - 1
    elif kind == "sign":
        pattern = torch.rand(images.shape, generator=generator).sub_(0.5).sign_()
    else:
        pattern = _smooth_signs(images, generator)
    return (images + amplitude * pattern).clamp_(0.0, 1.0)


def _smooth_signs(images: Tensor, generator: Generator) -> Tensor:
    count, channels, height, width = images.shape
    pattern = torch.empty(images.shape)
    chosen = torch.randint(len(CELLS), (count,), generator=generator)
    for position, cell in enumerate(CELLS):
        rows = (chosen == position).nonzero()[:, 0]
        grid = (len(rows), channels, max(round(height / cell), 1), max(round(width / cell), 1))
        field = torch.randn(grid, generator=generator)
        if len(rows):
            fine = functional.interpolate(field, size=(height, width), mode="bicubic")
            pattern[rows] = torch.where(fine > 0, 1.0, -1.0)
    return pattern
