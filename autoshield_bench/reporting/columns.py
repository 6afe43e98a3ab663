"""Columns that several tables of the terminal share: names with labels, and scores with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autoshield_bench.reporting.layout import Column, Line
from autoshield_bench.scores import Absent, Gap, Score

Interval = Callable[[float, float], str]

_REASONS = {"failed": "red", "missing": "yellow", "not planned": "dim", "no images": "yellow"}


def name_lines(defense: str, labels: Sequence[str] = ()) -> list[Line]:
    """Return a defense's name with its labels below."""
    return [Line(defense, "bold", fold=True), *(Line(label, "dim", fold=True) for label in labels)]


def score_column(
    header: Sequence[Line],
    scores: Sequence[Score | Gap | Absent | None],
    seeds: Sequence[int],
    interval: Interval,
    *,
    words: Sequence[str] = (),
    style: str = "",
) -> Column:
    """Return shares with their intervals, and the number of images where it is not the header's for all.

    ``words`` stand below a score, or in place of one.
    """
    shared = {score.n for score in scores if isinstance(score, Score | Gap)}
    cells = [_score_lines(score, seeds, interval, len(shared) > 1, style) for score in scores]
    for index, word in enumerate(words):
        if word:
            cells[index] = [*(cells[index] if scores[index] else []), Line(word, "yellow")]
    n = [Line(f"n={shared.pop()}", "not bold dim")] if len(shared) == 1 else []
    return Column([*header, *n], cells)


def _score_lines(
    score: Score | Gap | Absent | None, seeds: Sequence[int], interval: Interval, n: bool, style: str
) -> list[Line]:
    if score is None:
        return [Line("-", "dim")]
    if isinstance(score, Absent):
        return [Line(score.reason, _REASONS[score.reason], fold=True)]
    value = score.share if isinstance(score, Score) else score.value
    lines = [Line(f"{value:.3f}", style), Line(interval(score.low, score.high), "dim")]
    if score.spread is not None:
        lines.append(Line(f"sd {score.spread:.3f}", "dim"))
    if len(score.seeds) < len(seeds):
        lines.append(Line(f"{len(score.seeds)}/{len(seeds)} seeds", "yellow"))
    if n:
        lines.append(Line(f"n={score.n}", "dim"))
    return lines


def long_interval(low: float, high: float) -> str:
    """Return an interval where there is room."""
    return f"{low:.3f}–{high:.3f}"


def short_interval(low: float, high: float) -> str:
    """Return an interval without leading zeros."""
    return "–".join(f"{end:.3f}".removeprefix("0") for end in (low, high))
