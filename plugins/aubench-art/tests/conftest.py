"""Images to test on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional


def smooth_images(channels: int, *, count: int = 6, height: int = 20, width: int = 13) -> Tensor:
    """Return images with soft gradients, and with areas of exactly 0 and exactly 1 as real ones have them."""
    coarse = torch.rand((count, channels, 6, 5), generator=torch.Generator().manual_seed(channels))
    return functional.interpolate(coarse * 1.8 - 0.4, size=(height, width), mode="bilinear").clamp(0, 1)


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def images(request: pytest.FixtureRequest) -> Tensor:
    """Return six images of 20 x 13 pixels: not square, and no multiple of a JPEG block."""
    return smooth_images(request.param)
