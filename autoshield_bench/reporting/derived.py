"""The files of ``derived/``: text that is rebuilt from records alone, without times, dates or places."""

from __future__ import annotations

from autoshield_bench.leaderboard import build
from autoshield_bench.reporting.grids import problems
from autoshield_bench.reporting.sweep import sweep_grids, sweeps
from autoshield_bench.reporting.tables import defense_order, grid_text, grids_of, json_text, leaderboard_value
from autoshield_bench.reporting.text import markdown
from autoshield_bench.results import ResultSet


def markdown_report(results: ResultSet) -> str:
    """Return ``derived/leaderboard.md``: every leaderboard, sweeps where there are several eps, and what is absent."""
    boards = build(results)
    parts = [f"# {markdown(results.name)}: leaderboard\n"]
    swept = sweeps(boards, defense_order(results))
    if swept:
        parts.append("## Defenses by eps\n")
        parts += [grid_text(grid, "markdown") for sweep in swept for grid in sweep_grids(sweep)]
        parts.append("## Each eps\n")
    parts += [grid_text(grid, "markdown") for board in boards for grid in grids_of(board)]
    lines = problems(results)
    if lines:
        parts.append("## Cells without a result\n")
        parts.append("\n".join(f"- {markdown(line)}" for line in lines) + "\n")
    return "\n".join(parts)


def leaderboard_json(results: ResultSet) -> str:
    """Return ``derived/leaderboard.json``."""
    return json_text(leaderboard_value(results))
