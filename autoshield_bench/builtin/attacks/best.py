"""The best point that an attack has seen of each image."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Best:
    """Keeps, per image, a misclassified point before one that is not, and among equals the one of higher loss.

    (The highest loss alone could prefer a point that is still classified correctly, since cross-entropy does not order
    the two.)
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        import torch

        self.x = images.clone()
        self.loss = torch.full((len(images),), -torch.inf, device=images.device)
        self.wrong = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self._labels = labels

    def keep(self, x: Tensor, losses: Tensor, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """Take in points, of the images at ``rows`` (all by default); return which became the best of their image."""
        labels = self._labels if rows is None else self._labels[rows]
        return self.keep_fallen(x, losses, logits.argmax(1) != labels, rows)

    def keep_fallen(self, x: Tensor, losses: Tensor, wrong: Tensor, rows: Tensor | None = None) -> Tensor:
        """Take in points of which it is known whether they reach the goal."""
        import torch

        place = torch.arange(len(self.x), device=x.device) if rows is None else rows
        better = (wrong & ~self.wrong[place]) | ((wrong == self.wrong[place]) & (losses > self.loss[place]))
        chosen = place[better]
        self.loss[chosen], self.wrong[chosen] = losses[better], wrong[better]
        self.x[chosen] = x[better]
        return better
