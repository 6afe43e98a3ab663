"""The points of images that a library did not fool, and for which it hands back the clean image.

Gray-box examples are scored on other pipelines than they were crafted on. So where APGD, Square and their like give up,
the adapter returns the library's own point of highest loss in place of the clean image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoshield_bench.target_module import TargetModule
    from torch import Tensor

Found = Callable[[Any], "tuple[Tensor, Tensor | None]"]
"""Takes what a single run of the library returned; gives its points of highest loss, and the losses where it has
them."""


class Standing:
    """The point of highest loss of each image, over the single runs of the attacks that are watched."""

    def __init__(self, images: Tensor) -> None:
        import torch

        self._clean = images
        self._points = images.clone()
        self._losses = torch.full((len(images),), -torch.inf, device=images.device)

    def watch(self, attack: Any, network: TargetModule, found: Found) -> None:
        """Look at what each single run of an attack finds, for whichever images it is run."""
        run = attack.attack_single_run

        def watched(x: Tensor, y: Tensor) -> Any:
            rows = network.rows(x)
            returned = run(x, y)
            self._keep(rows.to(x.device), *found(returned))
            return returned

        attack.attack_single_run = watched

    def instead_of_clean(self, points: Tensor) -> Tensor:
        """Return the points, and the one of highest loss wherever a point is the clean image."""
        import torch

        untouched = (points == self._clean).flatten(1).all(1)
        return torch.where(untouched.view(-1, 1, 1, 1), self._points, points)

    def _keep(self, rows: Tensor, points: Tensor, losses: Tensor | None) -> None:
        import torch

        losses = torch.zeros(len(rows), device=points.device) if losses is None else losses.detach().float()
        better = losses >= self._losses[rows]
        self._points[rows[better]] = points.detach()[better]
        self._losses[rows[better]] = losses[better]


def of_apgd(returned: Any) -> tuple[Tensor, Tensor | None]:
    """Read what ``attack_single_run`` of APGD or APGDT returned: points of highest loss, and the losses."""
    points, _accuracy, losses, _adversarial = returned
    return points, losses


def of_square(returned: Any) -> tuple[Tensor, Tensor | None]:
    """Read what ``attack_single_run`` of Square returned: points of highest loss; of restarts the last one counts."""
    _queries, points = returned
    return points, None
