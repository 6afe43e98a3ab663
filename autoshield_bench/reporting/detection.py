"""Detectors in tables: what they flag of clean images, what they catch of which attack, and the joint game."""

from __future__ import annotations

from collections.abc import Iterator

from autoshield_bench.joint import Caught, DetectionAt, percent
from autoshield_bench.leaderboard import Leaderboard, Row
from autoshield_bench.readings import unique
from autoshield_bench.reporting.columns import name_lines, score_column, short_interval
from autoshield_bench.reporting.grids import Grid, board_facts, score_text
from autoshield_bench.reporting.layout import Column, Line
from autoshield_bench.reporting.text import Plain, message

HEADER = (
    "Defense", "Nominal FPR", "Clean flagged", "Caught, unaware", "Caught, aware", "Joint robust accuracy",
    "AUROC, unaware", "AUROC, aware",
)  # fmt: skip


def entries(board: Leaderboard) -> list[tuple[Row, DetectionAt]]:
    """Return every defense that detects with each of its rates."""
    return [(row, own) for row in board.rows for own in row.detection]


def detection_grid(board: Leaderboard) -> Grid | None:
    """Return what the detectors are worth; None where no row detects."""
    found = entries(board)
    if not found:
        return None
    rows = []
    for row, own in found:
        flagged = own.false_positives
        rows.append(
            (
                row.defense,
                Plain(percent(own.rate)),
                Plain(f"{flagged.share:.4f} [{flagged.low:.4f}, {flagged.high:.4f}] n={flagged.n}" if flagged else "-"),
                Plain(caught_text(own.unaware)),
                Plain(caught_text(own.aware)),
                score_text(own.joint, board.seeds),
                auroc_text(own.unaware),
                auroc_text(own.aware),
            )
        )
    return Grid("Detection: " + ", ".join(board_facts(board)[:3]), HEADER, tuple(rows), tuple(detection_notes(board)))


def detection_columns(board: Leaderboard) -> tuple[Column, list[Column]]:
    """Return the same for a terminal: the first column, then the others."""
    found = entries(board)
    first = Column([Line("defense")], [name_lines(row.defense) for row, _ in found], right=False)
    rates = Column([Line("nominal"), Line("FPR")], [[Line(percent(own.rate))] for _, own in found])
    flagged = Column([Line("clean"), Line("flagged")], [_flagged_lines(own) for _, own in found])
    joint = score_column([Line("joint"), Line("robust")], [own.joint for _, own in found], board.seeds, short_interval)
    caught = [
        Column([Line("caught"), Line(kind)], [_caught_lines(getattr(own, kind)) for _, own in found])
        for kind in ("unaware", "aware")
    ]
    areas = [
        Column([Line("AUROC"), Line(kind)], [_area_lines(getattr(own, kind)) for _, own in found])
        for kind in ("unaware", "aware")
    ]
    return first, [rates, flagged, *caught, joint, *areas]


def _flagged_lines(own: DetectionAt) -> list[Line]:
    flagged = own.false_positives
    if flagged is None:
        return [Line("-", "dim")]
    ends = "–".join(f"{end:.4f}".removeprefix("0") for end in (flagged.low, flagged.high))
    return [Line(f"{flagged.share:.4f}"), Line(ends, "dim"), Line(f"n={flagged.n}", "dim")]


def _caught_lines(caught: Caught | None) -> list[Line]:
    if caught is None:
        return [Line("-", "dim")]
    if caught.share is None:
        return [Line("nothing", "dim"), Line("succeeded", "dim")]
    return [Line(f"{caught.share:.3f}"), Line(f"of {caught.n}", "dim")]


def _area_lines(caught: Caught | None) -> list[Line]:
    if caught is None or not caught.auroc:
        return [Line("-", "dim")]
    lines = []
    for name, value in caught.auroc:
        lines += [Line(name, "dim", fold=True)] if len(caught.auroc) > 1 else []
        lines.append(Line("-" if value is None else f"{value:.3f}"))
    return lines


def caught_text(caught: Caught | None) -> str:
    """Return the share of successful examples that is flagged, with their number."""
    if caught is None:
        return "-"
    return "nothing succeeded" if caught.share is None else f"{caught.share:.3f} of {caught.n}"


def auroc_text(caught: Caught | None) -> str:
    """Return the area under the ROC curve, by component where several detect."""
    if caught is None or not caught.auroc:
        return Plain("-")
    values = [(name, "-" if value is None else f"{value:.3f}") for name, value in caught.auroc]
    return Plain(values[0][1]) if len(values) == 1 else ", ".join(f"{name} {value}" for name, value in values)


def detection_notes(board: Leaderboard) -> Iterator[str]:
    """Yield what a reader needs for the table, and why there is no threshold where there is none."""
    found = entries(board)
    yield (
        "Clean flagged: the realised false-positive rate on clean test images, with its 95 % Clopper-Pearson interval; "
        "the thresholds were fixed on validation images."
    )
    yield (
        "Caught: share flagged of an attack's successful examples, which were right when clean and are misclassified "
        "when attacked; their number beside it."
    )
    kinds = (
        ("unaware", "the white-box attack that leaves least right, not knowing of the detectors"),
        ("aware", "the attack made to stay under that rate's thresholds"),
    )
    for kind, what in kinds:
        caught = [getattr(own, kind) for _, own in found]
        attacks = unique(f"{own.column.attack}, {own.column.access}" for own in caught if own)
        if attacks:
            yield f"{kind}: {what}: {'; '.join(attacks)}."
    yield (
        "Joint robust accuracy: an image stands if its clean version is right and not flagged, and each attacked one "
        "is right or flagged, under every attack that knows of no detector and those aware at that rate."
    )
    yield "AUROC: scores of successful examples against those of clean images; 0.5 is chance."
    for row, own in found:
        if own.not_applicable is not None:
            why = message(own.not_applicable).rstrip(".")
            yield f"{row.defense} has no threshold at {percent(own.rate)}: {why}."
