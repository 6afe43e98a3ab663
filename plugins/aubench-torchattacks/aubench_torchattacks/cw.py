"""The Carlini-Wagner attack, as torchattacks has it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

from aubench_torchattacks.library import Nearest, called, part_of, standing
from aubench_torchattacks.parameters import at_least, positive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CW(Attack):
    """Adam on the squared distance plus a constant times the margin, under a change of variables to tanh.

    The library takes one constant and has no search for it: it is run once for each of ``constants``, and the nearest
    point of all is returned. Two more things that it needs are described at ``squeeze`` and in ``nonnegative.py``.
    Source: Carlini and Wagner 2017, arXiv:1608.04644.
    """

    constants: tuple[float, ...] = (0.1, 1.0, 10.0)
    """Weights of the margin beside the squared distance (the library's ``c``), one run for each."""

    confidence: float = 0.0
    """Margin in logits at which the loss is content (the library's ``kappa``)."""

    steps: int = 200
    """Steps per constant, at most: the library stops when the loss of the whole batch has not fallen. Its own 50 steps
    of 0.01 cannot take a pixel from black to white."""

    learning_rate: float = 0.02
    """Step size of Adam, in the space of tanh."""

    squeeze: float = 1e-3
    """The attack starts from images clamped to ``[squeeze, 1 - squeeze]``: at exactly 0 or 1 the tanh has no slope, and
    the library never moves such a pixel. Distances are still measured from the images themselves."""

    def __post_init__(self) -> None:
        if not self.constants:
            raise ParameterError("constants", "there is none; give at least one")
        for constant in self.constants:
            positive(constants=constant)
        at_least(1, steps=self.steps)
        positive(learning_rate=self.learning_rate)
        if not self.confidence >= 0:
            raise ParameterError("confidence", f"{self.confidence:g} is negative")
        if not 0 <= self.squeeze < 0.5:
            raise ParameterError("squeeze", f"{self.squeeze:g} is not at least 0 and below 0.5")

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image, at most."""
        return self.steps * len(self.constants)

    def run(self, request: AttackRequest) -> Tensor:
        """Return the nearest point found of each image, and the clean image where there is none."""
        points = request.images.clone()
        if not len(points):
            return points
        rows = standing(request)
        if len(rows):
            points[rows] = self._nearest(part_of(request, rows))
        return points

    def _nearest(self, request: AttackRequest) -> Tensor:
        import torchattacks

        from aubench_torchattacks.nonnegative import NonNegative

        start = request.images.clamp(self.squeeze, 1 - self.squeeze)
        network, nearest = NonNegative(request), Nearest(request)
        for constant in self.constants:
            attack = torchattacks.CW(
                network, c=constant, kappa=self.confidence, steps=self.steps, lr=self.learning_rate
            )
            # The library returns what it was given where it found nothing.
            nearest.keep(called(attack, dataclasses.replace(request, images=start)), given=start)
        return nearest.points
