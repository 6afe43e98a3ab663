"""Layers at the grey image's end of a network, where an attack spends a third of its time and a library does worst."""

from __future__ import annotations

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
    """Return the transposed convolution ``[N, 1, *size]`` of ``[N, channels, h, w]`` with the layer's weights."""
    assert not isinstance(layer.padding, str)
    if values.dtype == torch.bfloat16:
        return _interleaved(values, layer, size)
    rows = values.permute(0, 2, 3, 1).flatten(1, 2)
    windows = (rows @ layer.weight.flatten(1)).transpose(1, 2)
    return functional.fold(windows, size, layer.kernel_size, padding=layer.padding, stride=layer.stride)


def _interleaved(values: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d, size: tuple[int, int]) -> Tensor:
    """Return the same by one convolution, which bfloat16 hardware does five times as fast as it sums windows.

    Pixels of the image that lie ``stride`` apart see the same part of the kernel: each such class of pixels is one
    channel of an image that is ``stride`` times smaller.
    """
    axes = list(zip(layer.kernel_size, layer.stride, layer.padding, values.shape[2:], size, strict=True))
    taps, edges, counts = zip(*(_taps(*axis) for axis in axes), strict=True)  # type: ignore[arg-type]
    width = layer.kernel_size[1]
    # Behind the kernel stands a zero, for the places that no part of it reaches.
    none = layer.kernel_size[0] * width
    down, across = (torch.tensor(own, device=values.device) for own in taps)
    places = down[:, None, :, None] * width + across[None, :, None, :]
    places = torch.where((down[:, None, :, None] < 0) | (across[None, :, None, :] < 0), none, places)
    kernel = functional.pad(layer.weight.flatten(1), (0, 1))[:, places.flatten(0, 1)].transpose(0, 1)
    parts = functional.conv2d(functional.pad(values, (*edges[1], *edges[0])), kernel.to(values.dtype))
    rows, columns = layer.stride
    parts = parts.reshape(len(values), rows, columns, *counts).permute(0, 3, 1, 4, 2)
    image = parts.reshape(len(values), 1, counts[0] * rows, counts[1] * columns)
    return image[..., : size[0], : size[1]]


def _taps(kernel: int, stride: int, padding: int, had: int, size: int) -> tuple[list[list[int]], tuple[int, int], int]:
    """Return for one axis, per class of pixels, the places in the kernel that meet neighbouring values, -1 for none;
    the zeros that go before and behind the values; and the pixels of a class."""
    first, last = -((kernel - 1 - padding) // stride), (stride - 1 + padding) // stride
    places = [[own + padding - stride * away for away in range(first, last + 1)] for own in range(stride)]
    count = -(-size // stride)
    inside = [[place if 0 <= place < kernel else -1 for place in own] for own in places]
    return inside, (-first, count + last - had), count


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
        return image if layer.bias is None else image.add_(layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        weight = layer.weight.to(gradient.dtype)
        return functional.conv2d(gradient, weight, None, layer.stride, layer.padding), None
