"""Evidence in tables: every verdict that gates a rank, and which gradient route broke how many images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autoshield_bench.joint import column_of
from autoshield_bench.leaderboard import Leaderboard, Row
from autoshield_bench.readings import unique
from autoshield_bench.reporting.columns import name_lines
from autoshield_bench.reporting.grids import Grid, board_facts
from autoshield_bench.reporting.layout import Column, Line
from autoshield_bench.reporting.text import Plain, message
from autoshield_bench.reporting.titles import column_title, share_text, threat_title
from autoshield_bench.results import ResultSet
from autoshield_bench.verdicts import RULINGS, EvidenceRecord, Ruling

NONE = "-"
"""What stands where a check gave no verdict."""

_RULING_STYLES = {"pass": "green", "fail": "bold red", "unproven": "yellow", "not applicable": "dim"}


def checks_of(board: Leaderboard) -> list[str]:
    """Return the names of the checks, in the order in which they first appear."""
    return unique(verdict.check for row in board.rows for record in row.evidence for verdict in record.verdicts)


def ruling_of(row: Row, check: str) -> tuple[Ruling | None, tuple[int, ...]]:
    """Return the gravest ruling of a check over seeds, and the seeds that it was given for; None without a verdict."""
    found: dict[Ruling, list[int]] = {}
    for record in row.evidence:
        for verdict in record.verdicts:
            if verdict.check == check:
                found.setdefault(verdict.ruling, []).append(record.where.seed)
    for ruling in ("fail", "unproven", *RULINGS):
        if ruling in found:
            return ruling, tuple(unique(found[ruling]))
    return None, ()


def ruling_text(row: Row, check: str) -> str:
    """Return a check's ruling, with its seeds where the others fare better."""
    ruling, seeds = ruling_of(row, check)
    if ruling is None:
        return NONE
    if ruling in ("pass", "not applicable") or len(seeds) == len(row.evidence):
        return ruling
    return f"{ruling} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def evidence_grid(board: Leaderboard) -> Grid | None:
    """Return one row per defense and one column per check; None where no verdict was given."""
    checks = checks_of(board)
    if not checks:
        return None
    rows = tuple(
        (row.defense, *(Plain(ruling_text(row, check)) for check in checks), cost_text(row.evidence))
        for row in board.rows
    )
    header = ("Defense", *checks, "Cost")
    return Grid("Evidence: " + ", ".join(board_facts(board)[:3]), header, rows, tuple(evidence_notes(board)))


def evidence_columns(board: Leaderboard) -> tuple[Column, list[Column]]:
    """Return the same for a terminal: the first column, then the others."""
    first = Column([Line("defense")], [name_lines(row.defense) for row in board.rows], right=False)
    columns = []
    for check in checks_of(board):
        cells = []
        for row in board.rows:
            style = _RULING_STYLES.get(ruling_of(row, check)[0] or "", "dim")
            cells.append([Line(ruling_text(row, check), style, fold=True)])
        columns.append(Column([Line(check, fold=True)], cells, right=False))
    columns.append(Column([Line("cost")], [[Line(cost_text(row.evidence), "dim", fold=True)] for row in board.rows]))
    return first, columns


def evidence_notes(board: Leaderboard, *, costly: bool = True) -> Iterator[str]:
    """Yield what the rulings mean, and the words of those that cost a rank, or of all."""
    yield "fail and unproven cost the rank; a verdict never changes a number."
    yield "Cost: image-passes of the checks, and their share of those of the attacks that they judge."
    yield from words(board, costly=costly)


def cost_text(records: Sequence[EvidenceRecord]) -> str:
    """Return what the evidence on one defense cost."""
    passes, judged = (sum(getattr(record, name) for record in records) for name in ("passes", "judged"))
    return Plain(f"{passes:,} ({share_text(passes / judged)})" if judged else NONE)


def words(board: Leaderboard, *, costly: bool) -> Iterator[str]:
    """Yield each verdict in words; ``costly`` alone those that cost a rank."""
    for row in board.rows:
        for record in row.evidence:
            seed = f", seed {record.where.seed}" if len(row.evidence) > 1 else ""
            for verdict in record.verdicts:
                if verdict.costs_rank or not costly:
                    yield f"{row.defense}{seed}, {verdict.check}: {verdict.ruling}: {message(verdict.text)}"


def verdict_grid(results: ResultSet) -> Grid:
    """Return every verdict with its words, one per line."""
    rows = tuple(
        (str(record.where), record.level, verdict.check, Plain(verdict.ruling), message(verdict.text))
        for record in results.evidence
        for verdict in record.verdicts
    )
    return Grid(f"Verdicts of {results.name}", ("Estimate", "Level", "Check", "Ruling", "Words"), rows)


def routes_grid(results: ResultSet) -> Grid | None:
    """Return which gradient route broke how many images, over seeds; None where no attack took several."""
    counts: dict[tuple[str, str, str], list[int]] = {}
    records = [record for record in results.records if len(_routes(record.facts)) > 1]
    several = len(unique((record.cell.dataset, record.cell.model) for record in records)) > 1
    for record in records:
        cell = record.cell
        defense = f"{cell.dataset}/{cell.model}/{cell.defense}" if several else cell.defense
        attack = f"{column_title(column_of(cell))}, {threat_title(cell.norm, cell.eps)}"
        for route, own in _routes(record.facts).items():
            sums = counts.setdefault((defense, attack, str(route)), [0, 0, 0, 0])
            for place, name in enumerate(("tried", "fell", "cut", "again")):
                sums[place] += _count(own, name)
    if not counts:
        return None
    groups = unique(names[:2] for names in counts)
    # Records sort their keys; a route that comes later finds no more images standing than one that came earlier.
    order = sorted(counts, key=lambda names: (groups.index(names[:2]), -counts[names][0], -counts[names][1]))
    rows = tuple((*names, *(Plain(count) for count in counts[names])) for names in order)
    notes = (
        "tried: images that the route was tried on, which routes before it left standing; fell: those of them that it "
        "broke; cut: those for which its gradient was cut off; again: those that came closest to falling along it, and "
        "were attacked along it in full after a first look. Counts are summed over seeds.",
    )
    header = ("Defense", "Attack", "Route", "Tried", "Fell", "Cut", "Again")
    return Grid(f"Gradient routes of {results.name}", header, rows, notes)


def route_columns(grid: Grid) -> tuple[Column, list[Column]]:
    """Return the same for a terminal: routes below the defense and attack that they belong to."""
    names: list[list[Line]] = []
    counts: list[tuple[str, ...]] = []
    last: tuple[str, ...] = ()
    for row in grid.rows:
        if row[:2] != last:
            names.append([Line(row[0], "bold", fold=True), Line(row[1], fold=True)])
            counts.append(("",) * len(row[3:]))
        last = row[:2]
        names.append([Line(f"  {row[2]}", "dim", fold=True)])
        counts.append(row[3:])
    columns = [
        Column([Line(title)], [[Line(own[place])] for own in counts]) for place, title in enumerate(grid.header[3:])
    ]
    return Column([Line("route")], names, right=False), columns


def _routes(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    attack = facts.get("attack")
    routes = attack.get("routes") if isinstance(attack, Mapping) else None
    return routes if isinstance(routes, Mapping) else {}


def _count(route: Any, name: str) -> int:
    value = route.get(name) if isinstance(route, Mapping) else None
    return value if isinstance(value, int) else 0
