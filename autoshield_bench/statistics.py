"""Intervals for proportions, tests of paired outcomes and ranks, in plain Python so that tables print without numpy."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
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


def clopper_pearson(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided Clopper-Pearson interval of ``successes`` out of ``n``; (0, 1) where nothing was observed.

    It covers the truth at least as often as it says, whatever the truth is: the interval for what gates something.
    Raises ValueError where the counts do not fit. Source: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes: {successes} is not between 0 and n = {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence} is not between 0 and 1")
    level = math.log((1 - confidence) / 2)
    share = successes / n if n else 0.0
    # Each end is found as the probability that it is, not as one minus it: near 0 that would cost all digits.
    low = 0.0
    if successes > 0:
        low = _root(lambda p: _log_lower_tail(n - successes, n, math.log1p(-p), math.log(p)) - level, share, 0.0)
    high = 1.0
    if successes < n:
        high = _root(lambda p: _log_lower_tail(successes, n, math.log(p), math.log1p(-p)) - level, share, 1.0)
    return low, high


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Return the two-sided p value of McNemar's exact test, from the images that exactly one of two classifies right.

    Under the null hypothesis each of them falls to either side with probability 1/2; 1 where there is none. Exact to
    rounding. Raises ValueError for negative counts. Source: McNemar 1947, doi:10.1007/BF02295996; the p value is twice
    the smaller binomial tail, at most 1.
    """
    if first_only < 0 or second_only < 0:
        raise ValueError(f"counts do not fit: {first_only} and {second_only}")
    n, fewer = first_only + second_only, min(first_only, second_only)
    if n - 2 * fewer <= 1:
        return 1.0
    # The largest term in whole numbers, which Python divides to the last digit; the others relative to it.
    return min(1.0, 2 * (math.comb(n, fewer) / (1 << n)) * _relative_tail(fewer, n, 1.0))


def holm(p_values: Iterable[float]) -> tuple[float, ...]:
    """Return p values adjusted for being several, in the order given: the family's chance of any false alarm holds.

    Raises ValueError for what is no probability. Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    values = tuple(p_values)
    if not all(0 <= value <= 1 for value in values):
        raise ValueError(f"p values: not all of {values} are between 0 and 1")
    adjusted = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return tuple(adjusted)


def auroc(positives: Iterable[float], negatives: Iterable[float]) -> float:
    """Return the area under the ROC curve: the chance that a positive scores higher than a negative, ties one half.

    Counted in whole numbers, so exact but for one division. Raises ValueError where either side is empty or holds NaN.
    Source: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    above, below = [float(score) for score in positives], sorted(float(score) for score in negatives)
    if not above or not below:
        raise ValueError("scores: one side is empty, so there is no curve")
    if any(map(math.isnan, above)) or any(map(math.isnan, below)):
        raise ValueError("scores: NaN has no rank")
    twice = sum(bisect_left(below, score) + bisect_right(below, score) for score in above)
    return twice / (2 * len(above) * len(below))


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
    return paired_mean_difference(first_only - second_only, first_only + second_only, n, confidence=confidence)


def paired_mean_difference(
    total: float, squares: float, n: int, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the mean over ``n`` images of differences between -1 and 1, such as means over runs, with its interval.

    ``total`` is the sum of the differences and ``squares`` that of their squares. The interval is the normal one of the
    images' mean difference after half an image with difference 1, half with -1 and one with 0 were added:
    ``total / m +- z / m * sqrt(squares + 1 - total**2 / m)`` with ``m = n + 2``. For single runs that is Agresti and
    Min's adjusted Wald interval (``paired_difference``), whose images with a difference are as many as ``squares``.
    """
    if n <= 0 or not abs(total) <= n or not 0 <= squares <= n:
        raise ValueError(f"sums do not fit: {total} and {squares} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    images = n + 2
    centre = total / images
    half = z / images * math.sqrt(max(0.0, squares + 1 - total**2 / images))
    return total / n, max(-1.0, centre - half), min(1.0, centre + half)


def _relative_tail(k: int, n: int, odds: float) -> float:
    """Return P(X <= k) / P(X = k) of a binomial X whose ``odds`` are failure to success; quick for k below its mean."""
    total = term = 1.0
    for i in range(k, 0, -1):
        term *= i / (n - i + 1) * odds
        total += term
        if term < total * 1e-17:
            break
    return total


def _log_lower_tail(k: int, n: int, log_success: float, log_failure: float) -> float:
    """Return the logarithm of P(X <= k) of a binomial X whose mean is not below k."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    here = ways + k * log_success + (n - k) * log_failure
    return here + math.log(_relative_tail(k, n, math.exp(log_failure - log_success)))


def _root(function: Callable[[float], float], inside: float, outside: float) -> float:
    """Return where a function changes sign between ``inside``, where it is positive, and ``outside``; by bisection."""
    while True:
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            return middle
        if function(middle) > 0:
            inside = middle
        else:
            outside = middle
