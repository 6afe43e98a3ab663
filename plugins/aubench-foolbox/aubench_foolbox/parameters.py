"""Checks of parameters that several attacks share."""

from __future__ import annotations

from autoshield_bench.errors import ParameterError


def at_least(low: int, **values: int | None) -> None:
    """Raise ParameterError for the first count below ``low``; None stands for a default and passes."""
    for key, value in values.items():
        if value is not None and value < low:
            raise ParameterError(key, f"{value} is too small; give at least {low}")


def positive(**values: float | None) -> None:
    """Raise ParameterError for the first value that is not positive; None stands for a default and passes."""
    for key, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise ParameterError(key, f"{value:g} is not positive; give a positive number")


def not_negative(**values: float) -> None:
    """Raise ParameterError for the first negative value."""
    for key, value in values.items():
        if not 0 <= value < float("inf"):
            raise ParameterError(key, f"{value:g} is negative; give at least 0")
