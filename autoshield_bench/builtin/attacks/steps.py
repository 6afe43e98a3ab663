"""The direction of steepest ascent under each norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoshield_bench.contracts import Norm

if TYPE_CHECKING:
    from torch import Tensor


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the step of length one that raises a linear loss most: the sign for ``linf``, the unit vector for ``l2``.

    An image whose gradient is zero stays where it is.
    """
    if norm == "linf":
        signs: Tensor = gradient.sign()
        return signs
    # Divided by the largest value first, so that the length of a tiny gradient does not underflow in float32.
    shape = (-1, *[1] * (gradient.dim() - 1))
    largest = gradient.flatten(1).abs().amax(1).view(shape)
    scaled = gradient / largest.where(largest > 0, largest.new_ones(()))
    lengths = scaled.flatten(1).norm(dim=1).view(shape)
    unit: Tensor = scaled / lengths.where(lengths > 0, lengths.new_ones(()))
    return unit
