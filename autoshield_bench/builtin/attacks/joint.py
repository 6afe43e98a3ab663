"""The joint goal against a pipeline that detects: to be misclassified and not to be flagged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoshield_bench.builtin.attacks.apgd import wrong_classes
from autoshield_bench.builtin.attacks.best import Best
from autoshield_bench.contracts import AttackRequest, LossGradient, Target, TargetOutput
from autoshield_bench.errors import GradientCut
from autoshield_bench.margins import margins

if TYPE_CHECKING:
    from torch import Tensor

_SMALL = 1e-12


class Joint:
    """Keeps the best point of each image of a request, and tells which images are still to be attacked.

    A point is worth the smaller of two numbers, both positive where the goal is reached: its margin, in units of the
    clean image's, and the excess below the threshold, in the units in which the target tells it.
    """

    def __init__(self, request: AttackRequest) -> None:
        import torch

        self.best = Best(request.images, request.labels)
        self._labels = request.labels
        self._stops = request.stop_on_success
        with torch.no_grad():
            clean = request.target.output(request.images)
        self.wrong_classes = wrong_classes(clean.logits, request.labels)
        """Of each image, the most likely first ``[N, classes - 1]``."""
        self._unit = margins(clean.logits, request.labels).abs().clamp_min(_SMALL)
        everyone = torch.arange(len(request.images), device=request.images.device)
        self._take(request.images, clean.logits, excess_of(clean), everyone)

    def keep(self, x: Tensor, here: LossGradient, rows: Tensor) -> None:
        """Take in points of the images at ``rows``."""
        self._take(x, here.logits, excess_of(here), rows)

    def look(self, target: Target, x: Tensor, rows: Tensor) -> Tensor:
        """Take in points of which no gradient is wanted; return whether each is flagged."""
        import torch

        with torch.no_grad():
            output = target.output(x)
        self._take(x, output.logits, excess_of(output), rows)
        return excess_of(output) > 0

    def worth(self, output: TargetOutput, rows: Tensor) -> Tensor:
        """Return what points of the images at ``rows`` are worth."""
        return self._worth(output.logits, excess_of(output), rows)

    def standing(self, rows: Tensor) -> Tensor:
        """Return the rows that are still to be attacked: all of them where images may not be left alone."""
        return rows[~self.best.wrong[rows]] if self._stops else rows

    def _take(self, x: Tensor, logits: Tensor, excess: Tensor, rows: Tensor) -> None:
        reached = (logits.argmax(1) != self._labels[rows]) & (excess <= 0)
        self.best.keep_fallen(x, self._worth(logits, excess, rows), reached, rows)

    def _worth(self, logits: Tensor, excess: Tensor, rows: Tensor) -> Tensor:
        import torch

        return torch.minimum(margins(logits, self._labels[rows]) / self._unit[rows], -excess)


def excess_of(output: TargetOutput | LossGradient) -> Tensor:
    """Return the excess, of a target that detects."""
    assert output.excess is not None
    return output.excess


def gradient_below(target: Target, x: Tensor) -> Tensor:
    """Return the direction in which the excess falls; zero where the detector lets no gradient through."""
    import torch

    try:
        return target.output_gradient(x, lambda output: -excess_of(output)).gradient
    except GradientCut:
        return torch.zeros_like(x)


def without(gradient: Tensor, other: Tensor) -> Tensor:
    """Return a gradient per image without its part along the other one."""
    shape = (-1, *[1] * (gradient.dim() - 1))
    along = (gradient * other).flatten(1).double().sum(1)
    length = other.flatten(1).double().square().sum(1)
    share = along / length.where(length > 0, length.new_ones(()))
    rest: Tensor = gradient - share.to(gradient).view(shape) * other
    return rest


def balance(target: Target, x: Tensor, labels: Tensor) -> Tensor:
    """Return per image the weight at which both gradients are equally long; one where either is zero."""
    import torch

    raised = target.output_gradient(x, lambda output: margins(output.logits, labels)).gradient
    lowered = gradient_below(target, x)
    ratio = raised.flatten(1).double().norm(dim=1) / lowered.flatten(1).double().norm(dim=1)
    usable = ratio.isfinite() & (ratio > 0)
    return torch.where(usable, ratio, torch.ones_like(ratio)).to(x)
