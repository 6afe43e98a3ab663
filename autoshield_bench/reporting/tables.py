"""Results for papers and programs: Markdown, LaTeX, HTML tables, CSV and JSON as text.

CSV and JSON hold everything whatever the view: one line, or one entry, per figure.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

from autoshield_bench.joint import DetectionAt
from autoshield_bench.leaderboard import Leaderboard, Row, build
from autoshield_bench.readings import Reading
from autoshield_bench.reporting.detection import detection_grid
from autoshield_bench.reporting.evidence import evidence_grid, routes_grid, verdict_grid
from autoshield_bench.reporting.grids import Grid, accuracy_grid, passes_grid, prediction_grid, problems, quality_grid
from autoshield_bench.reporting.sweep import sweep_grids, sweeps
from autoshield_bench.reporting.text import MARKUPS, Markup, Plain, csv_field, message
from autoshield_bench.results import ResultSet
from autoshield_bench.scores import Absent, Column, Gap, Score
from autoshield_bench.store import rounded
from autoshield_bench.verdicts import EvidenceRecord

View = Literal["auto", "leaderboard", "sweep"]

LEADERBOARD_SCHEMA = "aubench.leaderboard/1"

_TABULATE: dict[Markup, str] = {"markdown": "github", "latex": "latex_raw", "html": "unsafehtml"}

_CSV_HEADER = (
    "suite", "dataset", "model", "norm", "eps", "defense", "quantity", "attack", "access", "images",
    "state", "value", "low", "high", "n", "sd", "seeds", "labels", "rank", "fpr",
)  # fmt: skip


def is_sweep(results: ResultSet, view: View) -> bool:
    """Return whether a view means defenses by eps: ``auto`` does where a data set, model and norm has several eps."""
    if view != "auto":
        return view == "sweep"
    return bool(sweeps(build(results), ()))


def defense_order(results: ResultSet) -> list[str]:
    """Return the defenses in the plan's order."""
    return list(dict.fromkeys(cell.defense for cell in [*(r.cell for r in results.records), *results.missing]))


def all_grids(results: ResultSet, view: View = "auto") -> list[Grid]:
    """Return the tables of a view."""
    boards = build(results)
    if is_sweep(results, view):
        return [grid for sweep in sweeps(boards, defense_order(results)) for grid in sweep_grids(sweep)]
    return [grid for board in boards for grid in grids_of(board)]


def grids_of(board: Leaderboard) -> Iterator[Grid]:
    """Yield every table of a leaderboard."""
    yield accuracy_grid(board)
    for grid in (evidence_grid(board), detection_grid(board), quality_grid(board), prediction_grid(board)):
        if grid is not None:
            yield grid
    yield passes_grid(board)


def evidence_grids(results: ResultSet) -> list[Grid]:
    """Return the tables of evidence: by defense and check, in words, and by gradient route."""
    grids = [*map(evidence_grid, build(results)), verdict_grid(results), routes_grid(results)]
    return [grid for grid in grids if grid is not None]


def grid_text(grid: Grid, markup: Markup) -> str:
    """Return a table with its title and notes, every piece of text quoted for the markup."""
    from tabulate import tabulate

    quote = MARKUPS[markup]
    header = [quote(title) for title in grid.header]
    rows = [[quote(value) for value in row] for row in grid.rows]
    table = tabulate(rows, header, tablefmt=_TABULATE[markup], disable_numparse=True)
    title, notes = quote(grid.title), [quote(note) for note in grid.notes]
    if markup == "markdown":
        return "\n".join([f"### {title}", "", table, *(["", *(f"- {note}" for note in notes)] if notes else [])]) + "\n"
    if markup == "latex":
        return "\n".join([f"% {title}", table, *(f"% {note}" for note in notes)]) + "\n"
    return "\n".join([f"<h3>{title}</h3>", table, *(f"<p>{note}</p>" for note in notes)]) + "\n"


def markup_text(results: ResultSet, markup: Markup, grids: Sequence[Grid]) -> str:
    """Return tables followed by the cells that have no result."""
    parts = [grid_text(grid, markup) for grid in grids]
    lines = [MARKUPS[markup](line) for line in problems(results)]
    prefix, suffix = {"markdown": ("- ", ""), "latex": ("% ", ""), "html": ("<p>", "</p>")}[markup]
    if lines:
        parts.append("\n".join(f"{prefix}{line}{suffix}" for line in lines) + "\n")
    return "\n".join(parts)


