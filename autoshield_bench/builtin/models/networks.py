"""The networks behind the built-in classifiers. Images in [0, 1] go in, logits come out."""

from __future__ import annotations

from torch import Tensor, nn

from autoshield_bench.builtin.layers import InputConvolution


def small_cnn(channels: int, height: int, width: int, classes: int, features: int) -> nn.Sequential:
    """Return two convolutions and two fully connected layers; ``features`` is the width of the first convolution."""
    rows, columns = (height + 1) // 2 // 2, (width + 1) // 2 // 2
    return nn.Sequential(
        InputConvolution(channels, features, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(features, 2 * features, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(2 * features * rows * columns, 128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, classes),
    )


def deep_cnn(channels: int, classes: int, features: int) -> nn.Sequential:
    """Return a residual network: strided stem, block, strided convolution, block, pooling, linear layer."""
    return nn.Sequential(
        *_convolution(channels, features, stride=2),
        _ResidualBlock(features),
        *_convolution(features, 2 * features, stride=2),
        _ResidualBlock(2 * features),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * features, classes),
    )


def _convolution(channels: int, features: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels, features, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(features),
        nn.ReLU(),
    )


class _ResidualBlock(nn.Module):
    """Basic block (He et al. 2016, arXiv:1512.03385, figure 2)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(features, features),
            nn.Conv2d(features, features, 3, padding=1, bias=False),
            nn.BatchNorm2d(features),
        )
        self.rectify = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.rectify(x + self.body(x))
        return result
