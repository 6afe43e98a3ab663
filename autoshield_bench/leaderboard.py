"""Leaderboards: what the cells of a suite say about each defense, with intervals and caveats. Pure functions.

What a worst case and an illusion gap are, ``scores`` defines. Here a row has them only where a white-box cell was run
and every planned cell of the row is well: a number taken over fewer attacks than planned would flatter the defense.
The worst case of a defense that detects is the joint game of ``joint``. Who has a rank, ``ranks`` decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autoshield_bench.joint import (
    DetectionAt,
    column_of,
    detection_at,
    faced,
    joint_under,
    ranked_rate,
    rates_of,
    takes_part,
)
from autoshield_bench.labels import DRAWN, gain_words, labels_of, remarks_of, route_remarks
from autoshield_bench.outcomes import Outcomes
from autoshield_bench.ranks import EvidenceCost, cost_of, evidence_by_place, own_evidence, ranked, reasons
from autoshield_bench.readings import Metric, Passes, Quality, Reading, metrics_of, passes_of, read, unique
from autoshield_bench.results import CellId, CellRecord, ResultSet
from autoshield_bench.scores import (
    Absent,
    Column,
    Gain,
    Gap,
    Score,
    WorstCase,
    gain_over,
    score_of,
    worst_case,
)
from autoshield_bench.verdicts import EvidenceId, EvidenceRecord, Level

_ACCESS_ORDER = ("gray-box", "transfer", "black-box", "white-box")

Cells = Mapping[Column | None, Sequence[CellId]]
"""A row's planned cells by column; None is the column of clean images."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One defense."""

    defense: str
    clean: Score | Absent
    scores: tuple[Score | Absent, ...]
    """By column."""
    worst_case: Score | None
    illusion_gap: Gap | None
    examples: Column | None
    """Where the adversarial images of ``quality`` come from: the gray-box column of lowest accuracy, else white-box."""
    quality: tuple[Quality, ...]
    """By ``Leaderboard.quality``."""
    predictions: tuple[tuple[Reading, ...], ...]
    """By ``Leaderboard.predictions``: the reading on clean images, then one per column."""
    passes: Passes
    labels: tuple[str, ...]
    """Caveats in words, such as ``upper bound``."""
    rank: int | None = None
    """By worst case, equal ones alike; None where the evidence does not carry it."""
    unranked: tuple[str, ...] = ()
    """Why there is no rank."""
    evidence: tuple[EvidenceRecord, ...] = ()
    """Every verdict on the worst case, per training seed."""
    gain: Gain | None = None
    """Over the defense without stages; None for that one itself, and where either has no worst case."""
    detection: tuple[DetectionAt, ...] = ()
    """By nominal false-positive rate; empty where the defense does not detect."""


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """All defenses under one threat, by worst case, ranked or not; rows without one come last."""

    dataset: str
    model: str
    norm: str | None
    """None where nothing but clean cells was planned."""
    eps: float | None
    seeds: tuple[int, ...]
    test_size: int
    """Images of the whole test set; 0 where no cell is well."""
    columns: tuple[Column, ...]
    """Gray-box before white-box."""
    rows: tuple[Row, ...]
    quality: tuple[Metric, ...]
    """Pair metrics, and those that were unavailable throughout."""
    predictions: tuple[Metric, ...]
    """Prediction metrics that say more than the accuracies do."""
    remarks: tuple[str, ...]
    """One sentence per column that is scored in a way of its own: by distance, within a query budget, with targets,
    along several gradient routes; and one where smaller eps take part in the worst case."""
    evidence: EvidenceCost
    """How much of it was taken."""


_CARRIED = "What falls at a smaller eps of this norm counts as fallen in the worst case here."


def build(results: ResultSet) -> list[Leaderboard]:
    """Return one leaderboard per data set, model, norm and eps, in the plan's order."""
    planned = unique([record.cell for record in results.records] + list(results.missing))
    records = {record.cell: record for record in results.records}
    evidence = evidence_by_place(results)
    boards = []
    for dataset, model in unique((cell.dataset, cell.model) for cell in planned):
        here = [cell for cell in planned if (cell.dataset, cell.model) == (dataset, model)]
        threats = unique((cell.norm, cell.eps) for cell in here if cell.attack is not None) or [(None, None)]
        for norm, eps in threats:
            cells = [cell for cell in here if cell.attack is None or (cell.norm, cell.eps) == (norm, eps)]
            smaller = [cell for cell in here if cell.norm == norm and (cell.eps or 0.0) < (eps or 0.0)]
            easier = [records[cell] for cell in smaller if cell in records]
            board = _board(cells, records, easier, results.evidence_level, evidence)
            boards.append(replace(board, remarks=(*board.remarks, *_class_remarks(results))))
    return boards


def _class_remarks(results: ResultSet) -> list[str]:
    if not results.other_classes:
        return []
    others = ", ".join(results.other_classes)
    return [f"These figures are of the numeric class {results.numeric_class}; those of {others} lie beside."]


