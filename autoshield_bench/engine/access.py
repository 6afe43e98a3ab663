"""What an attack may see: a target holds the pipeline that its access level permits, and nothing else.

A gray-box target is built on the bare classifier, so the defense is not reachable from it; a white-box target is built
on the whole defended pipeline. Nothing here is enforced by a label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autoshield_bench.contracts import Access, LossGradient
from autoshield_bench.engine.pipeline import FittedStage, Pipeline
from autoshield_bench.errors import CellError
from autoshield_bench.seeding import ImageRandom


class GradientTarget:
    """A target with gradients; see ``contracts.Target``."""

    def __init__(self, pipeline: Pipeline, rng: ImageRandom, *, classes: int, eot: int) -> None:
        self._pipeline = pipeline
        self._rng = rng
        self._classes = classes
        self._samples = eot if pipeline.stochastic else 1
        # Shared with selections, so that draws stay fresh when an attack selects in every step.
        self._calls = [0]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self._classes

    def logits(self, x: Tensor) -> Tensor:
        """Return logits, averaged over draws where the pipeline is stochastic; differentiable."""
        draws = [self._pipeline(x, rng).logits for rng in self._fresh_draws()]
        return draws[0] if len(draws) == 1 else torch.stack(draws).mean(0)

    def loss_gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> LossGradient:
        """Return per-image loss, its gradient and the logits, each averaged over draws (EOT)."""
        point = x.detach().requires_grad_()
        sums: list[Tensor] = []
        for rng in self._fresh_draws():
            with torch.enable_grad():
                logits = self._pipeline(point, rng).logits
                losses = loss(logits)
                if losses.shape != (len(x),):
                    raise CellError(f"a loss returned shape {tuple(losses.shape)} where ({len(x)},) belongs")
                (gradient,) = torch.autograd.grad(losses.sum(), point)
            drawn = [losses.detach(), gradient, logits.detach()]
            sums = [total + value for total, value in zip(sums, drawn, strict=True)] if sums else drawn
        if self._samples > 1:
            sums = [total / self._samples for total in sums]
        return LossGradient(*sums)

    def select(self, rows: Tensor) -> GradientTarget:
        """Return the target for some of the images."""
        chosen = GradientTarget.__new__(GradientTarget)
        chosen.__dict__.update(self.__dict__)
        chosen._rng = self._rng.select(rows)
        return chosen

    def _fresh_draws(self) -> list[ImageRandom]:
        self._calls[0] += 1
        return [self._rng.child("eot", self._calls[0], sample) for sample in range(self._samples)]


def seen_stages(access: Access, stages: Sequence[FittedStage]) -> Sequence[FittedStage]:
    """Return the stages of the defense that an attack at this access level may look through."""
    return () if access == "gray-box" else stages
