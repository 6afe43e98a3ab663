"""Between the host's tensors and ART's arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy
    from torch import Tensor


def as_array(x: Tensor) -> numpy.ndarray[Any, Any]:
    """Return a batch as an array on the CPU, without history; on the CPU both share memory, so do not write to it."""
    array: numpy.ndarray[Any, Any] = x.detach().cpu().numpy()
    return array


def as_images(array: numpy.ndarray[Any, Any], like: Tensor) -> Tensor:
    """Return what ART made of ``like`` with its dtype and on its device; some of ART's defenses return float64."""
    import numpy as np
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(like)
