"""Square attack: random search with squares whose size shrinks, on scores alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from autoshield_bench.balls import Ball
from autoshield_bench.builtin.attacks.best import Best
from autoshield_bench.builtin.attacks.losses import margin
from autoshield_bench.contracts import Attack, AttackRequest, Target
from autoshield_bench.errors import ParameterError
from autoshield_bench.seeding import ImageRandom

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 64
"""Steps whose random numbers are drawn at once: one draw per image and step would cost as much as a query."""

REFINING_SHARE = 0.3
"""Share of the image that the first squares cover where there is something to keep: less than in a search from
scratch."""

_SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which the squares' share of the image is halved."""


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search on the margin: a square of the perturbation is redrawn, and kept where the margin grows.

    Source: Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 to 3, with the schedule of AutoAttack. Every
    image draws squares of its own, so that results do not depend on the batch.
    """

    queries: int = 5000
    """Queries per image; a smaller budget of the suite comes first, and the schedule is stretched over it."""

    initial_share: float = 0.8
    """Share of the image that the first squares cover."""

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ParameterError("queries", f"{self.queries} is too small; give at least 1")
        if not 0 < self.initial_share <= 1:
            raise ParameterError("initial_share", f"{self.initial_share:g} is not between 0 and 1")

    def forward_passes(self) -> int:
        """Return the queries per image."""
        return self.queries

    def run(self, request: AttackRequest) -> Tensor:
        """Return the best point of a search that starts at stripes or bumps, as the paper's do."""
        return self._searched(request, None)

    def run_from(self, request: AttackRequest, start: Tensor) -> Tensor:
        """Return the best point of a search that starts at ``start``, one point in the ball per image."""
        return self._searched(request, start)

    def _searched(self, request: AttackRequest, start: Tensor | None) -> Tensor:
        import torch

        best = Best(request.images, request.labels)

        def look(target: Target, x: Tensor, rows: Tensor) -> None:
            logits = target.logits(x)
            best.keep(x, margin(request.labels[rows])(logits), logits, rows)

        if len(request.images):
            alive = torch.arange(len(request.images), device=request.images.device)
            search(request, best, look, self.queries, self.initial_share, alive, start)
        return best.x


def search(
    request: AttackRequest,
    best: Best,
    look: Callable[[Target, Tensor, Tensor], object],
    queries: int,
    initial_share: float,
    alive: Tensor,
    start: Tensor | None = None,
) -> None:
    """Redraw squares of the best points of the images at rows ``alive``, which ``look`` takes in with each query."""
    budget = queries if request.queries is None else min(queries, request.queries)
    searched = (_Linf if request.threat.norm == "linf" else _L2)(request)
    draws = _Draws(request.rng, searched.numbers)
    target = request.target
    if len(alive) < len(request.images):
        target = request.target.select(alive)
        searched.narrow(alive)
    for query in range(budget):
        if query == 0:
            x = (searched.start() if start is None else start)[alive]
        else:
            side = searched.side(share(query, budget, initial_share))
            numbers = draws.at(query).to(best.x)[alive]
            x = searched.ball.project(searched.proposal(alive, best.x[alive], side, numbers))
        look(target, x, alive)
        if request.stop_on_success and bool(best.wrong[alive].any()):
            alive = alive[~best.wrong[alive]]
            if not len(alive):
                break
            target = request.target.select(alive)
            searched.narrow(alive)


def share(query: int, budget: int, initial: float) -> float:
    """Return the share of the image that a square covers at a query, the schedule stretched over the budget."""
    scaled = int(query / budget * 10_000)
    return initial * 0.5 ** sum(scaled > bound for bound in _SCHEDULE)


class _Draws:
    """Uniform numbers per image and step, drawn in blocks."""

    def __init__(self, rng: ImageRandom, numbers: int) -> None:
        self._rng = rng
        self._numbers = numbers
        self._block = -1
        self._drawn: Tensor | None = None

    def at(self, query: int) -> Tensor:
        """Return ``[N, numbers]``."""
        block, place = divmod(query, _BLOCK)
        if self._drawn is None or block != self._block:
            self._block, self._drawn = block, self._rng.uniform((_BLOCK, self._numbers), "square", block)
        return self._drawn[:, place]


class _Search:
    """What the searches in both balls share."""

    def __init__(self, request: AttackRequest) -> None:
        self.images, self.threat, self.rng = request.images, request.threat, request.rng
        self.channels, self.height, self.width = (int(size) for size in request.images.shape[1:])
        self._whole = self.ball = Ball(self.images, self.threat)

    def narrow(self, alive: Tensor) -> None:
        """Go on with these images alone."""
        self.ball = self._whole.select(alive)

    def window(self, side: int, corners: Tensor) -> Tensor:
        """Return masks ``[N, 1, H, W]`` of squares whose corners are at two uniform numbers per image."""
        import torch

        masks = []
        for size, number in ((self.height, corners[:, 0]), (self.width, corners[:, 1])):
            first = (number * (size - side + 1)).long().clamp_(max=size - side)[:, None]
            place = torch.arange(size, device=corners.device)
            masks.append((place >= first) & (place < first + side))
        return (masks[0][:, :, None] & masks[1][:, None, :])[:, None]

    def signs(self, numbers: Tensor) -> Tensor:
        """Return -1 or 1 for every uniform number, as ``[N, channels, 1, 1]``."""
        return (numbers < 0.5).to(self.images).mul_(2).sub_(1).view(-1, self.channels, 1, 1)


