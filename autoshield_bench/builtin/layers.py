"""Layers at the grey image's end of a network, where an attack spends a third of its time and a library does worst."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class InputConvolution(nn.Conv2d):
    """A convolution whose gradient for a grey image is one matrix product and a sum of windows.

    The weights have to be frozen for that, so training is that of ``Conv2d``. oneDNN takes two to four times as long
    (``benchmarks/README.md``): it vectorises over the channels that it writes, of which there is one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return what ``Conv2d`` returns."""
        wanted = x.requires_grad and torch.is_grad_enabled() and not self.weight.requires_grad
        if wanted and _grey(self, self.in_channels, x):
            result: Tensor = _Convolved.apply(x, self)
            return result
        return super().forward(x)


class OutputConvolution(nn.ConvTranspose2d):
    """A transposed convolution that makes a grey image by one matrix product and a sum of windows.

    The weights have to be frozen for that, so training is that of ``ConvTranspose2d``.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return what ``ConvTranspose2d`` returns."""
        if output_size is None and not self.weight.requires_grad and _grey(self, self.out_channels, x):
            result: Tensor = _Spread.apply(x, self)
            return result
        return super().forward(x, output_size)


def _grey(layer: nn.Conv2d | nn.ConvTranspose2d, channels: int, x: Tensor) -> bool:
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return plain and channels == 1 and x.device.type == "cpu" and not isinstance(layer.padding, str)


def _windows_summed(values: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d, size: tuple[int, int]) -> Tensor:
    """Return the transposed convolution ``[N, 1, *size]`` of ``[N, channels, h, w]`` with the layer's weights.

    A matrix product gives one plane of values for each place in the kernel. Pixels of the image that lie ``stride``
    apart see the same places, so each such class of pixels is a sum of planes, shifted against each other; on a grid
    with a border of zeros a shift in two dimensions is one along memory.
    """
    axes = zip(layer.kernel_size, layer.stride, layer.padding, values.shape[2:], size, strict=True)
    down, across = (_Axis(*axis) for axis in axes)  # type: ignore[arg-type]
    grid = functional.pad(values.permute(0, 2, 3, 1), (0, 0, *across.border, *down.border))
    count, height, width, channels = grid.shape
    planes = layer.weight.flatten(1).T.to(grid.dtype) @ grid.reshape(-1, channels).T
    # Sums of bfloat16 would lose what their terms had.
    precision = torch.float32 if planes.dtype == torch.bfloat16 else planes.dtype
    classes = torch.zeros(*layer.stride, planes.shape[1], dtype=precision, device=values.device)
    for plane, ((row, lower), (column, further)) in zip(planes, itertools.product(down.taps, across.taps), strict=True):
        shift = lower * width + further
        into = classes[row, column]
        into[max(shift, 0) : len(into) + min(shift, 0)] += plane[max(-shift, 0) : len(into) - max(shift, 0)]
    parts = classes.view(*layer.stride, count, height, width)[..., down.inside, across.inside].permute(2, 3, 0, 4, 1)
    return parts.reshape(count, 1, down.pixels, across.pixels)[..., : size[0], : size[1]]


class _Axis:
    """One axis of a transposed convolution."""

    def __init__(self, kernel: int, stride: int, padding: int, had: int, size: int) -> None:
        classes = [(place - padding) % stride for place in range(kernel)]
        self.taps = [(own, (place - padding - own) // stride) for place, own in enumerate(classes)]
        """By place in the kernel: the class of pixels that sees it, and by how much its values are shifted there."""
        shifts = [shift for _own, shift in self.taps]
        count = -(-size // stride)
        before = max(0, *shifts)
        self.border = (before, max(0, count - had, *(count - shift - had for shift in shifts)))
        self.inside = slice(before, before + count)
        self.pixels = count * stride


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape[2:]
        return functional.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _windows_summed(gradient, ctx.layer, tuple(ctx.size)), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
        ctx.layer = layer
        size = [
            (had - 1) * stride - 2 * padding + kernel + extra  # type: ignore[operator]
            for had, stride, padding, kernel, extra in zip(
                x.shape[2:], layer.stride, layer.padding, layer.kernel_size, layer.output_padding, strict=True
            )
        ]
        image = _windows_summed(x, layer, (size[0], size[1]))
        return image if layer.bias is None else image + layer.bias

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        weight = layer.weight.to(gradient.dtype)
        return functional.conv2d(gradient, weight, None, layer.stride, layer.padding), None
