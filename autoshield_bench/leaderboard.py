"""Leaderboards: what the cells of a suite say about each defense, with intervals and caveats. Pure functions.

What a worst case and an illusion gap are, ``scores`` defines. Here a row has them only where a white-box cell was run
and every planned cell of the row is well: a number taken over fewer attacks than planned would flatter the defense.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoshield_bench.readings import Metric, Passes, Quality, Reading, metrics_of, passes_of, read, unique
from autoshield_bench.results import CellId, CellRecord, ResultSet
from autoshield_bench.scores import Absent, Gap, Score, score_of, significantly_above, worst_case

_ACCESS_ORDER = ("gray-box", "transfer", "black-box", "white-box")


@dataclass(frozen=True)
class Column:
    """One attack, by its label, at one access level."""

    attack: str
    access: str

    def __str__(self) -> str:
        return f"{self.attack}/{self.access}"


Cells = Mapping[Column | None, Sequence[CellId]]
"""A row's planned cells by column; None is the column of clean images."""

Records = Mapping[Column | None, Sequence[CellRecord]]
"""Those of them that are well."""


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


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """All defenses under one threat, by worst case; rows without one come last."""

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
    """One sentence per column that is scored in a way of its own: by distance, within a query budget, with targets."""


def build(results: ResultSet) -> list[Leaderboard]:
    """Return one leaderboard per data set, model, norm and eps, in the plan's order."""
    planned = unique([record.cell for record in results.records] + list(results.missing))
    records = {record.cell: record for record in results.records}
    boards = []
    for dataset, model in unique((cell.dataset, cell.model) for cell in planned):
        here = [cell for cell in planned if (cell.dataset, cell.model) == (dataset, model)]
        threats = unique((cell.norm, cell.eps) for cell in here if cell.attack is not None) or [(None, None)]
        for norm, eps in threats:
            cells = [cell for cell in here if cell.attack is None or (cell.norm, cell.eps) == (norm, eps)]
            boards.append(_board(cells, records))
    return boards


def _board(cells: Sequence[CellId], records: Mapping[CellId, CellRecord]) -> Leaderboard:
    attacked = [cell for cell in cells if cell.attack is not None]
    columns = unique(Column(str(cell.attack), str(cell.access)) for cell in attacked)
    columns.sort(key=lambda column: _rank(column.access))
    found = [records[cell] for cell in cells if cell in records]
    pair, prediction = metrics_of(found)
    rows = [
        _row([cell for cell in cells if cell.defense == defense], records, columns, pair, prediction)
        for defense in unique(cell.defense for cell in cells)
    ]
    # A metric that repeats the accuracies in every cell (accuracy itself) would print the same table twice.
    news = [i for i in range(len(prediction)) if not all(_repeats(row, i) for row in rows)]
    rows = [_with_predictions(row, news) for row in rows]
    rows.sort(key=lambda row: -row.worst_case.share if row.worst_case else math.inf)
    return Leaderboard(
        dataset=cells[0].dataset,
        model=cells[0].model,
        norm=attacked[0].norm if attacked else None,
        eps=attacked[0].eps if attacked else None,
        seeds=tuple(unique(cell.seed for cell in cells)),
        test_size=max((record.outcomes.size for record in found if record.outcomes), default=0),
        columns=tuple(columns),
        rows=tuple(rows),
        quality=tuple(pair),
        predictions=tuple(prediction[i] for i in news),
        remarks=tuple(unique(_remarks(found))),
    )


def _remarks(records: Sequence[CellRecord]) -> Iterator[str]:
    for record in records:
        facts = record.facts.get("attack")
        if not isinstance(facts, Mapping):
            continue
        column = Column(str(record.cell.attack), str(record.cell.access))
        if facts.get("search") == "minimum-norm":
            yield f"{column} finds the nearest adversarial point; an image falls where that lies within eps."
        if isinstance(facts.get("queries"), int):
            yield f"{column} may ask for {facts['needs']} {facts['queries']:,} times per image."
        if facts.get("goal") == "targeted":
            yield f"{column} drives each image to one wrong class, drawn at random."


def _row(
    cells: Sequence[CellId],
    records: Mapping[CellId, CellRecord],
    columns: Sequence[Column],
    pair: Sequence[Metric],
    prediction: Sequence[Metric],
) -> Row:
    by_column: dict[Column | None, list[CellId]] = {None: []}
    for cell in cells:
        column = None if cell.attack is None else Column(cell.attack, str(cell.access))
        by_column.setdefault(column, []).append(cell)
    well = {
        column: [records[cell] for cell in own if cell in records and records[cell].outcomes is not None]
        for column, own in by_column.items()
    }
    scores = [_column_score(by_column.get(column, ()), records) for column in columns]
    incomplete = _incomplete(by_column, records)
    worst, gap = (None, None) if incomplete else worst_case(record for own in well.values() for record in own)
    examples = _examples(columns, scores)
    crafted = well.get(examples, []) if examples else []
    found = [records[cell] for cell in cells if cell in records]
    return Row(
        defense=cells[0].defense,
        clean=_column_score(by_column[None], records),
        scores=tuple(scores),
        worst_case=worst,
        illusion_gap=gap,
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
        labels=_labels(by_column, well, worst, incomplete),
    )


