"""What attacks without gradients have asked: the count per image, and the best point seen so far."""

from __future__ import annotations

import torch
from torch import Tensor

from autoshield_bench.balls import distance
from autoshield_bench.contracts import ThreatModel
from autoshield_bench.engine.guard import SLACK
from autoshield_bench.errors import BudgetSpent
from autoshield_bench.margins import margins


class QueryLog:
    """Queries of one batch of images, counted per image against a budget, and the best valid point among them.

    For a fixed-budget attack the best point is a misclassified one inside the ball, and among equals the one of the
    largest margin (where scores are seen); for a minimum-norm attack (``nearest``) the nearest misclassified one.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        *,
        targets: Tensor | None = None,
        budget: int | None = None,
        nearest: bool = False,
    ) -> None:
        self.spent = torch.zeros(len(images), dtype=torch.int64)
        """Queries per image."""
        self.asked_again = 0
        """Calls about an image that had been refused before."""
        self._refused = torch.zeros(len(images), dtype=torch.bool)
        self._clean = images.clone()
        self._labels = labels.clone()
        self._targets = None if targets is None else targets.clone()
        self._threat = threat
        self._budget = budget
        self._nearest = nearest
        self._best = images.clone()
        self._best_value = torch.full((len(images),), -torch.inf, dtype=torch.float64)

    @property
    def images(self) -> int:
        """Number of images in the batch."""
        return len(self.spent)

    def charge(self, rows: Tensor) -> None:
        """Count one query for every row. Raises BudgetSpent, and counts nothing, where an image has too few left."""
        asked = torch.bincount(rows, minlength=self.images)
        if self._budget is not None:
            over = (self.spent + asked > self._budget) & (asked > 0)
            if bool(over.any()):
                self.asked_again += int(bool((over & self._refused).any()))
                self._refused |= over
                raise BudgetSpent(
                    f"the budget of {self._budget} queries is spent for {int(over.sum())} images", self._best.clone()
                )
        self.spent += asked

    def see(self, rows: Tensor, points: Tensor, logits: Tensor, *, scores: bool) -> None:
        """Keep the points that are better than the best so far, and valid."""
        if self._budget is None or not len(rows):
            return  # nobody will ask for the best point
        place = rows.to(points.device)
        away = distance(points, self._clean[place], self._threat.norm).cpu()
        flat = points.flatten(1)
        valid = (away <= self._threat.eps + SLACK) & ((flat >= 0) & (flat <= 1)).all(1).cpu()
        value = torch.where(valid, self._value(place, logits, away, scores=scores), -torch.inf)
        # One by one: an image may stand in a batch more than once.
        for row in (value > self._best_value[rows]).nonzero()[:, 0].tolist():
            image = rows[row]
            if value[row] > self._best_value[image]:
                self._best_value[image] = value[row]
                self._best[image] = points[row]

    def _value(self, place: Tensor, logits: Tensor, away: Tensor, *, scores: bool) -> Tensor:
        """Return how good each point is, -inf where it is of no use."""
        wanted = self._labels[place] if self._targets is None else self._targets[place]
        away_from = margins(logits, wanted)
        margin = (away_from if self._targets is None else -away_from).double().cpu()
        fooled = logits.argmax(1) == wanted
        fooled = (~fooled if self._targets is None else fooled).cpu()
        if self._nearest:
            return torch.where(fooled, -away, -torch.inf)
        # Squashed into (-1, 1): whatever the margin, a misclassified point is better than one that is not.
        order = margin / (1 + margin.abs()) if scores else torch.zeros_like(margin)
        return order + 2.0 * fooled
