"""Detectors: the joint game of flagging and classifying, and what a detector catches of which attack.

At a nominal false-positive rate, an attacked image is defended where it is flagged or classified correctly, and lost
from the start where its clean version is flagged or misclassified: whoever flags everything protects nothing. The game
is played against attacks that know of no detector and against those that were made to stay under that rate's
thresholds; attacks made for another rate's do not take part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from autoshield_bench.detection import RANKED_RATE, RATES
from autoshield_bench.outcomes import Outcomes
from autoshield_bench.results import CellId, CellRecord
from autoshield_bench.scores import Column, Faced, Score, score_of, worst_case
from autoshield_bench.standing import standing, with_draws
from autoshield_bench.statistics import clopper_pearson


@dataclass(frozen=True, kw_only=True)
class Caught:
    """What the detectors make of one attack's successful examples: right when clean, misclassified now."""

    column: Column
    share: float | None
    """Share of them that is flagged, averaged over seeds; None where there is none."""
    n: int
    """Successful examples, the fewest of any seed that has some."""
    auroc: tuple[tuple[str, float | None], ...]
    """By component that detects, averaged over seeds; None where nothing succeeded."""


@dataclass(frozen=True, kw_only=True)
class FalsePositives:
    """Share of clean test images that is flagged, averaged over seeds, with its 95 % Clopper-Pearson interval."""

    share: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class DetectionAt:
    """What a defense's detectors are worth at one nominal false-positive rate."""

    rate: float
    not_applicable: str | None
    """Why there is no threshold; nothing below is known then."""
    false_positives: FalsePositives | None = None
    unaware: Caught | None = None
    """Of the white-box attack that leaves the least classified correctly, not knowing of the detectors."""
    aware: Caught | None = None
    """Of the attack that tries to stay under this rate's thresholds."""
    joint: Score | None = None
    """Joint robust accuracy; None where a cell that belongs to it is not well, or no white-box attack was run."""


def percent(rate: float) -> str:
    """Return a false-positive rate as a reader sees it, such as ``0.1 %``."""
    return f"{100 * rate:g} %"


def detects(records: Iterable[CellRecord]) -> bool:
    """Return whether cells are of a defense that detects."""
    return any(record.detection is not None for record in records)


def obstacle(records: Iterable[CellRecord], rate: float) -> str | None:
    """Return why a defense that detects has no threshold at a rate; None where it has one everywhere."""
    for record in records:
        if record.outcomes is None:
            continue
        if record.detection is None:
            return "not every cell recorded flags"
        if str(rate) not in record.detection.flagged:
            return record.detection.not_applicable.get(str(rate)) or "no flags were recorded"
    return None


def ranked_rate(records: Sequence[CellRecord]) -> float | None:
    """Return the rate of the joint game that is a defense's worst case; None where flags do not count in it."""
    own = [record for record in records if takes_part(record.cell.fpr, RANKED_RATE)]
    return RANKED_RATE if detects(own) and obstacle(own, RANKED_RATE) is None else None


def takes_part(fpr: float | None, rate: float | None) -> bool:
    """Return whether a cell, detector-aware for ``fpr`` or not at all, belongs to the game at ``rate``."""
    return fpr is None or fpr == rate


def faced(records: Sequence[CellRecord], rate: float | None) -> list[Faced]:
    """Return what the cells of one defense and threat say in the worst case, the clean ones first as they come.

    ``rate`` None ignores flags. With one, every attacked cell is taken together with its seed's clean cell.
    """
    well = [record for record in records if takes_part(record.cell.fpr, rate)]
    clean = {record.cell.seed: won(record, rate) for record in well if record.cell.attack is None}
    made = []
    for record in well:
        if record.outcomes is None:
            continue
        own = won(record, rate) or record.outcomes
        before = clean.get(record.cell.seed)
        if record.cell.attack is not None and rate is not None and before is not None:
            own = standing([before, own])
        made.append(Faced(record.cell.seed, record.cell.access, own))
    return made


