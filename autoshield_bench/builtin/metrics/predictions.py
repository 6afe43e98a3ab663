"""Metrics of what the defended pipeline predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import MetricValues, PredictionMetric

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Accuracy(PredictionMetric):
    """Share of images whose highest logit is the true class. A flag of a detector does not enter."""

    def per_image(self, labels: Tensor, clean_logits: Tensor, logits: Tensor) -> MetricValues:
        """Return 1.0 where the prediction on the scored image is right, else 0.0."""
        return MetricValues(values=(logits.argmax(1) == labels).double())


@dataclass(frozen=True, kw_only=True)
class AttackSuccess(PredictionMetric):
    """Share of images that are classified correctly when clean and are misclassified when attacked.

    Undefined for an image misclassified already when clean: there was nothing left to break.
    """

    def per_image(self, labels: Tensor, clean_logits: Tensor, logits: Tensor) -> MetricValues:
        """Return 1.0 where the attack turned a right prediction into a wrong one, else 0.0."""
        was_right = clean_logits.argmax(1) == labels
        is_wrong = logits.argmax(1) != labels
        return MetricValues(values=(was_right & is_wrong).double(), defined=was_right)
