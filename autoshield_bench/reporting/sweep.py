"""Defenses by eps: leaderboards that differ in nothing but eps, turned into one table per column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoshield_bench.leaderboard import Leaderboard, Row
from autoshield_bench.readings import unique
from autoshield_bench.reporting.grids import Grid, score_text, worst_case_words
from autoshield_bench.reporting.text import Plain
from autoshield_bench.reporting.titles import column_title
from autoshield_bench.scores import Absent, Score


@dataclass(frozen=True)
class Entry:
    """One defense at one eps."""

    score: Score | Absent | None
    words: str = ""
    """``upper bound`` or ``no rank`` beside a worst case, or why there is none."""
    ranked: bool = True
    """Whether it may be called the best."""


@dataclass(frozen=True)
class SweepTable:
    """One quantity: a worst case or one attack at one access level."""

    title: str
    entries: tuple[tuple[Entry, ...], ...]
    """By defense, then eps."""

    def best(self, column: int) -> set[int]:
        """Return the defenses with the highest share at an eps; empty where there is nothing to compare.

        A worst case that the evidence does not carry is not among them.
        """
        scores = [(own[column].score, row) for row, own in enumerate(self.entries) if own[column].ranked]
        shares = [(score.share, row) for score, row in scores if isinstance(score, Score)]
        top = max(shares, default=(0.0, 0))[0]
        return {row for share, row in shares if share == top} if len({share for share, _ in shares}) > 1 else set()


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One data set, model and norm over several eps."""

    dataset: str
    model: str
    norm: str
    eps: tuple[float, ...]
    seeds: tuple[int, ...]
    test_size: int
    defenses: tuple[str, ...]
    clean: tuple[Score | Absent, ...]
    """By defense."""
    tables: tuple[SweepTable, ...]
    """Worst case first."""
    boards: tuple[Leaderboard, ...]
    """By eps."""

    def facts(self) -> tuple[str, ...]:
        """Return data set, model, norm, size of the test set and seeds."""
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        return (self.dataset, self.model, self.norm, f"{self.test_size} test images", seeds)


def sweeps(boards: Sequence[Leaderboard], defenses: Sequence[str]) -> list[Sweep]:
    """Return one sweep per data set, model and norm that has more than one eps; ``defenses`` gives their order."""
    groups: dict[tuple[str, str, str], dict[float, Leaderboard]] = {}
    for board in boards:
        if board.norm is not None and board.eps is not None:
            groups.setdefault((board.dataset, board.model, board.norm), {})[board.eps] = board
    return [_sweep(key, by_eps, defenses) for key, by_eps in groups.items() if len(by_eps) > 1]


def _sweep(key: tuple[str, str, str], by_eps: dict[float, Leaderboard], order: Sequence[str]) -> Sweep:
    boards = tuple(by_eps[eps] for eps in sorted(by_eps))
    rows = [{row.defense: row for row in board.rows} for board in boards]
    names = tuple(name for name in order if any(name in own for own in rows))
    columns = unique(column for board in boards for column in board.columns)
    columns.sort(key=lambda column: column.access != "gray-box")
    worst = _worst_table([[own.get(name) for own in rows] for name in names], boards)
    attacks = []
    for column in columns:
        entries = []
        for name in names:
            own = []
            for board, by_name in zip(boards, rows, strict=True):
                at = board.columns.index(column) if column in board.columns and name in by_name else None
                own.append(Entry(Absent("not planned") if at is None else by_name[name].scores[at]))
            entries.append(tuple(own))
        attacks.append(SweepTable(f"{column_title(column)}, by eps", tuple(entries)))
    return Sweep(
        dataset=key[0],
        model=key[1],
        norm=key[2],
        eps=tuple(sorted(by_eps)),
        seeds=tuple(unique(seed for board in boards for seed in board.seeds)),
        test_size=max(board.test_size for board in boards),
        defenses=names,
        clean=tuple(next(own[name].clean for own in rows if name in own) for name in names),
        tables=(worst, *attacks),
        boards=boards,
    )


def _worst_table(rows: Sequence[Sequence[Row | None]], boards: Sequence[Leaderboard]) -> SweepTable:
    entries = tuple(tuple(_worst(row, board) for row, board in zip(own, boards, strict=True)) for own in rows)
    words = {entry.words for own in entries for entry in own if isinstance(entry.score, Score)}
    if words != {"upper bound"}:
        return SweepTable("Worst case, by eps", entries)
    # Said once where it holds for all.
    bare = tuple(tuple(replace(own, words="") if own.score else own for own in by_eps) for by_eps in entries)
    return SweepTable("Worst case (upper bound), by eps", bare)


def _worst(row: Row | None, board: Leaderboard) -> Entry:
    if row is None:
        return Entry(Absent("not planned"))
    if row.worst_case is None:
        return Entry(None, worst_case_words(row))
    unranked = board.evidence.taken and row.rank is None
    words = [*(["upper bound"] if "upper bound" in row.labels else []), *(["no rank"] if unranked else [])]
    return Entry(row.worst_case, ", ".join(words), ranked=not unranked)


def sweep_grids(sweep: Sweep) -> list[Grid]:
    """Return the tables of a sweep as text."""
    header = ("Defense", "Clean", *(f"eps {eps:g}" for eps in sweep.eps))
    made = []
    for table in sweep.tables:
        rows = tuple(
            (name, score_text(clean, sweep.seeds), *(_entry_text(entry, sweep.seeds) for entry in entries))
            for name, clean, entries in zip(sweep.defenses, sweep.clean, table.entries, strict=True)
        )
        made.append(Grid(f"{table.title}: " + ", ".join(sweep.facts()), header, rows))
    return made


def _entry_text(entry: Entry, seeds: Sequence[int]) -> str:
    if entry.score is None:
        return Plain(entry.words or "-")
    return Plain(score_text(entry.score, seeds) + (f", {entry.words}" if entry.words else ""))
