"""What foolbox returned, verified: inside the ball, inside [0, 1] and finite. Repairs rounding and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoshield_bench.balls import Ball, distance
from autoshield_bench.contracts import AttackRequest
from autoshield_bench.errors import CellError

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-5
"""How far float32 sums of foolbox may stray, in the units of the images."""


def in_ball(request: AttackRequest, points: Tensor) -> Tensor:
    """Return the points of a fixed-budget attack, their rounding projected away; the clean image where one is not
    finite. Raises CellError, with the numbers, where foolbox left the ball by more than rounding."""
    points, threat = _where_finite(request, points), request.threat
    away = distance(points, request.images, threat.norm)
    outside = int((away > threat.eps + ROUNDING).sum())
    if outside:
        raise CellError(
            f"foolbox left the {threat.norm} ball of eps {threat.eps:g} in {outside} of {len(points)} images; "
            f"the farthest lies at {float(away.max()):.9g}"
        )
    _check_range(points)
    return Ball(request.images, threat).project(points)


def nearest(request: AttackRequest, points: Tensor, found: Tensor) -> Tensor:
    """Return the points of a minimum-norm attack where ``found`` ``[N]``; the clean image where foolbox found none, or
    none that is finite. Raises CellError, with the numbers, for values outside [0, 1] by more than rounding."""
    shape = (-1, *[1] * (points.dim() - 1))
    points = _where_finite(request, points.where(found.view(shape), request.images))
    _check_range(points)
    return points.clamp(0.0, 1.0)


def _where_finite(request: AttackRequest, points: Tensor) -> Tensor:
    shape = (-1, *[1] * (points.dim() - 1))
    return points.detach().where(points.isfinite().flatten(1).all(1).view(shape), request.images)


def _check_range(points: Tensor) -> None:
    low, high = float(points.min()), float(points.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise CellError(f"foolbox returned values from {low:.9g} to {high:.9g}, outside [0, 1]")
