"""Intervals for proportions, in plain Python so that a leaderboard prints without numpy."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of ``successes`` out of ``n``; (0, 1) where nothing was observed.

    Raises ValueError where the counts do not fit. Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes: {successes} is not between 0 and n = {n}")
    if n == 0:
        return 0.0, 1.0
    return wilson_at(successes / n, n, confidence=confidence)


def wilson_at(share: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share over ``n`` images, where the share is a mean over several runs."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula is exact but for rounding: pin them, so that 0 of n starts at 0.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return low, high


def paired_difference(
    first_only: int, second_only: int, n: int, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the difference of two paired proportions (first minus second) with its interval.

    ``first_only`` counts images right under the first alone, ``second_only`` under the second alone. The interval is
    the adjusted Wald interval of Agresti and Min 2005 (doi:10.1002/sim.1781), which adds 1/2 to each discordant cell
    and 2 to n.
    """
    if n <= 0 or first_only < 0 or second_only < 0 or first_only + second_only > n:
        raise ValueError(f"counts do not fit: {first_only} and {second_only} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    b, c, total = first_only + 0.5, second_only + 0.5, n + 2
    centre = (b - c) / total
    half = z / total * math.sqrt(b + c - (b - c) ** 2 / total)
    return (first_only - second_only) / n, max(-1.0, centre - half), min(1.0, centre + half)
