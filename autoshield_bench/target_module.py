"""A target dressed as the network that other attack libraries expect, for adapters around them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench.balls import distance
from autoshield_bench.contracts import AttackRequest, Needs, Target
from autoshield_bench.errors import CellError

_ROOM = 1e-4
"""Distance outside the ball at which a point still belongs to an image: float32 rounding of third parties."""


class TargetModule(nn.Module):
    """An ``nn.Module`` whose ``forward`` asks the request's target; every call is counted and kept to its budget.

    ``needs`` is what the attack's spec declares: with ``gradients`` the logits are differentiable, with ``scores`` they
    are not, and with ``labels`` the output is the predicted class as one-hot scores.

    Whose points a batch holds: see ``rows``.
    """

    def __init__(self, request: AttackRequest, needs: Needs = "gradients", *, roams: bool = False) -> None:
        super().__init__()
        self._target: Target = request.target
        self._clean = request.images.detach().clone()
        self._threat = request.threat
        self._needs = needs
        self._roams = roams
        self._known: dict[int, Tensor] = {}
        # Libraries look at the first parameter to find the device.
        self.device_of = nn.Parameter(torch.zeros(0, device=request.images.device), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]`` of points ``[N, C, H, W]``; their gradients arrive in rows."""
        if x.requires_grad:
            # A network in channels-last order leaves its gradients so, and libraries flatten them with view().
            x = x.view_as(x)
            x.register_hook(lambda gradient: gradient.contiguous())  # type: ignore[no-untyped-call]
        target = self._target if len(x) == len(self._clean) else self._target.select(self.rows(x))
        if self._needs == "labels":
            return functional.one_hot(target.labels(x), target.classes).to(x.dtype)
        return target.logits(x)

    def rows(self, x: Tensor) -> Tensor:
        """Return the row of the image that each point belongs to, int64 ``[N]`` on the CPU.

        As many points as images are those of the images in their order, and all points are those of an only image. Any
        other batch is one that a library has cut down: the survivors in their order, each in the ball of its image. The
        survivors of one size stay the same while each lies in its ball, and they are found among those of the next
        larger size, since libraries drop images and take none back. Where no order fits, a point belongs to the nearest
        image in whose ball it lies.

        Raises CellError where a point lies in no image's ball: such a library is run image by image. With ``roams`` a
        batch of a size that was seen before may lie anywhere: for a library whose survivors start inside their balls
        and walk out of them.
        """
        if len(x) == len(self._clean):
            return torch.arange(len(x))
        if len(self._clean) == 1 or not len(x):
            return torch.zeros(len(x), dtype=torch.int64)
        known = self._known.get(len(x))
        if known is not None and (self._roams or self._in_balls(x.detach(), known)):
            return known
        self._known[len(x)] = self._match(x.detach())
        return self._known[len(x)]

    def _in_balls(self, x: Tensor, rows: Tensor) -> bool:
        centres = self._clean[rows.to(self._clean.device)]
        return bool((distance(x, centres, self._threat.norm) <= self._threat.eps + _ROOM).all())

    def _match(self, x: Tensor) -> Tensor:
        everyone = torch.arange(len(self._clean))
        larger = [rows for rows in self._known.values() if len(rows) > len(x) and bool((rows.diff() > 0).all())]
        for among in (min(larger, key=len, default=everyone), everyone):
            found = in_order(self._away(x, among))
            if found is not None:
                return among[torch.from_numpy(found)]
        nearest = torch.from_numpy(self._away(x, everyone)).min(dim=1)
        if not bool(nearest.values.isfinite().all()):
            raise CellError(
                f"a wrapped attack asked about {len(x)} points for a batch of {len(self._clean)} images, and some lie "
                f"in no image's ball; run it image by image"
            )
        return nearest.indices

    def _away(self, x: Tensor, among: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Return the distance of each point to each of some images, infinite where it lies outside the ball."""
        away = torch.cdist(
            x.flatten(1).float(),
            self._clean[among.to(self._clean.device)].flatten(1).float(),
            p=torch.inf if self._threat.norm == "linf" else 2.0,
            compute_mode="donot_use_mm_for_euclid_dist",  # the faster one loses the last digits
        )
        inside = away <= self._threat.eps + _ROOM
        return torch.where(inside, away, torch.inf).double().cpu().numpy()


def in_order(
    costs: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """Return the ascending columns, one per row of ``costs``, of least total cost; None where each choice is infinite.

    By dynamic programming over rows: the cheapest way for the first rows to end at or before each column.
    """
    rows, columns = costs.shape
    best = np.zeros(columns + 1)
    last = np.zeros((rows, columns), dtype=np.int64)
    for row in range(rows):
        ending = best[:-1] + costs[row]
        best = np.concatenate([[np.inf], np.minimum.accumulate(ending)])
        cheaper = ending < best[:-1]
        last[row] = np.maximum.accumulate(np.where(cheaper, np.arange(columns), 0))
    if not np.isfinite(best[-1]):
        return None
    chosen = np.zeros(rows, dtype=np.int64)
    column = columns
    for row in reversed(range(rows)):
        column = int(last[row, column - 1])
        chosen[row] = column
    return chosen
