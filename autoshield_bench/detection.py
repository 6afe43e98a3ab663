"""Thresholds of detectors: one per nominal false-positive rate, fixed on clean validation images, never per attack.

A chain shares the rate among its stages that detect, since any stage's flag flags.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

RATES = (0.001, 0.01, 0.05)
"""Nominal false-positive rates at which detectors are judged."""

RANKED_RATE = 0.01
"""The one whose joint game ranks a defense that detects."""


def allowed(images: int, rate: float, stages: int) -> int:
    """Return how many of so many clean validation images each of ``stages`` detecting stages may flag."""
    return math.floor(images * rate / stages + 1e-9)


def too_small(images: int, rate: float, stages: int) -> str | None:
    """Return why a validation part is too small for a rate, with the size it takes; None where it is not."""
    if allowed(images, rate, stages) >= 1:
        return None
    share = f"{rate:g}" if stages == 1 else f"{rate:g} shared by {stages} stages"
    return f"a false-positive rate of {share} needs {math.ceil(stages / rate)} validation images, there are {images}"


def threshold(scores: Sequence[float], rate: float, stages: int) -> float:
    """Return the score above which a stage flags: at most its share of the clean validation images lies above.

    Raises ValueError where there are too few scores for that rate.
    """
    spare = allowed(len(scores), rate, stages)
    if spare < 1:
        raise ValueError(too_small(len(scores), rate, stages))
    return sorted(scores, reverse=True)[spare]
