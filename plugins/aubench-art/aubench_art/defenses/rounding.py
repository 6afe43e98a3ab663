"""A differentiable stand-in for rounding, for the backward pass alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

COARSE = 0.125
"""Steps of this width and more, in the units of images, are wide beside what an attack moves a value by."""

FLATTEST = 0.25
"""Slope of the coarsest staircase on its plateaus; halfway between two of them it is 2.5."""


def soft_round(x: Tensor, step: float | Tensor) -> Tensor:
    """Return a smooth rising staircase through the whole numbers and the points halfway, with a mean slope of 1.

    ``step`` is what 1 is worth in the units of images [0, 1]. BPDA with the identity (Athalye et al. 2018,
    arXiv:1802.00420) spends an L2 budget on values that no step of that length pushes over an edge. A cubic (Shin and
    Song 2017, "JPEG-resistant adversarial images") sees the edges and nothing on the whole numbers, where every value
    of an undisturbed image may lie. This is a mixture whose slope tells near from far and never vanishes; where steps
    are so fine that any attack crosses several it is the identity.
    """
    import torch

    whole = x.detach().round()
    offset = x - whole
    fineness = 1 - torch.as_tensor(step, dtype=x.dtype, device=x.device) / COARSE
    flat = FLATTEST + (1 - FLATTEST) * fineness.clamp_min(0)
    return whole + offset * (flat + 4 * (1 - flat) * offset**2)
