"""The named ensemble: several attacks in a cascade, so that what is spent goes to the images that still stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.builtin.attacks.apgd import APGD
from autoshield_bench.builtin.attacks.best import Best
from autoshield_bench.builtin.attacks.losses import margin
from autoshield_bench.builtin.attacks.narrowing import narrowed
from autoshield_bench.builtin.attacks.refinement import Attempt, Refinement
from autoshield_bench.builtin.attacks.square import REFINING_SHARE, Square
from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Strong(Attack):
    """APGD on margin, cross-entropy and towards each wrong class; then Square and APGD in turn from the points found.

    Each member gets the images that the ones before it left standing and treats an image as it would alone, so none of
    them is stronger, for any image, than the whole. What follows goes on from the best points they found, and spends
    most on the images that are nearest to falling. Where images may not leave (gray-box), every member runs on all of
    them, and the point of largest margin is returned.
    Source: the cascade of Croce and Hein 2020, arXiv:2003.01690, with other members: the margin towards a class is what
    misclassification means, and for the price of FAB and of a search from scratch, one that goes on from the points
    already found and climbs in between finds more (``benchmarks/README.md``).
    """

    effort: int = 1
    """Multiplies what is tried with images that are near to falling."""

    def __post_init__(self) -> None:
        if self.effort < 1:
            raise ParameterError("effort", f"{self.effort} is too small; give at least 1")

    def members(self, classes: int) -> Sequence[APGD]:
        """Return the attacks that start afresh, cheap ones first."""
        untargeted = [APGD(loss="margin", steps=20), APGD(loss="cross-entropy", steps=50)]
        if classes < 3:
            # With two classes there is one target, and the margin is the same with and without it.
            return [*untargeted, APGD(loss="margin", steps=50, restarts=5)]
        return [
            *untargeted,
            APGD(loss="targeted-margin", steps=30),
            *([APGD(loss="targeted-dlr", steps=30)] if classes > 3 else []),
        ]

    def attempts(self) -> Sequence[Attempt]:
        """Return what goes on from the best points that the members found."""
        return [
            _attempt(),
            *self.effort * [_attempt(near=0.25, towards=1), _attempt(near=0.1), _attempt(near=0.1, towards=2)],
        ]

    def first_look(self) -> Attack:
        """Return the cascade without its dearest part, most of which asks the same whatever the gradient."""
        return _FirstLook(effort=self.effort)

    def gradient_steps(self) -> int:
        """Return the gradient evaluations of an image that nearly falls, in a problem of ten classes."""
        parts: list[APGD | Attempt] = [*self.members(10), *self.attempts()]
        return sum(part.gradient_steps() for part in parts)

    def forward_passes(self) -> int:
        """Return the queries of an image that nearly falls."""
        return sum(attempt.forward_passes() for attempt in self.attempts())

    def run(self, request: AttackRequest) -> Tensor:
        """Return the point of largest margin that any member found."""
        import torch

        best = Best(request.images, request.labels)
        if not len(request.images):
            return best.x
        with torch.no_grad():
            clean = margin(request.labels)(request.target.logits(request.images))
        parts: list[APGD | Attempt] = [*self.members(request.target.classes), *self.attempts()]
        for number, attack in enumerate(parts):
            stay = ~best.wrong if request.stop_on_success else torch.ones_like(best.wrong)
            rows = (stay & attack.takes(clean, best.loss) if isinstance(attack, Attempt) else stay).nonzero()[:, 0]
            if not len(rows):
                continue
            part = narrowed(request, rows, "member", number)
            found = attack.run_from(part, best.x[rows]) if isinstance(attack, Attempt) else attack.run(part)
            with torch.no_grad():
                logits = part.target.logits(found)
            best.keep(found, margin(part.labels)(logits), logits, rows)
        return best.x


class _FirstLook(Strong):
    def attempts(self) -> Sequence[Attempt]:
        return []


def _attempt(near: float = math.inf, towards: int | None = None) -> Attempt:
    square = Square(queries=1950, initial_share=REFINING_SHARE)
    refinement = Refinement(rounds=2, square=square, climb=APGD(loss="margin", steps=50))
    return Attempt(refinement=refinement, near=near, towards=towards)