# ---------------------------------------------------------------------------------------------------------------
# CSV
# ---------------------------------------------------------------------------------------------------------------


def leaderboard_csv(results: ResultSet) -> str:
    """Return one line per figure: accuracies, worst cases, gaps, metrics and passes of every leaderboard."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for board in build(results):
        for row in board.rows:
            for figure in _figures(board, row):
                writer.writerow([csv_field(results.name), *figure])
    return stream.getvalue()


def grid_csv(grid: Grid) -> str:
    """Return one table as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([csv_field(title) for title in grid.header])
    writer.writerows([value if isinstance(value, Plain) else csv_field(value) for value in row] for row in grid.rows)
    return stream.getvalue()


def _figures(board: Leaderboard, row: Row) -> Iterator[list[Any]]:
    def figure(
        quantity: str,
        value: Sequence[Any],
        column: Column | None = None,
        images: str = "",
        labels: str = "",
        rank: int | None = None,
        fpr: float | None = None,
    ) -> list[Any]:
        head = [
            csv_field(board.dataset),
            csv_field(board.model),
            board.norm or "",
            "" if board.eps is None else board.eps,
        ]
        rate = fpr if column is None or column.fpr is None else column.fpr
        last = ["" if own is None else own for own in (rank, rate)]
        what = [csv_field(column.attack), csv_field(column.access)] if column else ["", ""]
        return [*head, csv_field(row.defense), csv_field(quantity), *what, images, *value, csv_field(labels), *last]

    yield figure("clean accuracy", _score_fields(row.clean))
    for column, score in zip(board.columns, row.scores, strict=True):
        yield figure("robust accuracy", _score_fields(score), column)
    yield figure("worst case", _score_fields(row.worst_case), labels="; ".join(row.labels), rank=row.rank)
    yield figure("illusion gap", _score_fields(row.illusion_gap))
    for own in row.detection:
        yield from (figure(*fields, fpr=own.rate) for fields in _detection_fields(own))
    for metric, quality in zip(board.quality, row.quality, strict=True):
        yield figure(metric.label, _reading_fields(quality.before), row.examples, "clean-adversarial")
        yield figure(metric.label, _reading_fields(quality.after), row.examples, "clean-purified")
        yield figure(metric.label, _reading_fields(quality.clean), None, "clean-purified")
    for metric, readings in zip(board.predictions, row.predictions, strict=True):
        for place, reading in zip((None, *board.columns), readings, strict=True):
            yield figure(metric.label, _reading_fields(reading), place, "predictions")
    for stage in ("attack", "score"):
        yield figure(f"{stage} passes", ["ok", getattr(row.passes, stage), "", "", "", "", ""])


def _detection_fields(own: DetectionAt) -> Iterator[tuple[str, list[Any], Column | None]]:
    flagged = own.false_positives
    if own.not_applicable is not None or flagged is None:
        yield "false-positive rate", ["not applicable", "", "", "", "", "", ""], None
        return
    ends = [f"{value:.6f}" for value in (flagged.share, flagged.low, flagged.high)]
    yield "false-positive rate", ["ok", *ends, flagged.n, "", ""], None
    for caught in (own.unaware, own.aware):
        if caught is not None:
            value = "" if caught.share is None else f"{caught.share:.6f}"
            fields = ["undefined" if caught.share is None else "ok", value, "", "", caught.n, "", ""]
            yield "true-positive rate", fields, caught.column
            for component, area in caught.auroc:
                state = ["undefined", ""] if area is None else ["ok", f"{area:.6f}"]
                yield f"auroc {component}", [*state, "", "", "", "", ""], caught.column
    yield "joint robust accuracy", _score_fields(own.joint), None


def _score_fields(score: Score | Gap | Absent | None) -> list[Any]:
    if score is None or isinstance(score, Absent):
        return [score.reason if score else "none", "", "", "", "", "", ""]
    value = score.share if isinstance(score, Score) else score.value
    spread = "" if score.spread is None else f"{score.spread:.6f}"
    return ["ok", f"{value:.6f}", f"{score.low:.6f}", f"{score.high:.6f}", score.n, spread, len(score.seeds)]


