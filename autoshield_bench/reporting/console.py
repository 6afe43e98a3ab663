"""Leaderboards on a terminal: the first table answers the question, the second says what it did to the images.

Every string reaches rich as ``Text``, never as markup, after control characters were made visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

from autoshield_bench.leaderboard import Leaderboard, build
from autoshield_bench.ranks import NO_EVIDENCE
from autoshield_bench.readings import Metric, Reading
from autoshield_bench.reporting import grids
from autoshield_bench.reporting.columns import Interval, long_interval, name_lines, score_column, short_interval
from autoshield_bench.reporting.cost import Timing, cost_grid
from autoshield_bench.reporting.detection import detection_columns, detection_notes
from autoshield_bench.reporting.evidence import checks_of, evidence_columns, evidence_notes, route_columns, routes_grid
from autoshield_bench.reporting.layout import Column, Line, fits, tables
from autoshield_bench.reporting.notes import explanations
from autoshield_bench.reporting.sweep import Sweep, SweepTable, sweeps
from autoshield_bench.reporting.tables import defense_order
from autoshield_bench.reporting.text import message, visible
from autoshield_bench.reporting.titles import column_title, rate_title, threat_title
from autoshield_bench.results import ResultSet
from autoshield_bench.scores import Column as Attack

_ARROWS = {"higher": "↑", "lower": "↓"}

_ELSEWHERE = ("upper bound", "gray-box only", "no white-box attack", "incomplete")
"""Labels that stand in the worst case's own column."""


def console_for(stream: TextIO, width: int | None = None) -> Console:
    """Return a console that reads no markup; without a width, the terminal's."""
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


def print_leaderboards(results: ResultSet, console: Console) -> None:
    """Print one leaderboard per threat: accuracies first, then image quality and cost."""
    boards = build(results)
    for board in boards:
        _heading(console, board_heading(results.name, grids.board_facts(board)))
        _accuracy(console, board)
        _paragraph(console, explanations([board]))
        if any(row.detection for row in board.rows):
            _heading(console, ["Detection", threat(board)])
            _print(console, *detection_columns(board))
            _paragraph(console, detection_notes(board))
        if board.quality:
            _heading(console, ["Image quality and cost", threat(board)])
            _print(console, *_quality(board))
            _paragraph(console, _quality_notes(board))
        if board.predictions:
            _heading(console, ["Metrics on predictions", threat(board)])
            _print(console, *_predictions(board), leading=0)
            _paragraph(console, _metric_notes(board.predictions))
    _problems(console, results, empty=not boards)


def print_sweeps(results: ResultSet, console: Console) -> None:
    """Print defenses by eps: the worst case first, then each attack at each access level."""
    found = sweeps(build(results), defense_order(results))
    for sweep in found:
        _heading(console, board_heading(results.name, sweep.facts()))
        for table in sweep.tables:
            console.print(Text(visible(table.title), style="bold"))
            _print(console, *_sweep(sweep, table, console.width))
            console.print()
        _paragraph(console, ["bold: the highest in its column.", *explanations(sweep.boards, gap=False)], gap=False)
    _problems(console, results, empty=not found)


def print_cost(results: ResultSet, timings: Mapping[str, Mapping[str, Timing]], console: Console) -> None:
    """Print passes and timings per cell and component."""
    _grid(console, cost_grid(results, timings))


def print_evidence(results: ResultSet, console: Console) -> None:
    """Print every verdict, by defense and check, then in words; and which gradient route broke how many images."""
    boards = [board for board in build(results) if checks_of(board)]
    for board in boards:
        _heading(console, ["Evidence", *grids.board_facts(board)[:3]])
        _print(console, *evidence_columns(board))
        _paragraph(console, evidence_notes(board, costly=False))
    if not boards:
        console.print()
        _paragraph(console, [f"There is no verdict: {NO_EVIDENCE}."], gap=False)
    routes = routes_grid(results)
    if routes is not None:
        _heading(console, [routes.title])
        _print(console, *route_columns(routes), leading=0)
        _paragraph(console, routes.notes)


def _grid(console: Console, grid: grids.Grid) -> None:
    """Print a grid whose first three columns are names."""
    _heading(console, [grid.title])
    by_column = list(zip(*grid.rows, strict=True)) or [()] * len(grid.header)
    made = [
        Column([Line(title, fold=True)], [[Line(value, fold=index < 3)] for value in values], right=index >= 3)
        for index, (title, values) in enumerate(zip(grid.header, by_column, strict=True))
    ]
    _print(console, made[0], made[1:], leading=0)
    _paragraph(console, grid.notes)


