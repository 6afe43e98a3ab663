"""ART's black-box attack from scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import CellError, ParameterError

from aubench_art.attacks.requests import goal, order, points, within_ball

if TYPE_CHECKING:
    from torch import Tensor

_UNLIMITED = 1000
"""Iterations where there is no budget of queries."""


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """ART's ``SquareAttack``: random squares, kept where the margin of the true class falls.

    ART asks three times per iteration (is it misclassified, how large is the margin, how large would it be) and once
    about images that have fallen; squares lie at one place for the whole batch. An image that has fallen is left
    alone. Source: Andriushchenko et al. 2020, arXiv:1912.00049.
    """

    iterations: int | None = None
    """Squares to try per run; ART's ``max_iter``, 100 there. Not given: what the budget of queries pays for, and 1000
    without a budget. The squares shrink over this number."""

    initial_share: float = 0.8
    """Share of the image that the first square covers; ART's ``p_init``."""

    restarts: int = 1
    """Runs; ART's ``nb_restarts``."""

    def __post_init__(self) -> None:
        for key in ("iterations", "restarts"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ParameterError(key, f"{value} is too small; give at least 1")
        if not 0 < self.initial_share < 1:
            raise ParameterError("initial_share", f"{self.initial_share:g} does not lie between 0 and 1")

    def run(self, request: AttackRequest) -> Tensor:
        """Return the points after the last iteration, or those at which the images fell."""
        if not len(request.images) or request.threat.eps == 0:
            return request.images.clone()
        self._check_fit(request)
        from art.attacks.evasion import SquareAttack

        from aubench_art.attacks.classifier import Questions, query_classifier, quiet

        with quiet():
            attack = SquareAttack(
                query_classifier(Questions(request, "scores"), request),
                norm=order(request.threat.norm),
                max_iter=self._iterations(request.queries),
                eps=request.threat.eps,
                p_init=self.initial_share,
                nb_restarts=self.restarts,
                batch_size=len(request.images),
                verbose=False,
            )
            result = attack.generate(points(request.images), goal(request))
        return within_ball(result, request)

    def _iterations(self, queries: int | None) -> int:
        """Return the iterations of a run: three queries each, and three before the first one."""
        if queries is None:
            return self.iterations or _UNLIMITED
        affordable = max(1, (queries // self.restarts - 3) // 3)
        return min(self.iterations or affordable, affordable)

    def _check_fit(self, request: AttackRequest) -> None:
        """Raise CellError where the first square leaves no room to place it: ART draws from an empty range there."""
        height, width = request.images.shape[-2:]
        side = max(round(math.sqrt(self.initial_share * height * width)), 1)
        if request.threat.norm == "l2":
            side = max(side, 3)
            side += 1 - side % 2
        if side >= min(height, width):
            raise CellError(
                f"ART's first square, {side} pixels wide for initial_share {self.initial_share:g}, does not fit into "
                f"images of {height} x {width}; give a smaller initial_share"
            )