def _board(
    cells: Sequence[CellId],
    records: Mapping[CellId, CellRecord],
    easier: Sequence[CellRecord],
    level: Level,
    evidence: Mapping[EvidenceId, EvidenceRecord],
) -> Leaderboard:
    attacked = [cell for cell in cells if cell.attack is not None]
    columns = unique(map(column_of, attacked))
    columns.sort(key=lambda column: _rank(column.access))
    found = [records[cell] for cell in cells if cell in records]
    pair, prediction = metrics_of(found)
    made = [
        _row(
            [cell for cell in cells if cell.defense == defense],
            records,
            [record for record in easier if record.cell.defense == defense],
            columns,
            pair,
            prediction,
        )
        for defense in unique(cell.defense for cell in cells)
    ]
    rows = _with_gains(made, found)
    # A metric that repeats the accuracies in every cell (accuracy itself) would print the same table twice.
    news = [i for i in range(len(prediction)) if not _repeats(rows, i, columns)]
    rows = [_with_predictions(row, news) for row in rows]
    threat = (attacked[0].norm, attacked[0].eps) if attacked else (None, None)
    rows = [
        _with_evidence(
            row, own_evidence([cell for cell in cells if cell.defense == row.defense], threat, evidence), level
        )
        for row in rows
    ]
    own_shares = [row.worst_case.share if row.worst_case and not row.unranked else None for row in rows]
    rows = [replace(row, rank=rank) for row, rank in zip(rows, ranked(own_shares), strict=True)]
    rows.sort(key=lambda row: -row.worst_case.share if row.worst_case else math.inf)
    return Leaderboard(
        dataset=cells[0].dataset,
        model=cells[0].model,
        norm=threat[0],
        eps=threat[1],
        seeds=tuple(unique(cell.seed for cell in cells)),
        test_size=max((record.outcomes.size for record in found if record.outcomes), default=0),
        columns=tuple(columns),
        rows=tuple(rows),
        quality=tuple(pair),
        predictions=tuple(prediction[i] for i in news),
        remarks=tuple(unique([*remarks_of(found), *route_remarks(found), *([_CARRIED] if easier else [])])),
        evidence=cost_of(level, (record for row in rows for record in row.evidence)),
    )


def _row(
    cells: Sequence[CellId],
    records: Mapping[CellId, CellRecord],
    easier: Sequence[CellRecord],
    columns: Sequence[Column],
    pair: Sequence[Metric],
    prediction: Sequence[Metric],
) -> tuple[Row, Mapping[int, Outcomes]]:
    """Return the row of one defense, and by seed what stands in its worst case.

    ``easier`` are its cells at smaller eps of the same norm: what fell there lies in this ball too.
    """
    by_column: dict[Column | None, list[CellId]] = {None: []}
    for cell in cells:
        column = None if cell.attack is None else column_of(cell)
        by_column.setdefault(column, []).append(cell)
    well = {
        column: [records[cell] for cell in own if cell in records and records[cell].outcomes is not None]
        for column, own in by_column.items()
    }
    own = [record for found in well.values() for record in found]
    scores = [_column_score(by_column.get(column, ()), records, well[None]) for column in columns]
    rate = ranked_rate(own)
    incomplete = _incomplete(by_column, records, rate)
    worst = WorstCase(standing={}) if incomplete else worst_case(faced(own, rate), faced([*well[None], *easier], rate))
    examples = _examples(columns, scores)
    crafted = well.get(examples, []) if examples else []
    found = [records[cell] for cell in cells if cell in records]
    row = Row(
        defense=cells[0].defense,
        clean=_column_score(by_column[None], records, ()),
        scores=tuple(scores),
        worst_case=worst.score,
        illusion_gap=worst.gap,
        examples=examples,
        quality=tuple(
            Quality(
                before=read(crafted, metric.label, "clean-adversarial"),
                after=read(crafted, metric.label, "clean-purified"),
                clean=read(well[None], metric.label, "clean-purified"),
            )
            for metric in pair
        ),
        predictions=tuple(
            tuple(read(well.get(column, []), metric.label, "predictions") for column in (None, *columns))
            for metric in prediction
        ),
        passes=Passes(passes_of(found, "attack"), passes_of(found, "score")),
        labels=labels_of(by_column, well, worst.score, incomplete, rate),
        detection=_detection(by_column, records, own, easier, dict(zip(columns, scores, strict=True))),
    )
    return row, worst.standing


def _column_score(
    cells: Sequence[CellId], records: Mapping[CellId, CellRecord], clean: Sequence[CellRecord]
) -> Score | Absent:
    """Return a column's share; that of a detector-aware one is of the joint game, which needs the ``clean`` cells."""
    found = [records[cell] for cell in cells if cell in records]
    before = {record.cell.seed: record for record in clean}
    outcomes = []
    for record in found:
        own = record.outcomes
        if own is not None and record.cell.fpr is not None:
            own = joint_under(record, before[record.cell.seed]) if record.cell.seed in before else None
        if own is not None:
            outcomes.append((record.cell.seed, own))
    if outcomes:
        score = score_of([seed for seed, _ in outcomes], [(own.right, own.n) for _, own in outcomes])
        return score or Absent("no images")
    if any(record.outcomes is not None for record in found):
        return Absent("missing", "the clean cell, which the joint game begins with")
    if found:
        return Absent("failed", found[0].error or "")
    return Absent("missing" if cells else "not planned")


