"""Images to test on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def images(request: pytest.FixtureRequest) -> Tensor:
    """Return 24 images of 20 x 13 pixels, not square and no multiple of a JPEG block.

    They have soft gradients, and areas of exactly 0 and exactly 1 as real ones have them.
    """
    coarse = torch.rand((24, request.param, 6, 5), generator=torch.Generator().manual_seed(request.param))
    return functional.interpolate(coarse * 1.8 - 0.4, size=(20, 13), mode="bilinear").clamp(0, 1)
