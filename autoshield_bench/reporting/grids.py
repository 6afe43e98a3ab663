"""Leaderboards as plain grids of text, the same for every format that has rows and cells, and the words around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autoshield_bench.leaderboard import Leaderboard, Row
from autoshield_bench.readings import Metric, Reading
from autoshield_bench.reporting.notes import explanations
from autoshield_bench.reporting.text import Plain, message
from autoshield_bench.reporting.titles import column_title, threat_title
from autoshield_bench.results import ResultSet
from autoshield_bench.scores import Absent, Gap, Score

LONGEST_LIST = 20
"""Cells without a result that a report names before it counts the rest."""

IMAGES = ("adversarial", "purified", "clean purified")
"""What the image quality is shown of, in the order of ``Quality``'s fields."""


@dataclass(frozen=True)
class Grid:
    """One table. Text is raw: a renderer makes it harmless, save for ``Plain`` text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def board_facts(board: Leaderboard) -> tuple[str, ...]:
    """Return data set, model, threat, size of the test set and seeds."""
    seeds = f"seed{'s' if len(board.seeds) > 1 else ''} {', '.join(map(str, board.seeds))}"
    return (board.dataset, board.model, threat_title(board.norm, board.eps), f"{board.test_size} test images", seeds)


def score_text(score: Score | Gap | Absent | None, seeds: Sequence[int]) -> str:
    """Return a score as ``0.912 [0.906, 0.917] n=10000``, with the spread over seeds where there are several."""
    if score is None:
        return Plain("-")
    if isinstance(score, Absent):
        return Plain(score.reason)
    value = score.share if isinstance(score, Score) else score.value
    text = f"{value:.3f} [{score.low:.3f}, {score.high:.3f}] n={score.n}"
    if score.spread is not None:
        text += f", sd {score.spread:.3f} over {len(score.seeds)} seeds"
    if len(score.seeds) < len(seeds):
        text += f", {len(score.seeds)} of {len(seeds)} seeds"
    return Plain(text)


def worst_case_words(row: Row) -> str:
    """Return why a row has no worst case, in one or two words; empty where it has one."""
    if row.worst_case is not None:
        return ""
    words = ("gray-box only", "no white-box attack", "incomplete")
    kinds = [label for label in words if any(own.startswith(label) for own in row.labels)]
    return kinds[0] if kinds else "-"


def number(value: float) -> str:
    """Return a metric's value at four significant digits."""
    return f"{value:#.4g}"


def reading_text(reading: Reading, *, n: bool = True) -> str:
    """Return a metric's value with the number of images, or the word for why there is none."""
    if reading.state == "absent":
        return Plain("-")
    if reading.value is None:
        return Plain(reading.state)
    return Plain(number(reading.value) + (f" n={reading.n}" if n else ""))


def accuracy_grid(board: Leaderboard) -> Grid:
    """Return the leaderboard proper."""
    header = ("Defense", "Clean", *map(column_title, board.columns), "Worst case", "Illusion gap", "Labels")
    rows = [
        (
            row.defense,
            score_text(row.clean, board.seeds),
            *(score_text(score, board.seeds) for score in row.scores),
            score_text(row.worst_case, board.seeds) if row.worst_case else Plain(worst_case_words(row)),
            score_text(row.illusion_gap, board.seeds),
            "; ".join(row.labels),
        )
        for row in board.rows
    ]
    if shows_ranks(board):
        header = ("Rank", *header)
        rows = [(Plain(rank_text(row)), *cells) for row, cells in zip(board.rows, rows, strict=True)]
    return Grid("Accuracy: " + ", ".join(board_facts(board)), header, tuple(rows), tuple(explanations([board])))


def quality_grid(board: Leaderboard) -> Grid | None:
    """Return the image quality before and after purification; None where no pair metric was asked for."""
    if not board.quality:
        return None
    header = ("Defense", "Compared with the clean image", *map(metric_title, board.quality))
    rows: list[tuple[str, ...]] = []
    for row in board.rows:
        source = f"adversarial ({column_title(row.examples)})" if row.examples else "adversarial"
        columns = [(entry.before, entry.after, entry.clean) for entry in row.quality]
        for kind, image in enumerate((source, *IMAGES[1:])):
            rows.append((row.defense, image, *(reading_text(readings[kind]) for readings in columns)))
    return Grid(
        "Image quality: " + ", ".join(board_facts(board)[:3]), header, tuple(rows), tuple(metric_notes(board.quality))
    )


def prediction_grid(board: Leaderboard) -> Grid | None:
    """Return the metrics on predictions that the accuracies do not say already."""
    if not board.predictions:
        return None
    header = ("Metric", "Defense", "Clean", *map(column_title, board.columns))
    rows = tuple(
        (metric_title(metric), row.defense, *map(reading_text, row.predictions[index]))
        for index, metric in enumerate(board.predictions)
        for row in board.rows
    )
    title = "Metrics on predictions: " + ", ".join(board_facts(board)[:3])
    return Grid(title, header, rows, tuple(metric_notes(board.predictions)))


def passes_grid(board: Leaderboard) -> Grid:
    """Return what each row cost, in image-passes."""
    rows = tuple((row.defense, Plain(row.passes.attack), Plain(row.passes.score)) for row in board.rows)
    notes = ("Image-passes, forward and backward together; examples that several rows share are counted in each.",)
    return Grid("Cost: " + ", ".join(board_facts(board)[:3]), ("Defense", "Attack passes", "Score passes"), rows, notes)


def shows_ranks(board: Leaderboard) -> bool:
    """Return whether a leaderboard has a column of ranks: where no evidence was taken, one sentence says so instead."""
    return board.evidence.taken and bool(board.columns)


def rank_text(row: Row) -> str:
    """Return a rank, or the dash for none."""
    return "-" if row.rank is None else str(row.rank)


def metric_title(metric: Metric) -> str:
    """Return a metric's label with its unit."""
    return f"{metric.label} [{metric.unit}]" if metric.unit else metric.label


def metric_notes(metrics: Sequence[Metric]) -> Iterator[str]:
    """Yield one line per metric: which way is better, its notes, and the remedy where it is unavailable."""
    for metric in metrics:
        notes = f" {metric.notes.rstrip('.')}." if metric.notes else ""
        yield f"{metric.label}: {metric.direction} is better.{notes}"
        if metric.unavailable:
            yield f"{metric.label}: unavailable: {message(metric.unavailable)}"


def problems(results: ResultSet) -> list[str]:
    """Return one line per cell that failed, is damaged or is missing; long lists end in a count."""
    failed = [f"failed: {record.cell}: {message(record.error or 'no reason given')}" for record in results.failed]
    damaged = [f"damaged: {message(line.replace(f'{results.directory}/', ''))}" for line in results.damaged]
    missing = [f"missing: {cell}" for cell in results.missing]
    return [*_shortened(failed, "failed"), *_shortened(damaged, "damaged"), *_shortened(missing, "missing")]


def _shortened(lines: list[str], what: str) -> list[str]:
    if len(lines) <= LONGEST_LIST:
        return lines
    return [*lines[:LONGEST_LIST], f"{what}: and {len(lines) - LONGEST_LIST} more"]
