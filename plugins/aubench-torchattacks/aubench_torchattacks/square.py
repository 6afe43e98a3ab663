"""The Square attack, as torchattacks has it: scores alone, no gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import CellError

from aubench_torchattacks.library import NORMS, called, drawn_seed, verified
from aubench_torchattacks.parameters import at_least, between, one_of
from aubench_torchattacks.standing import Standing, of_square

if TYPE_CHECKING:
    from torch import Tensor

START_SIZE = 0.8
"""The library's share of the pixels that the first squares cover."""

GRID = 5
"""Rows into which the library cuts an image where it starts in the L2 ball."""


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search over squares of pixels, which shrink as the budget is spent.

    Under black-box access the library's own budget is the one that the suite grants, less what it asks besides: about
    the clean images once, about the start and about the end of each restart.
    Source: Andriushchenko et al. 2020, arXiv:1912.00049.
    """

    queries: int = 5000
    """Squares tried per restart, where the suite grants no fewer queries."""

    restarts: int = 1
    """Runs from different random starts, each on the images that still stand; they share the suite's budget."""

    start_size: float = START_SIZE
    """Share of the pixels that the first squares cover (the library's ``p_init``)."""

    loss: str = "margin"
    """What the search lowers: ``margin`` of the true class, or ``ce``, its probability."""

    def __post_init__(self) -> None:
        at_least(1, queries=self.queries, restarts=self.restarts)
        between(0.0, 1.0, start_size=self.start_size)
        one_of("margin", "ce", loss=self.loss)

    def run(self, request: AttackRequest) -> Tensor:
        """Return misclassified points where there are some, elsewhere the points of highest loss."""
        if not len(request.images):
            return request.images.clone()
        import torchattacks
        from autoshield_bench.target_module import TargetModule

        require_room(request, self.start_size)
        network, standing = TargetModule(request, "scores"), Standing(request.images)
        attack = torchattacks.Square(
            network,
            norm=NORMS[request.threat.norm],
            eps=request.threat.eps,
            n_queries=self.squares(request.queries),
            n_restarts=self.restarts,
            p_init=self.start_size,
            loss=self.loss,
            seed=drawn_seed(),
        )
        standing.watch(attack, network, of_square)
        points = standing.instead_of_clean(called(attack, request))
        return verified(points, request, "torchattacks.Square")

    def squares(self, granted: int | None) -> int:
        """Return how many squares are tried per restart when this many queries per image are granted."""
        if granted is None:
            return self.queries
        return max(1, min(self.queries, (granted - 1) // self.restarts - 2))


def require_room(request: AttackRequest, start_size: float) -> None:
    """Raise CellError where the library would cut squares that do not fit into the image."""
    height, width = request.images.shape[-2:]
    side = max(1, round(math.sqrt(start_size * height * width)))
    if request.threat.norm == "l2":
        if height < GRID:
            raise CellError(f"torchattacks.Square cuts images into {GRID} rows, and these have {height}")
        side = max(side, 3)
        side += side % 2 == 0
    if side > min(height, width):
        raise CellError(
            f"torchattacks.Square begins with squares of {side} pixels, which do not fit into images of "
            f"{height}x{width}; give a smaller start_size"
        )
