"""AutoAttack, as torchattacks has it, with the paper's number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Attack, AttackRequest

from aubench_torchattacks.library import NORMS, called, drawn_seed, require_classes, verified
from aubench_torchattacks.parameters import at_least, one_of
from aubench_torchattacks.square import START_SIZE, require_room
from aubench_torchattacks.standing import Standing, of_apgd

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """APGD on the cross-entropy, targeted APGD, targeted FAB and Square in turn, each on the images that still stand.

    The library runs 10 steps of APGD and FAB where the paper takes 100; here it is 100 unless a suite says otherwise.
    Source: Croce and Hein 2020, arXiv:2003.01690.
    """

    version: str = "standard"
    """``standard``; ``plus``, which adds APGD on the DLR loss, untargeted FAB and restarts; or ``rand`` for randomised
    defenses: APGD on both losses, each gradient a mean over 20."""

    steps: int = 100
    """Steps of each APGD and FAB."""

    queries: int = 5000
    """Squares that Square tries."""

    def __post_init__(self) -> None:
        one_of("standard", "plus", "rand", version=self.version)
        at_least(1, steps=self.steps, queries=self.queries)

    def run(self, request: AttackRequest) -> Tensor:
        """Return misclassified points where there are some, elsewhere the first APGD's points of highest loss."""
        if not len(request.images):
            return request.images.clone()
        import torchattacks
        from autoshield_bench.target_module import TargetModule

        if self.version == "rand":
            require_classes(request, 3, "the DLR loss of torchattacks.AutoAttack 'rand'")
        else:
            require_classes(request, 4, f"the targeted DLR loss of torchattacks.AutoAttack {self.version!r}")
            require_room(request, START_SIZE)
        # FAB starts on images, or near them, and walks out of the ball.
        network, standing = TargetModule(request, roams=True), Standing(request.images)
        attack = torchattacks.AutoAttack(
            network,
            norm=NORMS[request.threat.norm],
            eps=request.threat.eps,
            version=self.version,
            n_classes=request.target.classes,
            seed=drawn_seed(),
        )
        parts = attack._autoattack.attacks
        for part in parts:
            if isinstance(part, torchattacks.Square):
                part.n_queries = self.queries
            else:
                part.steps = self.steps
        standing.watch(parts[0], network, of_apgd)
        points = standing.instead_of_clean(called(attack, request))
        return verified(points, request, "torchattacks.AutoAttack")
