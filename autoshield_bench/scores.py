"""Scores over images: shares with intervals, the worst case over several cells, and the illusion gap.

Per training seed, then averaged over seeds:

- The *worst case* counts an image as standing only if it stands under every counted cell, gray-box and white-box alike,
  and is right without any attack (the clean point lies in the ball). It is taken over the images that all of those
  cells evaluated.
- The *illusion gap* is the robust accuracy under the strongest gray-box attack, on those same images, minus the worst
  case.

Seeds train other networks but evaluate the same images: ``n`` counts images, never images times seeds, and intervals
are for the choice of images alone; ``spread`` tells what the seeds do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from statistics import fmean, stdev
from typing import Literal

from autoshield_bench.outcomes import Outcomes
from autoshield_bench.results import CellRecord
from autoshield_bench.statistics import paired_difference, wilson, wilson_at


@dataclass(frozen=True, kw_only=True)
class Score:
    """A share of images, averaged over seeds, with its 95 % Wilson interval."""

    share: float
    n: int
    """Images evaluated per seed; the smallest where seeds differ."""
    low: float
    high: float
    seeds: tuple[int, ...]
    shares: tuple[float, ...]
    """Share per seed, in the order of ``seeds``."""
    spread: float | None
    """Sample standard deviation over seeds; None for one seed."""
    hits: int | None
    """Number of images; None where the share is a mean over several seeds."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The illusion gap, averaged over seeds, with a 95 % interval for paired proportions (Agresti and Min 2005)."""

    value: float
    gray_box: float
    """What the strongest gray-box attack left on the worst case's images."""
    n: int
    low: float
    high: float
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    """Gap per seed, in the order of ``seeds``."""
    spread: float | None
    """Sample standard deviation over seeds; None for one seed."""


@dataclass(frozen=True)
class Absent:
    """Why there is no score."""

    reason: Literal["failed", "missing", "not planned", "no images"]
    detail: str = ""
    """What failed."""


def score_of(seeds: Sequence[int], counts: Sequence[tuple[int, int]]) -> Score | None:
    """Return the score of one ``(hits, n)`` per seed; None where a seed evaluated no image."""
    if not counts or any(n == 0 for _, n in counts):
        return None
    shares = tuple(hits / n for hits, n in counts)
    share, n = fmean(shares), min(n for _, n in counts)
    one = len(counts) == 1
    low, high = wilson(*counts[0]) if one else wilson_at(share, n)
    return Score(
        share=share,
        n=n,
        low=low,
        high=high,
        seeds=tuple(seeds),
        shares=shares,
        spread=None if one else stdev(shares),
        hits=counts[0][0] if one else None,
    )


def worst_case(records: Iterable[CellRecord]) -> tuple[Score | None, Gap | None]:
    """Return worst case and illusion gap over cells of one defense and threat, the clean cells among them.

    No worst case where a seed has no white-box cell or no image that all its cells evaluated; no gap where a seed has
    no gray-box cell.
    """
    by_seed: dict[int, list[tuple[str | None, Outcomes]]] = {}
    for record in records:
        if record.outcomes is not None:
            by_seed.setdefault(record.cell.seed, []).append((record.cell.access, record.outcomes))
    worst: list[tuple[int, int]] = []
    gray: list[int] = []
    for own in by_seed.values():
        if not any(access == "white-box" for access, _ in own):
            return None, None
        common = reduce(and_, (outcomes.evaluated for _, outcomes in own))
        standing = reduce(and_, (outcomes.correct for _, outcomes in own), common)
        worst.append((standing.bit_count(), common.bit_count()))
        left = [(outcomes.correct & common).bit_count() for access, outcomes in own if access == "gray-box"]
        gray += [min(left)] if left else []
    score = score_of(list(by_seed), worst)
    if score is None or len(gray) < len(worst):
        return score, None
    gray_shares = [hits / n for hits, (_, n) in zip(gray, worst, strict=True)]
    values = tuple(before - after for before, after in zip(gray_shares, score.shares, strict=True))
    # What stands in the worst case stands under every gray-box attack, so no gap lies below 0.
    _, low, high = paired_difference(round(fmean(values) * score.n), 0, score.n)
    gap = Gap(
        value=fmean(values),
        gray_box=fmean(gray_shares),
        n=score.n,
        low=max(0.0, low),
        high=high,
        seeds=score.seeds,
        values=values,
        spread=stdev(values) if len(values) > 1 else None,
    )
    return score, gap


def significantly_above(one: Outcomes | None, other: Outcomes | None) -> bool:
    """Return whether more images stand under ``one`` than under ``other``, beyond the paired 95 % interval."""
    if one is None or other is None:
        return False
    common = one.evaluated & other.evaluated
    only_one = (one.correct & ~other.correct & common).bit_count()
    only_other = (other.correct & ~one.correct & common).bit_count()
    return bool(common) and paired_difference(only_one, only_other, common.bit_count())[1] > 0
