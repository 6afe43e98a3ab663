"""An autoencoder that scores how far an image lies from what it was trained to give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autoshield_bench.builtin.defenses.autoencoder import Autoencoder
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

    from autoshield_bench.seeding import ImageRandom

_LEAST_SQUARE = 1e-12
"""Added under the root, whose slope at zero is infinite; far below the square of one step of an 8-bit image."""


@dataclass(kw_only=True)
class AutoencoderDetector(Autoencoder):
    """Detects by how much reconstruction changes an image, and purifies by it as well; trained as ``autoencoder`` is.

    Every score is differentiable, so that an attack may evade the detector and the classifier at once. MagNet trains on
    Gaussian noise (``noise = "gaussian"``, ``noise_level = [0.1, 0.1]``). Source: Meng and Chen 2017, arXiv:1705.09064:
    detection in sections 4.2.1 (reconstruction error) and 4.2.2 (divergence), purification in section 4.3.
    """

    score: Literal["reconstruction-l1", "reconstruction-l2", "divergence"] = "reconstruction-l1"
    """``reconstruction-l1``: mean absolute error of the reconstruction; ``reconstruction-l2``: its root mean square
    error; ``divergence``: Jensen-Shannon divergence, in nats, of the classifier's outputs before and after it."""

    temperature: float = 10.0
    """What logits are divided by before the softmax of ``divergence``: the higher, the finer it tells confident
    outputs apart."""

    purifies: bool = True
    """Whether the classifier gets the reconstruction; else it gets the image itself, and the stage only scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise ParameterError("temperature", f"{self.temperature:g} is not positive")

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the reconstruction, or the image as it is."""
        return self.reconstruct(x) if self.purifies else x

    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        """Return the score per image ``[N]``, at least 0 and differentiable with respect to ``x``."""
        other = self.reconstruct(x)
        if self.score == "divergence":
            return divergence(classify(x) / self.temperature, classify(other) / self.temperature)
        error = (x - other).flatten(1)
        if self.score == "reconstruction-l1":
            return error.abs().mean(1)
        return (error.square().mean(1) + _LEAST_SQUARE).sqrt()


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence, in nats ``[N]``, of the softmax of logits ``[N, classes]``.

    From 0 to log 2. Source: Lin 1991, doi:10.1109/18.61115, equation 4.1 with equal weights.
    """
    import math

    import torch
    from torch.nn import functional

    # Differences of nearly equal logarithms: in float32 the rounding is as large as a small divergence.
    logs = [functional.log_softmax(logits.double(), dim=1) for logits in (first, second)]
    middle = torch.logaddexp(*logs) - math.log(2.0)
    halves = [(log.exp() * (log - middle)).sum(1) / 2 for log in logs]
    return (halves[0] + halves[1]).to(first.dtype)