def board_heading(suite: str, facts: Sequence[str]) -> list[str]:
    """Return the parts of a heading, the suite's name among them unless it is the data set's."""
    return [*facts] if suite == facts[0] else [suite, *facts]


def threat(board: Leaderboard) -> str:
    """Return a board's threat as text."""
    return threat_title(board.norm, board.eps)


# ---------------------------------------------------------------------------------------------------------------
# The tables of a leaderboard
# ---------------------------------------------------------------------------------------------------------------


def _accuracy(console: Console, board: Leaderboard) -> None:
    # The long interval where everything fits side by side, the one without leading zeros elsewhere.
    first, others = _accuracy_columns(board, long_interval)
    ranks = _ranks(board) if grids.shows_ranks(board) else None
    if not fits(first, others, console.width, ranks):
        first, others = _accuracy_columns(board, short_interval)
        if len(tables(first, others, console.width, ranks)) > 1 and board.columns:
            # The headline stays in the first table when the attacks do not fit beside it.
            others = [others[0], *others[-2:], *others[1:-2]]
    _print(console, first, others, lead=ranks)


def _ranks(board: Leaderboard) -> Column:
    cells = [[Line(grids.rank_text(row), "dim" if row.rank is None else "bold")] for row in board.rows]
    return Column([Line("rank")], cells)


def _accuracy_columns(board: Leaderboard, interval: Interval) -> tuple[Column, list[Column]]:
    names = [
        name_lines(row.defense, [label for label in row.labels if not label.startswith(_ELSEWHERE)])
        for row in board.rows
    ]
    first = Column([Line("defense")], names, right=False)
    clean = score_column([Line("clean")], [row.clean for row in board.rows], board.seeds, interval)
    attacks = [
        score_column(_attack_header(column), [row.scores[index] for row in board.rows], board.seeds, interval)
        for index, column in enumerate(board.columns)
    ]
    if not board.columns:
        return first, [clean]
    words = ["upper bound" if "upper bound" in row.labels else grids.worst_case_words(row) for row in board.rows]
    worst = score_column(
        [Line("worst"), Line("case")],
        [row.worst_case for row in board.rows],
        board.seeds,
        interval,
        words=words,
        style="bold",
    )
    gap = score_column([Line("illusion"), Line("gap")], [row.illusion_gap for row in board.rows], board.seeds, interval)
    return first, [clean, *attacks, worst, gap]


def _attack_header(column: Attack) -> list[Line]:
    access = ["gray-box", "(oblivious)"] if column.access == "gray-box" else [column.access]
    rate = [] if column.fpr is None else [rate_title(column.fpr)]
    return [Line(column.attack, fold=True), *(Line(part) for part in (*access, *rate))]


def _quality(board: Leaderboard) -> tuple[Column, list[Column]]:
    names = [
        name_lines(
            row.defense, [f"{row.examples.attack} {row.examples.access}"] if row.examples and _sources(board) else []
        )
        for row in board.rows
    ]
    first = Column([Line("defense")], names, right=False)
    images = Column([Line("image")], [[Line(image) for image in grids.IMAGES] for _ in board.rows], right=False)
    metrics = [
        _metric_column(
            metric, [(own.before, own.after, own.clean) for own in (row.quality[index] for row in board.rows)]
        )
        for index, metric in enumerate(board.quality)
    ]
    cost = [
        Column(
            [Line(stage), Line("passes")],
            [[Line(compact(getattr(row.passes, stage)), "dim")] for row in board.rows],
        )
        for stage in ("attack", "score")
    ]
    return first, [images, *metrics, *cost]


def _sources(board: Leaderboard) -> bool:
    """Return whether the adversarial images of the rows come from different attacks."""
    return len({row.examples for row in board.rows if row.examples}) > 1


def _quality_notes(board: Leaderboard) -> list[str]:
    one = next((column_title(row.examples) for row in board.rows if row.examples and not _sources(board)), None)
    source = one or "the attack named below each defense: of its gray-box attacks, the strongest"
    return [
        f"Every value compares with the clean image. Adversarial images: {source}.",
        *_metric_notes(board.quality),
        "Passes: image-passes, forward and backward; shared examples are counted in each row that uses them.",
    ]


