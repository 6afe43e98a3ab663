"""FAB, as torchattacks has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoshield_bench.contracts import Attack, AttackRequest, Norm
from autoshield_bench.errors import ParameterError

from aubench_torchattacks.library import NORMS, Nearest, part_of, standing
from aubench_torchattacks.parameters import at_least, between, positive

if TYPE_CHECKING:
    from torch import Tensor

START_RADIUS: dict[Norm, float] = {"linf": 0.3, "l2": 1.0}
"""What the library takes for eps where it is given none."""


@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Projections onto the boundary of the linearised network, drawn towards the image; the nearest point is returned.

    A single run of the library looks for the nearest point, wherever it lies. What the library wraps around it throws
    points beyond an eps away and tries an image again only if there was none; here every restart, and every class with
    ``multi_targeted``, is tried on every image, and the nearest point of all is kept.
    Source: Croce and Hein 2020, arXiv:1907.02044.
    """

    steps: int = 10
    """Steps per run (the paper takes 100)."""

    restarts: int = 1
    """Runs per image, from the image itself and then from random points."""

    multi_targeted: bool = False
    """One run per wrong class, with one gradient in each step, instead of one run with a gradient per class."""

    start_radius: float | None = None
    """Random points lie within half of it (the library's ``eps``); 0.3 for linf and 1.0 for l2 where none is given."""

    alpha_max: float = 0.1
    """Largest weight of the pull towards the image."""

    eta: float = 1.05
    """Length of a step, in units of the way to the boundary."""

    beta: float = 0.9
    """Where the next step starts between the image and the last misclassified point."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, restarts=self.restarts)
        positive(start_radius=self.start_radius)
        between(0.0, 1.0, alpha_max=self.alpha_max, beta=self.beta)
        if not 1 <= self.eta < float("inf"):
            raise ParameterError("eta", f"{self.eta:g} is no finite number of at least 1")

    def run(self, request: AttackRequest) -> Tensor:
        """Return the nearest misclassified point found of each image, and the clean image where there is none."""
        points = request.images.clone()
        if not len(points):
            return points
        rows = standing(request)
        if len(rows):
            points[rows] = self._nearest(part_of(request, rows))
        return points

    def _nearest(self, request: AttackRequest) -> Tensor:
        import torch

        attack, nearest = self._attack(request), Nearest(request)
        # From 2, the second likeliest class, as the library counts them.
        classes = range(2, request.target.classes + 1) if self.multi_targeted else (None,)
        run = attack.attack_single_run_targeted if self.multi_targeted else attack.attack_single_run
        for attack.target_class in classes:
            for restart in range(self.restarts):
                with torch.no_grad():
                    # Without labels it takes the predicted ones, which are those of the request: no image is dropped.
                    found = run(request.images, None, use_rand_start=restart > 0)
                nearest.keep(found.detach(), given=request.images)
        return nearest.points

    def _attack(self, request: AttackRequest) -> Any:
        import torchattacks
        from autoshield_bench.target_module import TargetModule

        return torchattacks.FAB(
            TargetModule(request),
            norm=NORMS[request.threat.norm],
            eps=START_RADIUS[request.threat.norm] if self.start_radius is None else self.start_radius,
            steps=self.steps,
            alpha_max=self.alpha_max,
            eta=self.eta,
            beta=self.beta,
            multi_targeted=self.multi_targeted,
            n_classes=request.target.classes,
        )
