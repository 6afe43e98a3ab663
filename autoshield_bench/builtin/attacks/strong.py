"""The named ensemble: several attacks in a cascade, so that what is spent goes to the images that still stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.builtin.attacks.apgd import APGD
from autoshield_bench.builtin.attacks.best import Best
from autoshield_bench.builtin.attacks.losses import margin
from autoshield_bench.builtin.attacks.narrowing import narrowed
from autoshield_bench.builtin.attacks.refinement import Refinement
from autoshield_bench.builtin.attacks.square import REFINING_SHARE, Square
from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Strong(Attack):
    """APGD on margin, cross-entropy and towards each wrong class; then Square and APGD in turn from the best point.

    Each member gets the images that the ones before it left standing and treats an image as it would alone, so none of
    them is stronger, for any image, than the whole; the last goes on from the best points that the others found. Where
    images may not leave (gray-box), every member runs on all of them, and the point of largest margin is returned.
    Source: the cascade of Croce and Hein 2020, arXiv:2003.01690, with other members: the margin towards a class is what
    misclassification means, and for the price of FAB and of a search from scratch, one that goes on from the points
    already found and climbs in between finds more (``benchmarks/README.md``).
    """

    effort: int = 1
    """Multiplies the rounds of the last member."""

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

    def refinement(self) -> Refinement | None:
        """Return what goes on from the best points that the members found."""
        square = Square(queries=1950, initial_share=REFINING_SHARE)
        return Refinement(rounds=4 * self.effort, square=square, climb=APGD(loss="margin", steps=50))

    def first_look(self) -> Attack:
        """Return the cascade without its dearest part, most of which asks the same whatever the gradient."""
        return _FirstLook(effort=self.effort)

    def gradient_steps(self) -> int:
        """Return the gradient evaluations of an image that nothing breaks, in a problem of ten classes."""
        refinement = self.refinement()
        members = sum(member.gradient_steps() for member in self.members(10))
        return members + (refinement.gradient_steps() if refinement else 0)

    def forward_passes(self) -> int:
        """Return the queries of an image that nothing breaks."""
        refinement = self.refinement()
        return refinement.forward_passes() if refinement else 0

    def run(self, request: AttackRequest) -> Tensor:
        """Return the point of largest margin that any member found."""
        import torch

        best = Best(request.images, request.labels)
        if not len(request.images):
            return best.x
        alive = torch.arange(len(best.x), device=best.x.device)
        for number, attack in enumerate((*self.members(request.target.classes), self.refinement())):
            if attack is None:
                break
            part = narrowed(request, alive, "member", number)
            found = attack.run_from(part, best.x[alive]) if isinstance(attack, Refinement) else attack.run(part)
            with torch.no_grad():
                logits = part.target.logits(found)
            best.keep(found, margin(part.labels)(logits), logits, alive)
            if request.stop_on_success:
                alive = (~best.wrong).nonzero()[:, 0]
                if not len(alive):
                    break
        return best.x


class _FirstLook(Strong):
    def refinement(self) -> Refinement | None:
        return None
