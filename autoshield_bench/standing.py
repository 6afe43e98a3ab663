"""What stands, image by image: over several cells, and in the difference between two sides, drawn or not.

A deterministic pipeline classifies an image correctly or does not. A stochastic one does so in a share of its draws
(``outcomes.Draws``): there a worst case picks for each image the cell in which the fewest of the draws for *selection*
are right, and takes the count of that cell's *scored* draws, which had no say in the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import lcm
from operator import and_

from autoshield_bench.errors import StoreError
from autoshield_bench.outcomes import Draws, Outcomes, mask_of
from autoshield_bench.statistics import paired_mean_difference


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Second minus first over the same images, averaged over training seeds."""

    n: int
    """Images that both evaluated, for every seed."""
    value: float
    low: float
    high: float
    """95 % interval of ``value`` for the choice of images."""
    more: int
    """Images on which the second is right more often than the first, over seeds and draws."""
    fewer: int
    right: tuple[tuple[float, float], ...]
    """Expected number of images that each of them classifies correctly, per seed."""


def indices(mask: int) -> list[int]:
    """Return the images of a mask, in ascending order."""
    return [index for index, bit in enumerate(reversed(f"{mask:b}")) if bit == "1"]


def restricted(outcomes: Outcomes, images: int) -> Outcomes:
    """Return the outcomes on those of the evaluated images that are in a mask."""
    kept = outcomes.evaluated & images
    draws = outcomes.draws
    if draws is not None and kept != outcomes.evaluated:
        places = [place for place, image in enumerate(indices(outcomes.evaluated)) if kept >> image & 1]
        draws = Draws(
            n=draws.n,
            selection=bytes(draws.selection[place] for place in places),
            scored=bytes(draws.scored[place] for place in places),
        )
    return Outcomes(size=outcomes.size, evaluated=kept, correct=outcomes.correct & kept, draws=draws)


def standing(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Return what stands under every one of some cells, of the images that all of them evaluated.

    Of cells that are equally bad for an image, the last counts: an attack before the clean cell, whose draws would else
    stand for many an image that the attack misleads now and then. Raises StoreError where cells were scored by
    different numbers of draws.
    """
    common = reduce(and_, (own.evaluated for own in outcomes))
    known = {own.draws.n for own in outcomes if own.draws is not None}
    if not known:
        correct = reduce(and_, (own.correct for own in outcomes), common)
        return Outcomes(size=outcomes[0].size, evaluated=common, correct=correct)
    if len(known) > 1:
        numbers = " and ".join(map(str, sorted(known)))
        raise StoreError(f"cells of one defense were scored by {numbers} draws; run the suite again")
    (n,) = known
    first, *others = (_drawn(restricted(own, common), n) for own in outcomes)
    selection, scored = bytearray(first.selection), bytearray(first.scored)
    for own in others:
        for place, count in enumerate(own.selection):
            if count <= selection[place]:
                selection[place], scored[place] = count, own.scored[place]
    draws = Draws(n=n, selection=bytes(selection), scored=bytes(scored))
    return with_draws(outcomes[0].size, common, draws)


def with_draws(size: int, evaluated: int, draws: Draws) -> Outcomes:
    """Return outcomes that count as correct what most of the scored draws classify correctly."""
    right = (image for image, hits in zip(indices(evaluated), draws.scored, strict=True) if 2 * hits > draws.n)
    return Outcomes(size=size, evaluated=evaluated, correct=mask_of(size, right), draws=draws)


def paired(pairs: Sequence[tuple[Outcomes, Outcomes]]) -> Paired | None:
    """Return second minus first over one pair of outcomes per seed; None where no image was evaluated by all of them.

    Per image, the difference is the mean over seeds and draws, between -1 and 1; counted in whole numbers, so that what
    is equal is found equal.
    """
    common = reduce(and_, (own.evaluated for both in pairs for own in both))
    n = common.bit_count()
    if n == 0:
        return None
    kept = [tuple(restricted(own, common) for own in both) for both in pairs]
    unit = lcm(*(own.draws.n for both in kept for own in both if own.draws is not None))
    sums: dict[int, int] = {}
    for first, second in kept:
        if first.draws is None and second.draws is None:
            for gained, mask in ((unit, second.correct & ~first.correct), (-unit, first.correct & ~second.correct)):
                for image in indices(mask):
                    sums[image] = sums.get(image, 0) + gained
            continue
        one, two = (_drawn(own, 1) for own in (first, second))
        for image, before, after in zip(indices(common), one.scored, two.scored, strict=True):
            sums[image] = sums.get(image, 0) + after * (unit // two.n) - before * (unit // one.n)
    runs = len(pairs) * unit
    squares = sum(own * own for own in sums.values()) / runs**2
    value, low, high = paired_mean_difference(sum(sums.values()) / runs, squares, n)
    return Paired(
        n=n,
        value=value,
        low=low,
        high=high,
        more=sum(own > 0 for own in sums.values()),
        fewer=sum(own < 0 for own in sums.values()),
        right=tuple((first.right, second.right) for first, second in kept),
    )


def _drawn(outcomes: Outcomes, n: int) -> Draws:
    """Return the counts of a cell; one without draws is right in all of ``n`` or in none."""
    if outcomes.draws is not None:
        return outcomes.draws
    counts = bytes(n if outcomes.correct >> image & 1 else 0 for image in indices(outcomes.evaluated))
    return Draws(n=n, selection=counts, scored=counts)
