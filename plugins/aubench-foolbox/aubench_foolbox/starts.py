"""Where attacks on labels start: an adversarial point per image, each image for itself.

foolbox looks for the starts of a whole batch at once: it asks about all images until the last has one, and gives up on
all of them where one has none. Importing this module imports foolbox.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from autoshield_bench.contracts import AttackRequest
from torch import Tensor

from aubench_foolbox import library

_SHARE = 10
"""No more than a tenth of a query budget goes into directions, and another one into blending."""


@dataclass(frozen=True)
class Starts:
    """What was found for a batch."""

    points: Tensor
    """An adversarial point per image; the clean image where none was found."""
    rows: Tensor
    """Rows of the images that have a start other than themselves."""
    spent: int
    """Queries that the image with most of them has spent, of those in ``rows``."""


def some(request: AttackRequest, rows: Tensor) -> AttackRequest:
    """Return the request for the images at ``rows`` alone."""
    return dataclasses.replace(
        request,
        images=request.images[rows],
        labels=request.labels[rows],
        targets=None if request.targets is None else request.targets[rows],
        target=request.target.select(rows),
        rng=request.rng.select(rows),
    )


def find_starts(request: AttackRequest, *, directions: int, steps: int) -> Starts:
    """Return starts, each found by queries about its own image alone.

    For an image that is adversarial as it is, itself; else the first adversarial blend with one of up to ``directions``
    uniform noise images, in ``steps`` steps (foolbox's LinearSearchBlendedUniformNoiseAttack); else the first
    adversarial one of as many other images of the batch.
    """
    if request.queries is not None:
        directions = min(directions, max(request.queries // _SHARE, 1))
        steps = min(steps, max(request.queries // _SHARE, 1))
    goal = library.remembering_goal_of(request)
    goal(request.images, library.model_of(request, "labels")(request.images))
    points, rows, spent = request.images.clone(), [], 1
    for row in (~goal.ever).nonzero()[:, 0].tolist():
        search = _Search(request, row)
        if search.blend(directions, steps) or search.try_others(directions):
            points[row] = search.point
            rows.append(row)
            spent = max(spent, 1 + search.asked)
    return Starts(points, torch.tensor(rows, dtype=torch.int64, device=points.device), spent)


class _Search:
    """The search for one image's start."""

    def __init__(self, request: AttackRequest, row: int) -> None:
        self._batch, self._row = request, row
        self._own = some(request, torch.tensor([row], device=request.images.device))
        self._model = library.model_of(self._own, "labels")
        self._goal = library.remembering_goal_of(self._own)

    @property
    def asked(self) -> int:
        """Queries so far."""
        return self._goal.asked

    @property
    def point(self) -> Tensor:
        """The adversarial point that was seen last."""
        return self._goal.point[0]

    def blend(self, directions: int, steps: int) -> bool:
        """Look between the image and noise; return whether there is a start."""
        attack = library.attacks.LinearSearchBlendedUniformNoiseAttack(directions=directions, steps=steps)
        attack.run(self._model, self._own.images, self._goal)
        return bool(self._goal.ever)

    def try_others(self, most: int) -> bool:
        """Look at other images of the batch; return whether one is a start."""
        for _, other in zip(range(most), self._others(), strict=False):
            image = self._batch.images[other : other + 1]
            self._goal(image, self._model(image))
            if bool(self._goal.latest):
                return True
        return False

    def _others(self) -> Iterator[int]:
        """Yield rows of images that may well be adversarial for this one: of another class, or of the target class."""
        labels, targets = self._batch.labels, self._batch.targets
        fit = labels != labels[self._row] if targets is None else labels == targets[self._row]
        yield from fit.nonzero()[:, 0].tolist()
