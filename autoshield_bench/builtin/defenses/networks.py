"""The networks behind the autoencoders. Images in [0, 1] go in, images in [0, 1] of the same size come out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench.builtin.layers import InputConvolution, OutputConvolution

SHRINKS_BY = 4
"""Both halves of the height and width are halved twice, so sizes are padded to a multiple of this."""


class PurifyingNetwork(nn.Module):
    """A network from images to images, for any height and width."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body = body
        self.channels = channels

    def logits(self, x: Tensor) -> Tensor:
        """Return the purified images before the sigmoid: what binary cross-entropy is taken on."""
        height, width = x.shape[-2:]
        padding = (0, -width % SHRINKS_BY, 0, -height % SHRINKS_BY)
        padded = functional.pad(x, padding, mode="replicate") if any(padding) else x
        result: Tensor = self.body(padded)[..., :height, :width]
        return result

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).sigmoid()


def conv(channels: int, width: int) -> nn.Module:
    """Return two strided convolutions, one convolution, and two transposed ones."""
    return nn.Sequential(
        InputConvolution(channels, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        nn.ReLU(),
        OutputConvolution(width, channels, 4, stride=2, padding=1),
    )


def bottleneck(channels: int, width: int) -> nn.Module:
    """Return an autoencoder with a narrow code, a quarter of the inner width, behind 5x5 kernels."""
    code = max(width // 2, 1)
    return nn.Sequential(
        InputConvolution(channels, width, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, code, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(code, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        nn.ReLU(),
        OutputConvolution(width, channels, 4, stride=2, padding=1),
    )


class UNet(nn.Module):
    """``conv`` with a connection from the first to the last layer at half size (Ronneberger et al. 2015, 1505.04597).

    There is none at full size: it would let noise pass by the code.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(InputConvolution(channels, width, 3, stride=2, padding=1), nn.ReLU())
        self.inner = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ReLU(),
        )
        self.last = OutputConvolution(2 * width, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        outer = self.first(x)
        result: Tensor = self.last(torch.cat([self.inner(outer), outer], 1))
        return result


def build(architecture: str, channels: int, width: int) -> PurifyingNetwork:
    """Return the untrained network of an architecture."""
    makers = {"conv": conv, "unet": UNet, "bottleneck": bottleneck}
    return PurifyingNetwork(makers[architecture](channels, width), channels)