class _Linf(_Search):
    @property
    def numbers(self) -> int:
        return 2 + self.channels

    def side(self, covered: float) -> int:
        return max(round(sqrt(covered * self.height * self.width)), 1)

    def start(self) -> Tensor:
        """Return vertical stripes of plus or minus eps."""
        stripes = self.rng.uniform((self.channels, 1, self.width), "stripes").to(self.images)
        return self.ball.project(self.images + self.threat.eps * (2 * (stripes < 0.5) - 1))

    def proposal(self, alive: Tensor, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        mask = self.window(min(side, self.height, self.width), numbers[:, :2])
        step = 2 * self.threat.eps * self.signs(numbers[:, 2:])
        return best + mask * step


class _L2(_Search):
    @property
    def numbers(self) -> int:
        return 4 + 1 + self.channels

    def side(self, covered: float) -> int:
        side = max(round(sqrt(covered * self.height * self.width)), 3)
        return side + 1 - side % 2

    def start(self) -> Tensor:
        """Return a grid of bumps, five by five, each of random sign."""
        import torch

        side = max(min(self.height, self.width) // 5, 1)
        down, across = self.height // side, self.width // side
        drawn = self.rng.uniform((self.channels, down, across), "grid").to(self.images)
        signs = (2 * (drawn < 0.5) - 1).to(self.images)
        grid = signs.repeat_interleave(side, 2).repeat_interleave(side, 3)
        grid = grid * _bump(side).to(self.images).repeat(down, across)
        offset = torch.zeros_like(self.images)
        top, left = (self.height - grid.shape[2]) // 2, (self.width - grid.shape[3]) // 2
        offset[:, :, top : top + grid.shape[2], left : left + grid.shape[3]] = grid
        return self.ball.project(self.images + self.threat.eps * _unit(offset))

    def proposal(self, alive: Tensor, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        """Move the perturbation's length from one square to another (algorithm 3)."""
        import torch

        side = min(side, self.height, self.width)
        offset = best - self.images[alive]
        one, two = self.window(side, numbers[:, :2]), self.window(side, numbers[:, 2:4])
        bump = _bump(side, turned=False).to(offset), _bump(side, turned=True).to(offset)
        shaped = torch.where((numbers[:, 4] < 0.5).view(-1, 1, 1), bump[0], bump[1])[:, None]
        fresh = _placed(shaped, one) * self.signs(numbers[:, 5:])
        old = offset * one
        fresh = fresh + old / (_length(old) + 1e-12)
        left = (self.threat.eps**2 - offset.square().sum((1, 2, 3), keepdim=True)).clamp_min(0) / self.channels
        both = (offset * (one | two)).square().sum((2, 3), keepdim=True)
        fresh = fresh * one / (_length(fresh * one) + 1e-12) * (left + both).sqrt()
        moved = torch.where(one, fresh, offset * ~two)
        return self.images[alive] + self.threat.eps * _unit(moved)


def _bump(side: int, *, turned: bool = False) -> Tensor:
    """Return ``[side, side]`` of unit length: two opposite pyramids side by side (section 4.2 of the paper)."""
    import torch

    half = side // 2
    bump = torch.zeros(side, side)
    if half:
        bump[:half] = _pyramid(half, side)
        bump[half:] = -_pyramid(side - half, side)
    else:
        bump[:] = 1.0
    bump /= bump.norm()
    return bump.T.contiguous() if turned else bump


def _pyramid(height: int, width: int) -> Tensor:
    """Return concentric rectangles, each adding 1 / (ring)^2 towards the middle."""
    import torch

    pyramid = torch.zeros(height, width)
    top, left = height // 2, width // 2
    for ring in range(max(height // 2 + 1, width // 2 + 1)):
        rows = slice(max(top - ring, 0), min(top + ring + 1, height))
        columns = slice(max(left - ring, 0), min(left + ring + 1, width))
        pyramid[rows, columns] += 1.0 / (ring + 1) ** 2
    pyramid /= pyramid.norm()
    return pyramid


def _placed(shaped: Tensor, mask: Tensor) -> Tensor:
    """Return ``[N, 1, H, W]``, zero but for each image's pattern ``[N, 1, side, side]`` where its mask is set."""
    import torch

    spread = torch.zeros(mask.shape, dtype=shaped.dtype, device=shaped.device)
    spread[mask] = shaped.flatten()
    return spread


def _length(x: Tensor) -> Tensor:
    length: Tensor = x.square().sum((2, 3), keepdim=True).sqrt()
    return length


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum((1, 2, 3), keepdim=True).sqrt() + 1e-12)