def _reading_fields(reading: Reading) -> list[Any]:
    value = "" if reading.value is None else f"{reading.value:.8g}"
    return ["ok" if reading.state == "value" else reading.state, value, "", "", reading.n or "", "", ""]


# ---------------------------------------------------------------------------------------------------------------
# JSON
# ---------------------------------------------------------------------------------------------------------------


def leaderboard_value(results: ResultSet) -> dict[str, Any]:
    """Return every leaderboard and every cell without a result as a JSON value."""
    return {
        "schema": LEADERBOARD_SCHEMA,
        "suite": results.name,
        "leaderboards": [_board_value(board) for board in build(results)],
        "failed": [{"cell": str(record.cell), "error": record.error} for record in results.failed],
        "missing": [str(cell) for cell in results.missing],
        "damaged": [message(line.replace(f"{results.directory}/", "")) for line in results.damaged],
    }


def json_text(value: Any) -> str:
    """Return a JSON value as ASCII text, so that what a name holds can do nothing to a terminal."""
    return json.dumps(rounded(value), sort_keys=True, indent=2, allow_nan=False, ensure_ascii=True) + "\n"


def _board_value(board: Leaderboard) -> dict[str, Any]:
    return {
        "dataset": board.dataset,
        "model": board.model,
        "norm": board.norm,
        "eps": board.eps,
        "seeds": board.seeds,
        "test_size": board.test_size,
        "evidence": {
            "levels": board.evidence.levels,
            "passes": board.evidence.passes,
            "judged": board.evidence.judged,
            "share": board.evidence.share,
        },
        "metrics": [asdict(metric) for metric in (*board.quality, *board.predictions)],
        "rows": [_row_value(board, row) for row in board.rows],
    }


def _row_value(board: Leaderboard, row: Row) -> dict[str, Any]:
    columns = [_column_value(column) for column in board.columns]
    detection = {"detection": [_detection_value(own) for own in row.detection]} if row.detection else {}
    return {
        "defense": row.defense,
        "rank": row.rank,
        "unranked": row.unranked,
        "evidence": [_evidence_value(record) for record in row.evidence],
        "gain": asdict(row.gain) if row.gain else None,
        **detection,
        "labels": row.labels,
        "clean": _score_value(row.clean),
        "attacks": [
            {**column, "robust_accuracy": _score_value(score)}
            for column, score in zip(columns, row.scores, strict=True)
        ],
        "worst_case": _score_value(row.worst_case),
        "illusion_gap": _score_value(row.illusion_gap),
        "examples": _column_value(row.examples) if row.examples else None,
        "quality": {metric.label: asdict(own) for metric, own in zip(board.quality, row.quality, strict=True)},
        "predictions": {
            metric.label: {
                "clean": asdict(readings[0]),
                "attacks": [{**column, **asdict(own)} for column, own in zip(columns, readings[1:], strict=True)],
            }
            for metric, readings in zip(board.predictions, row.predictions, strict=True)
        },
        "passes": asdict(row.passes),
    }


def _column_value(column: Column) -> dict[str, Any]:
    fields = asdict(column)
    return fields if column.fpr is not None else {name: fields[name] for name in ("attack", "access")}


def _evidence_value(record: EvidenceRecord) -> dict[str, Any]:
    return {
        "seed": record.where.seed,
        "level": record.level,
        "passes": record.passes,
        "judged": record.judged,
        "share": record.passes / record.judged if record.judged else None,
        "verdicts": [asdict(verdict) for verdict in record.verdicts],
    }


def _detection_value(own: DetectionAt) -> dict[str, Any]:
    caught = {
        name: {**asdict(entry), "column": _column_value(entry.column), "auroc": dict(entry.auroc)} if entry else None
        for name, entry in (("unaware", own.unaware), ("aware", own.aware))
    }
    return {**asdict(own), **caught, "joint": _score_value(own.joint)}


def _score_value(score: Score | Gap | Absent | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return (
        {"state": score.reason, "detail": score.detail}
        if isinstance(score, Absent)
        else {"state": "ok", **asdict(score)}
    )
