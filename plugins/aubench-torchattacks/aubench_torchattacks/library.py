"""The way into torchattacks and back: what every adapter asks of the library, and what it verifies of a result.

Imports torch and the library inside functions alone, so that a spec's parameters can be read without them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from autoshield_bench.balls import Ball, distance
from autoshield_bench.contracts import AttackRequest, Norm
from autoshield_bench.errors import CellError

if TYPE_CHECKING:
    from torch import Tensor

NORMS: dict[Norm, str] = {"linf": "Linf", "l2": "L2"}
"""What the library calls the norms."""

ROUNDING = 1e-5
"""Distance outside the ball, or outside [0, 1], that float32 sums of the library may cost."""


def called(attack: Any, request: AttackRequest) -> Tensor:
    """Return what a library's attack makes of the request's images, driven to its targets where it has some."""
    import torch

    if request.targets is not None:
        # The labels stay the true ones: Jitter looks at both.
        attack.set_mode_targeted_by_function(lambda _images, _labels: request.targets, quiet=True)
    with torch.enable_grad():
        points: Tensor = attack(request.images, request.labels)
    return points.detach()


def drawn_seed() -> int:
    """Return a seed from torch's global generator, which the host has seeded.

    Some attacks of the library seed themselves: from the clock, or all with the same number.
    """
    import torch

    return int(torch.randint(2**31 - 1, ()))


def part_of(request: AttackRequest, rows: Tensor) -> AttackRequest:
    """Return the request for some of its images."""
    place = rows.to(request.images.device)
    return dataclasses.replace(
        request,
        images=request.images[place],
        labels=request.labels[place],
        target=request.target.select(rows),
        rng=request.rng.select(rows),
        targets=None if request.targets is None else request.targets[place],
    )


def standing(request: AttackRequest) -> Tensor:
    """Return the rows of the images that are no example yet: classified correctly, or not as their targets."""
    found = request.target.labels(request.images)
    wanted = found == request.labels if request.targets is None else found != request.targets
    return wanted.nonzero()[:, 0].cpu()


def finite_or_clean(points: Tensor, images: Tensor) -> Tensor:
    """Return the points, and the clean image where the library returned NaN or infinity."""
    import torch

    finite = torch.isfinite(points).flatten(1).all(1)
    return torch.where(finite.view(-1, 1, 1, 1), points, images)


def verified(points: Tensor, request: AttackRequest, who: str) -> Tensor:
    """Return points of the ball as the host wants them: to the last digit inside.

    An image for which the library returned NaN or infinity stands as it was. Raises CellError, with the numbers, where
    a point lies outside the ball or outside [0, 1] by more than rounding.
    """
    if not len(points):
        return request.images.clone()
    points = finite_or_clean(points, request.images)
    away = distance(points, request.images, request.threat.norm)
    low, high = float(points.min()), float(points.max())
    outside = int((away > request.threat.eps + ROUNDING).sum())
    if outside:
        raise CellError(
            f"{who} returned {outside} of {len(points)} images outside {request.threat}, the farthest at "
            f"{float(away.max()):.9g}"
        )
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise CellError(f"{who} returned values from {low:.9g} to {high:.9g}, outside [0, 1]")
    return Ball(request.images, request.threat).project(points)


class Nearest:
    """The nearest example of each image over several runs of a minimum-norm attack; till one is found, the image."""

    def __init__(self, request: AttackRequest) -> None:
        import torch

        self._images = request.images
        self._norm = request.threat.norm
        # On the CPU: Apple's GPUs have no float64.
        self._length = torch.full((len(self._images),), torch.inf, dtype=torch.float64)
        self.points = request.images.clone()

    def keep(self, found: Tensor, given: Tensor) -> None:
        """Take the finite points that are nearer than before; a point that the library was ``given`` is no find."""
        import torch

        away = distance(found, self._images, self._norm).cpu()
        moved = (torch.isfinite(found).flatten(1).all(1) & (found != given).flatten(1).any(1)).cpu()
        nearer = moved & (away < self._length)
        self._length[nearer] = away[nearer]
        place = nearer.to(found.device)
        self.points[place] = found[place]


def require_classes(request: AttackRequest, least: int, why: str) -> None:
    """Raise CellError where the network has too few classes for an attack."""
    if request.target.classes < least:
        raise CellError(f"{why} needs at least {least} classes, and there are {request.target.classes}")
