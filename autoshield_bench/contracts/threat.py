"""The threat model, and the words of the contract that several modules share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

CONTRACT = 1
"""Version of this contract. A manifest module states the version it was written for as its own ``CONTRACT``."""

Norm = Literal["linf", "l2"]
Access = Literal["gray-box", "transfer", "black-box", "white-box"]
Needs = Literal["gradients", "scores", "labels"]
Search = Literal["fixed-budget", "minimum-norm"]
Randomness = Literal["rng", "global", "irreproducible"]
Goal = Literal["untargeted", "targeted"]
Precision = Literal["float32", "bf16"]
Kind = Literal["attack", "defense", "metric", "dataset", "model"]

NORMS: tuple[Norm, ...] = ("linf", "l2")
ACCESS_LEVELS: tuple[Access, ...] = ("gray-box", "transfer", "black-box", "white-box")


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """How far an attack may move an image. It belongs to the suite, not to an attack."""

    norm: Norm
    """``linf`` (largest change of any value) or ``l2`` (Euclidean length over all values of one image)."""

    eps: float
    """Radius of the ball, in the units of the images: [0, 1]."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm: {self.norm!r} is not one of {', '.join(NORMS)}")
        if not math.isfinite(self.eps) or self.eps < 0:
            raise ValueError(f"eps: {self.eps!r} is not a finite number of at least 0")

    def __str__(self) -> str:
        return f"{self.norm} eps {self.eps:g}"