def _metric_notes(metrics: Sequence[Metric]) -> list[str]:
    lines = ["↑ higher is better, ↓ lower is better."]
    for metric in metrics:
        lines += [f"{metric.label}: {metric.notes}"] if metric.notes else []
        lines += [f"{metric.label} is unavailable: {message(metric.unavailable)}"] if metric.unavailable else []
    return lines


def _metric_column(metric: Metric, rows: Sequence[Sequence[Reading]]) -> Column:
    counts = {reading.n for readings in rows for reading in readings if reading.value is not None}
    cells = [[_reading_line(reading, len(counts) > 1) for reading in readings] for readings in rows]
    header = [Line(f"{metric.label} {_ARROWS[metric.direction]}", fold=True)]
    if metric.unit:
        header.append(Line(metric.unit, "not bold dim", fold=True))
    if len(counts) == 1:
        header.append(Line(f"n={counts.pop()}", "not bold dim"))
    return Column(header, cells)


def _reading_line(reading: Reading, n: bool) -> Line:
    style = {"value": "", "undefined": "dim", "unavailable": "yellow", "absent": "dim"}[reading.state]
    return Line(grids.reading_text(reading, n=n), style)


def _predictions(board: Leaderboard) -> tuple[Column, list[Column]]:
    entries = [(metric, index, row) for index, metric in enumerate(board.predictions) for row in board.rows]
    first = Column([Line("defense")], [name_lines(row.defense) for _, _, row in entries], right=False)
    titles = [f"{grids.metric_title(metric)} {_ARROWS[metric.direction]}" for metric, _, _ in entries]
    names = Column([Line("metric")], [[Line(title)] for title in titles], right=False)
    columns = []
    for at, header in enumerate([[Line("clean")], *map(_attack_header, board.columns)]):
        readings = [row.predictions[index][at] for _, index, row in entries]
        counts = {reading.n for reading in readings if reading.value is not None}
        n = [Line(f"n={next(iter(counts))}", "not bold dim")] if len(counts) == 1 else []
        columns.append(Column([*header, *n], [[_reading_line(reading, len(counts) > 1)] for reading in readings]))
    return first, [names, *columns]


# ---------------------------------------------------------------------------------------------------------------
# Sweeps and what stands around the tables
# ---------------------------------------------------------------------------------------------------------------


def _sweep(sweep: Sweep, table: SweepTable, width: int) -> tuple[Column, list[Column]]:
    first = Column([Line("defense")], [name_lines(name) for name in sweep.defenses], right=False)
    for interval in (long_interval, short_interval):
        others = [score_column([Line("clean")], sweep.clean, sweep.seeds, interval)]
        for index, eps in enumerate(sweep.eps):
            entries = [own[index] for own in table.entries]
            column = score_column(
                [Line(f"eps {eps:g}")],
                [entry.score for entry in entries],
                sweep.seeds,
                interval,
                words=[entry.words for entry in entries],
            )
            best = table.best(index)
            cells = [
                [Line(cell[0].text, "bold" if row in best else cell[0].style), *cell[1:]]
                for row, cell in enumerate(column.cells)
            ]
            others.append(Column(column.header, cells))
        if fits(first, others, width):
            break
    return first, others


def compact(count: int) -> str:
    """Return a count in at most five characters, such as ``40.4M``."""
    value, unit = float(count), ""
    for larger in ("k", "M", "G", "T"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g}{unit}" if unit else str(count)


def _print(
    console: Console, first: Column, others: Sequence[Column], leading: int = 1, lead: Column | None = None
) -> None:
    for index, table in enumerate(tables(first, others, console.width, lead)):
        if index:
            console.print()
        table.leading = leading
        console.print(table)


def _heading(console: Console, parts: Iterable[str]) -> None:
    console.print()
    console.print(Text(" · ".join(visible(part) for part in parts), style="bold cyan"))
    console.print()


def _paragraph(console: Console, sentences: Iterable[str], *, gap: bool = True) -> None:
    if gap:
        console.print()
    for sentence in sentences:
        console.print(Text(visible(sentence), style="dim"), overflow="fold")


def _problems(console: Console, results: ResultSet, *, empty: bool) -> None:
    lines = grids.problems(results)
    if empty and not lines:
        lines = ["There is nothing to show: the plan has no cell of this kind."]
    if lines:
        console.print()
        console.print(Text("Cells without a result", style="bold"))
    for line in lines:
        console.print(Text(visible(line), style="red" if line.startswith(("failed", "damaged")) else "yellow"))
