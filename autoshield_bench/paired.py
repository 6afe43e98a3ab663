"""One figure of A and of B on the same images: the difference, its interval, and an exact test of whether it is real.

Per image, the sum over training seeds of (B right - A right) is taken; of a stochastic pipeline, the share of its fresh
draws that are right. Among the images where it is not 0, it is as often above as below if neither is better: a sign
test, which counts images and never images times seeds, and for one seed without draws is McNemar's exact test. The
interval is for the choice of images alone; what the seeds do stands apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from autoshield_bench.outcomes import Outcomes
from autoshield_bench.standing import paired
from autoshield_bench.statistics import mcnemar_exact, wilson_at

LEVEL = 0.05
"""Chance, over a whole table, of calling any difference real where there is none."""

Pair = tuple[int, Outcomes, Outcomes]
"""A training seed with what A and B came to."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What is compared."""

    first: str
    """Defense of A, by its label."""
    second: str
    """Defense of B."""
    dataset: str
    model: str
    quantity: Literal["clean", "attack", "worst case"]
    attack: str | None = None
    access: str | None = None
    norm: str | None = None
    eps: float | None = None
    fpr: float | None = None
    """Nominal false-positive rate of a detector-aware attack; None for any other."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """B minus A in one place."""

    place: Place
    shares: tuple[float, float]
    """Share of images that A and B classify correctly, averaged over seeds."""
    share_intervals: tuple[tuple[float, float], tuple[float, float]]
    """95 % Wilson interval of each."""
    value: float
    low: float
    high: float
    """95 % interval of ``value`` for the choice of images."""
    n: int
    """Images that both evaluated, for every seed."""
    more: int
    """Images that B classifies correctly more often than A does, over seeds and draws."""
    fewer: int
    """Images that A classifies correctly more often than B does."""
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    """Difference per seed, in the order of ``seeds``."""
    spread: float | None
    """Sample standard deviation over seeds; None for one seed."""
    p: float
    adjusted: float
    """p value adjusted for the whole table; as it is until the table is complete."""
    other_attack: tuple[str, ...] = ()
    """How the attacks on A and B differ; the figures were then taken under different attacks."""
    remarks: tuple[str, ...] = ()
    """Further caveats in words."""

    @property
    def verdict(self) -> Literal["better", "worse", "not shown"]:
        """Whether B is really better or worse than A. Depends on the adjusted p value alone."""
        if self.adjusted >= LEVEL:
            return "not shown"
        return "better" if self.more > self.fewer else "worse"

    @property
    def contradicts(self) -> bool:
        """Whether the mean does not go where the images go that differ; possible with several seeds only."""
        return self.value * (self.more - self.fewer) <= 0 and self.more != self.fewer


def difference_of(place: Place, pairs: Sequence[Pair]) -> Difference | None:
    """Return B minus A over one pair of outcomes per seed; None where no image was evaluated by all of them."""
    found = paired([(one, two) for _, one, two in pairs])
    if found is None:
        return None
    n = found.n
    one, two = (fmean(own[side] for own in found.right) / n for side in (0, 1))
    values = tuple((own[1] - own[0]) / n for own in found.right)
    p = mcnemar_exact(found.more, found.fewer)
    return Difference(
        place=place,
        shares=(one, two),
        share_intervals=(wilson_at(one, n), wilson_at(two, n)),
        value=found.value,
        low=found.low,
        high=found.high,
        n=n,
        more=found.more,
        fewer=found.fewer,
        seeds=tuple(seed for seed, *_ in pairs),
        values=values,
        spread=stdev(values) if len(values) > 1 else None,
        p=p,
        adjusted=p,
    )