def _detection(
    by_column: Cells,
    records: Mapping[CellId, CellRecord],
    well: Sequence[CellRecord],
    easier: Sequence[CellRecord],
    scores: Mapping[Column, Score | Absent],
) -> tuple[DetectionAt, ...]:
    shares = {column: score.share for column, score in scores.items() if isinstance(score, Score)}
    return tuple(
        detection_at(rate, well, shares, whole=not _incomplete(by_column, records, rate), easier=easier)
        for rate in rates_of(well)
    )


def _incomplete(by_column: Cells, records: Mapping[CellId, CellRecord], rate: float | None) -> list[str]:
    """Return one phrase per column that lacks a cell, such as ``pgd/white-box failed (seed 1)``.

    Detector-aware columns of other rates than ``rate`` are no part of the worst case and may lack what they like.
    """
    seeds = {cell.seed for own in by_column.values() for cell in own}
    phrases = []
    for column, cells in by_column.items():
        if column is not None and not takes_part(column.fpr, rate):
            continue
        name = "clean" if column is None else str(column)
        bad: dict[str, list[int]] = {}
        for cell in cells:
            if cell not in records:
                bad.setdefault("missing", []).append(cell.seed)
            elif records[cell].outcomes is None:
                bad.setdefault("failed", []).append(cell.seed)
        absent = seeds - {cell.seed for cell in cells}
        if absent:
            bad.setdefault("missing", []).extend(sorted(absent))
        for what, where in bad.items():
            which = f" (seed {', '.join(map(str, where))})" if len(seeds) > 1 else ""
            phrases.append(f"{name} {what}{which}")
    return phrases


def _examples(columns: Sequence[Column], scores: Sequence[Score | Absent]) -> Column | None:
    scored = [
        (column, score.share)
        for column, score in zip(columns, scores, strict=True)
        if isinstance(score, Score) and column.fpr is None
    ]
    gray = [entry for entry in scored if entry[0].access == "gray-box"]
    return min(gray or scored, key=lambda entry: entry[1], default=(None, 0.0))[0]


def _repeats(rows: Sequence[Row], metric: int, columns: Sequence[Column]) -> bool:
    """Return whether a metric says in every cell what the accuracies say.

    Accuracies of a joint game or over several draws are no plain ones, so that nothing repeats them: the rest tells.
    """
    plain = [True, *(column.fpr is None for column in columns)]
    compared = alike = 0
    # What the draws of one row blur, the others tell; where there are no others, the metric is shown.
    drawn = [any(label.endswith(DRAWN) for label in row.labels) for row in rows]
    for row, blurred in zip(rows, drawn, strict=True):
        shown = zip(row.predictions[metric], (row.clean, *row.scores), plain, strict=True)
        for reading, score, comparable in shown:
            if not comparable or (blurred and not all(drawn)):
                continue
            compared += 1
            alike += reading.value is None or (isinstance(score, Score) and abs(reading.value - score.share) < 1e-6)
    return compared == alike


def _with_gains(made: Sequence[tuple[Row, Mapping[int, Outcomes]]], records: Sequence[CellRecord]) -> list[Row]:
    """Say of each row what it gains over the defense without stages."""
    bare = {record.cell.defense for record in records if record.facts.get("defense") == []}
    undefended = next(((row.defense, standing) for row, standing in made if row.defense in bare), None)
    rows = []
    for row, standing in made:
        gain = None
        if undefended is not None and row.defense not in bare:
            gain = gain_over(*undefended, standing)
        rows.append(row if gain is None else replace(row, gain=gain, labels=(*row.labels, gain_words(gain))))
    return rows


def _with_evidence(row: Row, evidence: tuple[EvidenceRecord, ...], level: Level) -> Row:
    """Say why a row has no rank, where it has none."""
    seeds = row.worst_case.seeds if row.worst_case else tuple(record.where.seed for record in evidence)
    words = "" if row.worst_case else next(filter(_says_no_worst_case, row.labels), "no attack was run")
    return replace(row, evidence=evidence, unranked=reasons(level, evidence, seeds, words))


def _says_no_worst_case(label: str) -> bool:
    return label.startswith(("incomplete: ", "gray-box only", "no white-box attack", "no image was evaluated"))


def _with_predictions(row: Row, kept: Sequence[int]) -> Row:
    return replace(row, predictions=tuple(row.predictions[i] for i in kept))


def _rank(access: str) -> int:
    return _ACCESS_ORDER.index(access) if access in _ACCESS_ORDER else len(_ACCESS_ORDER)
