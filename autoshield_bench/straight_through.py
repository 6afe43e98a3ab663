"""Forward one value, backward another: for the host's BPDA and for purifiers that would otherwise hide a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(value: Tensor, gradient_of: Tensor) -> Tensor:
    """Return ``value`` exactly as it is, with the gradient of ``gradient_of``; both have the same shape.

    Source: Athalye et al. 2018, arXiv:1802.00420, section 4.1 (BPDA).
    """
    result: Tensor = _StraightThrough.apply(gradient_of, value)
    return result


def clip_to_range(x: Tensor) -> Tensor:
    """Return ``x`` clipped to [0, 1], with the gradient of the identity.

    For purifiers whose output may leave [0, 1] by a rounding error. In recent releases ``torch.clamp`` has no gradient
    at the ends of its range, and images have whole areas of exactly 0 or 1: a defense that ends in it hides those
    pixels from a white-box attack, and looks stronger than it is.
    """
    return straight_through(x.detach().clamp(0.0, 1.0), x)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient_of: Tensor, value: Tensor) -> Tensor:  # noqa: ARG004
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradients[0], None
