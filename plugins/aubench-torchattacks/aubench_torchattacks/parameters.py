"""Checks of parameters, and the ones that all attacks by steps share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoshield_bench.contracts import Attack
from autoshield_bench.errors import ParameterError


def at_least(least: int, **values: int) -> None:
    """Raise ParameterError for a value below ``least``."""
    for key, value in values.items():
        if value < least:
            raise ParameterError(key, f"{value} is too small; give at least {least}")


def positive(**values: float | None) -> None:
    """Raise ParameterError for a value that is given and is no finite number above zero."""
    for key, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ParameterError(key, f"{value:g} is not positive; give a finite number above 0")


def between(low: float, high: float, **values: float) -> None:
    """Raise ParameterError for a value outside ``[low, high]``."""
    for key, value in values.items():
        if not low <= value <= high:
            raise ParameterError(key, f"{value:g} is not between {low:g} and {high:g}")


def one_of(*known: str, **values: str) -> None:
    """Raise ParameterError for a value that is none of ``known``."""
    for key, value in values.items():
        if value not in known:
            raise ParameterError(key, f"{value!r} is not one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class Stepped(Attack):
    """Steps of one length, in units of eps unless it is given in those of the images."""

    steps: int = 10
    """Gradient steps."""

    step_size: float | None = None
    """Length of a step in the units of the images (the library's ``alpha``); not together with
    ``relative_step_size``."""

    relative_step_size: float | None = None
    """Length of a step in units of eps; 2.5 / steps where neither is given."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        positive(step_size=self.step_size, relative_step_size=self.relative_step_size)
        if self.step_size is not None and self.relative_step_size is not None:
            raise ParameterError("step_size", "give either step_size or relative_step_size, not both")

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image."""
        return self.steps

    def length(self, eps: float) -> float:
        """Return the length of a step in a ball of this size."""
        if self.step_size is not None:
            return self.step_size
        return eps * (self.relative_step_size or 2.5 / self.steps)
