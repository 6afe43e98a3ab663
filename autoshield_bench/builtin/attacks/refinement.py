"""Random search and gradient ascent in turn, each from where the other ended; and more of it where it may pay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.balls import Ball
from autoshield_bench.builtin.attacks.apgd import APGD, ascend, wrong_classes
from autoshield_bench.builtin.attacks.best import Best
from autoshield_bench.builtin.attacks.losses import margin, targeted_margin
from autoshield_bench.builtin.attacks.narrowing import narrowed
from autoshield_bench.builtin.attacks.objectives import raising
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


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One more refinement for images that may still fall: from their best point, or from one of another class.

    A refinement settles after two rounds: more of the same break next to nothing, however many. What still falls is
    close to falling by then, and mostly in the valley of another class (measured: ``benchmarks/README.md``).
    """

    refinement: Refinement
    near: float = math.inf
    """An image takes part when the margin that is missing is at most this share of what has been gained so far."""

    towards: int | None = None
    """Starts at a point that gradients find towards a wrong class: this one in the order of how likely they are at the
    best point; images that have fallen need none. None: starts at the best point; then images take part, too, of which
    nothing gained much of a margin, since that says nothing about how near they are."""

    steps: int = 30
    """Gradient steps towards a class, from a random start."""

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image that takes part."""
        return self.refinement.gradient_steps() + (0 if self.towards is None else self.steps)

    def forward_passes(self) -> int:
        """Return the queries per image that takes part."""
        return self.refinement.forward_passes()

    def takes(self, clean: Tensor, reached: Tensor) -> Tensor:
        """Return which images take part, by their margins without an attack and by the largest found so far."""
        gained = reached - clean
        near = -reached <= self.near * gained
        return near | (gained < _UNMOVED * -reached) if self.towards is None else near & (reached <= 0)

    def run_from(self, request: AttackRequest, start: Tensor) -> Tensor:
        """Return the points found, one per image of the request, whose best points are ``start``."""
        return self.refinement.run_from(request, start if self.towards is None else self._towards(request, start))

    def _towards(self, request: AttackRequest, start: Tensor) -> Tensor:
        import torch

        with torch.no_grad():
            classes = wrong_classes(request.target.logits(start), request.labels)
        ball, best = Ball(request.images, request.threat), Best(request.images, request.labels)
        # Of two classes there is one to go towards.
        wanted = classes[:, min(self.towards or 0, classes.shape[1] - 1)]
        objective = raising(targeted_margin(request.labels, wanted))
        ascend(
            lambda x: objective.ask(request.target, x),
            ball,
            ball.random_start(request.rng, "start"),
            self.steps,
            lambda x, here: best.keep(x, here.loss, here.logits),
        )
        return best.x


_UNMOVED = 0.25
"""An attack that gained less than this share of the margin that is missing has not found a direction."""
