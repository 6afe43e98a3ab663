"""Random search and gradient ascent in turn, each from where the other ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.builtin.attacks.apgd import APGD
from autoshield_bench.builtin.attacks.best import Best
from autoshield_bench.builtin.attacks.losses import margin
from autoshield_bench.builtin.attacks.narrowing import narrowed
from autoshield_bench.builtin.attacks.square import Square
from autoshield_bench.contracts import AttackRequest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Goes on from the best points of other attacks: squares are redrawn at random, then the margin is climbed.

    Gradients end in a local optimum that a square leaves, and squares end where single pixels no longer pay, where a
    few gradient steps go on: in turn they reach what neither reaches alone for the same price.
    """

    rounds: int
    square: Square
    climb: APGD

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image."""
        return self.rounds * self.climb.gradient_steps()

    def forward_passes(self) -> int:
        """Return the queries per image."""
        return self.rounds * self.square.forward_passes()

    def run_from(self, request: AttackRequest, start: Tensor) -> Tensor:
        """Return points of the same or a larger margin than those ``start`` holds, one per image of the request."""
        import torch

        best = Best(start, request.labels)
        for number in range(self.rounds):
            for name, go_on in (("square", self.square.run_from), ("climb", self.climb.run_from)):
                rows = torch.arange(len(start), device=start.device)
                if request.stop_on_success:
                    rows = rows[~best.wrong]
                if not len(rows):
                    return best.x
                part = narrowed(request, rows, name, number)
                found = go_on(part, best.x[rows])
                with torch.no_grad():
                    logits = part.target.logits(found)
                best.keep(found, margin(part.labels)(logits), logits, rows)
        return best.x