def _column_score(cells: Sequence[CellId], records: Mapping[CellId, CellRecord]) -> Score | Absent:
    found = [records[cell] for cell in cells if cell in records]
    outcomes = [(record.cell.seed, record.outcomes) for record in found if record.outcomes is not None]
    if outcomes:
        score = score_of([seed for seed, _ in outcomes], [(own.hits, own.n) for _, own in outcomes])
        return score or Absent("no images")
    if found:
        return Absent("failed", found[0].error or "")
    return Absent("missing" if cells else "not planned")


def _incomplete(by_column: Cells, records: Mapping[CellId, CellRecord]) -> list[str]:
    """Return one phrase per column that lacks a cell, such as ``pgd/white-box failed (seed 1)``."""
    seeds = {cell.seed for own in by_column.values() for cell in own}
    phrases = []
    for column, cells in by_column.items():
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


def _labels(
    by_column: Cells,
    well: Records,
    worst: Score | None,
    incomplete: Sequence[str],
) -> tuple[str, ...]:
    labels = []
    if worst is not None:
        # A strong attack that cannot see the defense says nothing about how low the number can fall.
        strong = {
            record.cell.seed
            for own in well.values()
            for record in own
            if record.strong and record.cell.access == "white-box"
        }
        if strong != set(worst.seeds):
            labels.append("upper bound")
    elif any(by_column) and not any(column and column.access == "white-box" for column in by_column):
        seen = {column.access for column in by_column if column}
        labels.append("gray-box only" if seen == {"gray-box"} else "no white-box attack")
    elif any(by_column) and not incomplete:
        labels.append("no image was evaluated by every cell")
    facts = [record.facts.get("trained_on") for own in well.values() for record in own]
    trained = [str(fact) for fact in unique(map(_joined, facts)) if fact not in ("", "nothing")]
    labels += [f"trained on {what}" for what in trained]
    if any(record.facts.get("stochastic") is True for own in well.values() for record in own):
        labels.append("stochastic, scored on one draw per image")
    labels += [f"white-box {attack} weaker than gray-box: gradients masked?" for attack in _masked(well)]
    labels += [f"{column} irreproducible" for column, own in well.items() if any(map(_irreproducible, own))]
    if incomplete:
        labels.append("incomplete: " + ", ".join(incomplete))
    return tuple(labels)


def _irreproducible(record: CellRecord) -> bool:
    attack = record.facts.get("attack")
    return isinstance(attack, Mapping) and attack.get("randomness") == "irreproducible"


def _masked(well: Records) -> list[str]:
    """Return the attacks that break significantly more with less knowledge, on the same images and for some seed.

    An attack that sees the defense can do whatever one that does not see it can; if it does worse, its gradients are of
    no use to it, and the defense's white-box figure shows that rather than robustness.
    """
    masked = []
    for column, white in well.items():
        if column is None or column.access != "white-box":
            continue
        gray = {record.cell.seed: record for record in well.get(Column(column.attack, "gray-box"), ())}
        for record in white:
            other = gray.get(record.cell.seed)
            if other is not None and significantly_above(record.outcomes, other.outcomes):
                masked.append(column.attack)
                break
    return masked


def _joined(fact: Any) -> str:
    return ", ".join(map(str, fact)) if isinstance(fact, list | tuple) else str(fact or "")


def _examples(columns: Sequence[Column], scores: Sequence[Score | Absent]) -> Column | None:
    scored = [(column, score.share) for column, score in zip(columns, scores, strict=True) if isinstance(score, Score)]
    gray = [entry for entry in scored if entry[0].access == "gray-box"]
    return min(gray or scored, key=lambda entry: entry[1], default=(None, 0.0))[0]


def _repeats(row: Row, metric: int) -> bool:
    shown = zip(row.predictions[metric], (row.clean, *row.scores), strict=True)
    return all(
        reading.value is None or (isinstance(score, Score) and abs(reading.value - score.share) < 1e-6)
        for reading, score in shown
    )


def _with_predictions(row: Row, kept: Sequence[int]) -> Row:
    return replace(row, predictions=tuple(row.predictions[i] for i in kept))


def _rank(access: str) -> int:
    return _ACCESS_ORDER.index(access) if access in _ACCESS_ORDER else len(_ACCESS_ORDER)