def won(record: CellRecord, rate: float | None) -> Outcomes | None:
    """Return one cell's outcomes in the joint game at a rate: an attacked image counts as right where it is classified
    correctly or flagged, a clean one where it is classified correctly and not flagged. None where the cell is not well.
    """
    own = record.outcomes
    if own is None or rate is None or record.detection is None:
        return own
    draws = record.detection.won.get(str(rate))
    if draws is not None:
        return with_draws(own.size, own.evaluated, draws)
    flagged = _flagged(record, rate) & own.evaluated
    correct = own.correct & ~flagged if record.cell.attack is None else own.correct | flagged
    return Outcomes(size=own.size, evaluated=own.evaluated, correct=correct)


def joint_under(record: CellRecord, clean: CellRecord) -> Outcomes | None:
    """Return the joint game against one detector-aware cell; None where it or its clean cell is not well."""
    found = faced([clean, record], record.cell.fpr)
    return found[-1].outcomes if len(found) == 2 else None


def detection_at(
    rate: float,
    records: Sequence[CellRecord],
    shares: Mapping[Column, float],
    *,
    whole: bool,
    easier: Sequence[CellRecord] = (),
) -> DetectionAt:
    """Return the figures of a defense that detects, from its cells that are well.

    ``shares`` gives each column's robust accuracy, by which the worst is chosen; ``whole`` says whether every planned
    cell that belongs to the joint game is among the records. ``easier`` are those of smaller eps.
    """
    reason = obstacle((record for record in records if takes_part(record.cell.fpr, rate)), rate)
    if reason is not None:
        return DetectionAt(rate=rate, not_applicable=reason)
    clean = {record.cell.seed: record for record in records if record.cell.attack is None}
    white = [column for column in shares if column.access == "white-box" and column.fpr is None]
    aware = [column for column in shares if column.fpr == rate]
    return DetectionAt(
        rate=rate,
        not_applicable=None,
        false_positives=_false_positives(list(clean.values()), rate),
        unaware=_caught(min(white, key=shares.__getitem__, default=None), clean, records, rate),
        aware=_caught(min(aware, key=shares.__getitem__, default=None), clean, records, rate),
        joint=worst_case(faced(records, rate), faced([*clean.values(), *easier], rate)).score if whole else None,
    )


def rates_of(records: Iterable[CellRecord]) -> list[float]:
    """Return the rates at which a defense is judged, in ascending order."""
    own = [record.detection for record in records if record.detection is not None]
    known = {rate for found in own for rate in (*found.flagged, *found.not_applicable)}
    return [rate for rate in RATES if str(rate) in known]


def column_of(cell: CellId) -> Column:
    """Return where an attacked cell stands."""
    return Column(str(cell.attack), str(cell.access), cell.fpr)


def _flagged(record: CellRecord, rate: float) -> int:
    return record.detection.flagged.get(str(rate), 0) if record.detection is not None else 0


def _false_positives(clean: Sequence[CellRecord], rate: float) -> FalsePositives | None:
    counts = [
        ((_flagged(own, rate) & own.outcomes.evaluated).bit_count(), own.outcomes.n) for own in clean if own.outcomes
    ]
    score = score_of([own.cell.seed for own in clean if own.outcomes], counts)
    if score is None:
        return None
    # A mean over seeds lies between two counts: the interval covers both.
    ends = math.floor(score.share * score.n + 1e-9), math.ceil(score.share * score.n - 1e-9)
    low, high = clopper_pearson(ends[0], score.n)[0], clopper_pearson(ends[1], score.n)[1]
    return FalsePositives(share=score.share, low=low, high=high, n=score.n)


def _caught(
    column: Column | None, clean: Mapping[int, CellRecord], records: Iterable[CellRecord], rate: float
) -> Caught | None:
    if column is None:
        return None
    shares, counts = [], []
    auroc: dict[str, list[float]] = {}
    for record in records:
        before = clean.get(record.cell.seed)
        if record.cell.attack is None or column_of(record.cell) != column or before is None:
            continue
        if record.outcomes is None or before.outcomes is None or record.detection is None:
            continue
        fooled = record.outcomes.evaluated & ~record.outcomes.correct & before.outcomes.correct
        if fooled:
            shares.append((_flagged(record, rate) & fooled).bit_count() / fooled.bit_count())
            counts.append(fooled.bit_count())
        for component, value in record.detection.auroc.items():
            auroc.setdefault(component, []).extend([] if value is None else [value])
    return Caught(
        column=column,
        share=fmean(shares) if shares else None,
        n=min(counts, default=0),
        auroc=tuple((name, fmean(values) if values else None) for name, values in auroc.items()),
    )
