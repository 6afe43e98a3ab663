"""The named ensemble: several attacks in a cascade, so that what is spent goes to the images that still stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.builtin.attacks.apgd import APGD
from autoshield_bench.builtin.attacks.best import Best
from autoshield_bench.builtin.attacks.losses import margin
from autoshield_bench.builtin.attacks.narrowing import narrowed
from autoshield_bench.builtin.attacks.square import Square
from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Strong(Attack):
    """APGD on the margin, on the cross-entropy and towards each wrong class, Square, and more targeted restarts.

    Each member gets the images that the ones before it left standing and treats an image as it would alone, so none of
    them is stronger, for any image, than the whole. Where images may not leave (gray-box), every member runs on all of
    them, and the point of largest margin is returned.
    Source: the cascade of Croce and Hein 2020, arXiv:2003.01690, with other members: the margin towards a class is what
    misclassification means, and restarts on it find more than FAB does for the same price.
    """

    effort: int = 1
    """Multiplies the restarts of the last member and Square's queries."""

    def __post_init__(self) -> None:
        if self.effort < 1:
            raise ParameterError("effort", f"{self.effort} is too small; give at least 1")

    def members(self, classes: int) -> Sequence[Attack]:
        """Return the attacks of the cascade, cheap ones first."""
        untargeted = [APGD(loss="margin", steps=20), APGD(loss="cross-entropy", steps=50)]
        if classes < 3:
            # With two classes there is one target, and the margin is the same with and without it.
            return [*untargeted, Square(queries=5000 * self.effort), APGD(loss="margin", steps=50, restarts=20)]
        return [
            *untargeted,
            APGD(loss="targeted-margin", steps=30),
            *([APGD(loss="targeted-dlr", steps=30)] if classes > 3 else []),
            Square(queries=5000 * self.effort),
            APGD(loss="targeted-margin", steps=50, restarts=3 * self.effort),
        ]

    def first_look(self) -> Attack:
        """Return the cascade without its dearest members: queries, which ask the same whatever the gradient, and
        restarts."""
        return _FirstLook(effort=self.effort)

    def gradient_steps(self) -> int:
        """Return the gradient evaluations of an image that nothing breaks, in a problem of ten classes."""
        return sum(member.gradient_steps() or 0 for member in self.members(10))

    def run(self, request: AttackRequest) -> Tensor:
        """Return the point of largest margin that any member found."""
        import torch

        best = Best(request.images, request.labels)
        if not len(request.images):
            return best.x
        alive = torch.arange(len(best.x), device=best.x.device)
        for number, member in enumerate(self.members(request.target.classes)):
            part = _part(request, alive, number)
            found = member.run(part)
            with torch.no_grad():
                logits = part.target.logits(found)
            best.keep(found, margin(part.labels)(logits), logits, alive)
            if request.stop_on_success:
                alive = (~best.wrong).nonzero()[:, 0]
                if not len(alive):
                    break
        return best.x


class _FirstLook(Strong):
    def members(self, classes: int) -> Sequence[Attack]:
        return [member for member in super().members(classes) if isinstance(member, APGD) and member.restarts == 1]


def _part(request: AttackRequest, rows: Tensor, number: int) -> AttackRequest:
    """Return the request for some of its images; each member draws on its own."""
    part = narrowed(request, rows)
    return dataclasses.replace(part, rng=part.rng.child("member", number))
