"""Scores over images: shares with intervals, the worst case over several cells, and the illusion gap.

Per training seed, then averaged over seeds:

- The *worst case* counts an image as standing only if it stands under every counted cell, gray-box and white-box alike,
  and is right without any attack (the clean point lies in the ball). It is taken over the images that all of those
  cells evaluated.
- The *illusion gap* is the robust accuracy under the strongest gray-box attack, on those same images, minus the worst
  case.

A stochastic pipeline is right on an image in a share of fresh draws. What is worst for an image, or the strongest
gray-box attack, is chosen by other draws than it is scored by (``standing``).

Seeds train other networks but evaluate the same images: ``n`` counts images, never images times seeds, and intervals
are for the choice of images alone; ``spread`` tells what the seeds do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from autoshield_bench.outcomes import Outcomes
from autoshield_bench.standing import paired, restricted, standing
from autoshield_bench.statistics import paired_difference, wilson_at


@dataclass(frozen=True)
class Column:
    """One attack, by its label, at one access level."""

    attack: str
    access: str
    fpr: float | None = None
    """Nominal false-positive rate whose thresholds a detector-aware attack tries to stay under; None for any other."""

    def __str__(self) -> str:
        return f"{self.attack}/{self.access}" + ("" if self.fpr is None else f" at FPR {100 * self.fpr:g} %")


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
    """Number of images; None where the share is a mean over several seeds or over draws."""


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


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a defense adds over no defense, each under its own worst case, on the images that both evaluated."""

    over: str
    """Label of the defense without stages."""
    value: float
    low: float
    high: float
    """95 % interval of the paired difference, for the choice of images."""
    n: int
    seeds: tuple[int, ...]

    @property
    def verdict(self) -> Literal["gain", "loss", "not shown"]:
        """What the interval shows."""
        return "gain" if self.low > 0 else "loss" if self.high < 0 else "not shown"


@dataclass(frozen=True)
class Faced:
    """What a cell says in a worst case."""

    seed: int
    access: str | None
    """None for the clean cell."""
    outcomes: Outcomes


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """A worst case with what it was taken from."""

    score: Score | None = None
    gap: Gap | None = None
    standing: Mapping[int, Outcomes]
    """By training seed: what stands; empty where there is no score."""


@dataclass(frozen=True)
class Absent:
    """Why there is no score."""

    reason: Literal["failed", "missing", "not planned", "no images"]
    detail: str = ""
    """What failed."""


def score_of(seeds: Sequence[int], counts: Sequence[tuple[float, int]]) -> Score | None:
    """Return the score of one ``(hits, n)`` per seed; None where a seed evaluated no image.

    Of a stochastic pipeline, hits are the expected number of images.
    """
    if not counts or any(n == 0 for _, n in counts):
        return None
    shares = tuple(hits / n for hits, n in counts)
    share, n = fmean(shares), min(n for _, n in counts)
    one = len(counts) == 1
    low, high = wilson_at(share, n)
    hits = counts[0][0]
    return Score(
        share=share,
        n=n,
        low=low,
        high=high,
        seeds=tuple(seeds),
        shares=shares,
        spread=None if one else stdev(shares),
        hits=hits if one and isinstance(hits, int) else None,
    )


def worst_case(cells: Iterable[Faced], easier: Iterable[Faced] = ()) -> WorstCase:
    """Return worst case and illusion gap over cells of one defense and threat, the clean cells among them.

    ``easier`` are attacked in smaller balls; an image that falls there has fallen, as far as they evaluated the images
    in question. No worst case where a seed has no white-box cell or no image that all its cells evaluated; no gap where
    a seed has no gray-box cell. Of cells that are equally bad for an image, the last counts.
    """
    beside = list(easier)
    by_seed: dict[int, list[Faced]] = {}
    for cell in cells:
        by_seed.setdefault(cell.seed, []).append(cell)
    left: dict[int, Outcomes] = {}
    gray: list[Outcomes] = []
    for seed, own in by_seed.items():
        if not any(cell.access == "white-box" for cell in own):
            return WorstCase(standing={})
        left[seed] = standing([cell.outcomes for cell in own])
        covering = [
            restricted(cell.outcomes, left[seed].evaluated)
            for cell in beside
            if cell.seed == seed and not left[seed].evaluated & ~cell.outcomes.evaluated
        ]
        left[seed] = standing([*covering, left[seed]])
        images = left[seed].evaluated
        oblivious = [restricted(cell.outcomes, images) for cell in own if cell.access == "gray-box"]
        gray += [min(oblivious, key=_chosen_by)] if oblivious else []
    score = score_of(list(left), [(own.right, own.n) for own in left.values()])
    if score is None:
        return WorstCase(standing={})
    gap = _gap(score, list(left.values()), gray) if len(gray) == len(left) else None
    return WorstCase(score=score, gap=gap, standing=left)


def _gap(score: Score, worst: Sequence[Outcomes], gray: Sequence[Outcomes]) -> Gap | None:
    gray_shares = [own.right / own.n for own in gray]
    values = tuple(before - after for before, after in zip(gray_shares, score.shares, strict=True))
    if all(own.draws is None for own in (*worst, *gray)):
        # What stands in the worst case stands under every gray-box attack, so no gap lies below 0.
        _, low, high = paired_difference(round(fmean(values) * score.n), 0, score.n)
        low = max(0.0, low)
    else:
        found = paired(list(zip(worst, gray, strict=True)))
        if found is None:
            return None
        low, high = found.low, found.high
    return Gap(
        value=fmean(values),
        gray_box=fmean(gray_shares),
        n=score.n,
        low=low,
        high=high,
        seeds=score.seeds,
        values=values,
        spread=stdev(values) if len(values) > 1 else None,
    )


def _chosen_by(outcomes: Outcomes) -> float:
    """Return how much stands, by the draws that choose where there are any."""
    draws = outcomes.draws
    return outcomes.hits if draws is None else sum(draws.selection) / draws.n


def gain_over(label: str, undefended: Mapping[int, Outcomes], defended: Mapping[int, Outcomes]) -> Gain | None:
    """Return defended minus undefended by what stands per seed; None without the same seeds or common images."""
    if not defended or set(undefended) != set(defended):
        return None
    found = paired([(undefended[seed], own) for seed, own in defended.items()])
    if found is None:
        return None
    seeds = tuple(defended)
    return Gain(over=label, value=found.value, low=found.low, high=found.high, n=found.n, seeds=seeds)


def significantly_above(one: Outcomes | None, other: Outcomes | None) -> bool:
    """Return whether more images stand under ``one`` than under ``other``, beyond the paired 95 % interval."""
    if one is None or other is None:
        return False
    found = paired([(other, one)])
    return found is not None and found.low > 0
