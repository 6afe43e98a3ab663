"""``aubench show``: print results again from disk. Imports neither torch nor numpy."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from autoshield_bench.errors import StoreError, UsageError

if TYPE_CHECKING:
    from autoshield_bench.results import ResultSet

NAME = "show"

FORMATS = ("table", "markdown", "latex", "csv", "json", "html-table")

WIDTH = 120
"""Columns of a table where no terminal says how wide it is."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser(
        NAME,
        help="print the leaderboard of results on disk",
        description="Print results on disk. Exit code 1 where cells failed, 3 where records are damaged.",
    )
    parser.add_argument("results", metavar="RESULTS", help="a results directory, or a suite's name for ./results/NAME")
    add_print_options(parser)
    parser.add_argument(
        "--evidence",
        action="store_true",
        dest="verdicts",
        help="add every verdict of the checks that gate a rank, and what each gradient route broke (csv: print these "
        "alone)",
    )
    parser.set_defaults(handler=run)


def add_print_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides how results are printed."""
    parser.add_argument("--format", choices=FORMATS, default="table", help="how to print it (default: table)")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    parser.add_argument(
        "--view",
        choices=("auto", "leaderboard", "sweep"),
        default="auto",
        help="leaderboards, or defenses by eps (auto: where there are several eps); csv and json hold both",
    )
    parser.add_argument(
        "--cost", action="store_true", help="add passes per component and timings per cell (csv: print these alone)"
    )
    parser.add_argument(
        "--width", type=width_option, metavar="N", help="columns of the table (default: the terminal's)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the results. Raises UsageError or StoreError where there are none to read."""
    from autoshield_bench.results import load_results

    return print_results(load_results(find_results(args.results)), args)


def print_results(results: ResultSet, args: argparse.Namespace) -> int:
    """Print results as the options of this command say, and return the exit code that they call for."""
    from autoshield_bench.reporting.text import message

    # A terminal that cannot show a character gets its escape instead of a traceback.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if args.format == "table":
        _print_table(results, args)
    else:
        sys.stdout.write(_text(results, args))
    for line in results.damaged:
        print(f"warning: {message(line)}", file=sys.stderr)
    if results.damaged:
        return StoreError.exit_code
    return 1 if results.failed else 0


def find_results(name: str) -> Path:
    """Return the results directory of that path, or of the suite of that name below ``results/``.

    A directory that holds the results of one suite alone stands for that suite. Raises UsageError where there is none.
    """
    places = (Path(name), Path("results") / name)
    for place in places:
        if (place / "plan.json").is_file():
            return place
    inside = sorted(path.parent for path in Path(name).glob("*/plan.json"))
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise UsageError(f"{name}: holds the results of several suites; name one: {', '.join(map(str, inside))}")
    for place in places:
        if place.is_dir():
            return place
    from autoshield_bench.errors import did_you_mean

    known = [path.parent.name for path in Path("results").glob("*/plan.json")]
    raise UsageError(
        f"{name}: no results directory, and no {places[1]}; run the suite first with `aubench run`"
        + did_you_mean(name, known)
    )


def _print_table(results: ResultSet, args: argparse.Namespace) -> None:
    from autoshield_bench.reporting import console as terminal
    from autoshield_bench.reporting.cost import read_timings
    from autoshield_bench.reporting.tables import is_sweep

    console = terminal.console_for(sys.stdout, args.width or default_width())
    if is_sweep(results, args.view):
        terminal.print_sweeps(results, console)
    else:
        terminal.print_leaderboards(results, console)
    if _verdicts(args):
        terminal.print_evidence(results, console)
    if args.cost:
        terminal.print_cost(results, read_timings(results.directory), console)


def _text(results: ResultSet, args: argparse.Namespace) -> str:
    from autoshield_bench.reporting import cost, tables
    from autoshield_bench.reporting.evidence import verdict_grid

    spent = cost.read_timings(results.directory) if args.cost else {}
    if args.format == "json":
        value = tables.leaderboard_value(results)
        return tables.json_text({**value, "cost": cost.cost_value(results, spent)} if args.cost else value)
    if args.format == "csv":
        if _verdicts(args):
            if args.cost:
                raise UsageError("csv prints one table: --cost or --evidence, not both")
            return tables.grid_csv(verdict_grid(results))
        return tables.grid_csv(cost.cost_grid(results, spent)) if args.cost else tables.leaderboard_csv(results)
    grids = tables.all_grids(results, args.view)
    if _verdicts(args):
        grids += [grid for grid in tables.evidence_grids(results) if grid not in grids]
    if args.cost:
        grids.append(cost.cost_grid(results, spent))
    return tables.markup_text(results, "html" if args.format == "html-table" else args.format, grids)


def _verdicts(args: argparse.Namespace) -> bool:
    """Return whether verdicts were asked for; ``aubench run`` has another option of that name."""
    return bool(getattr(args, "verdicts", False))


def default_width() -> int | None:
    """Return the columns of a table: None for the terminal's own, else ``COLUMNS``, else ``WIDTH``."""
    if sys.stdout.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isascii() and columns.isdigit() and 40 <= int(columns) <= 10_000 else WIDTH


def width_option(text: str) -> int:
    """Return the value of ``--width``. Raises ArgumentTypeError where it is none."""
    if not text.isascii() or not text.isdigit() or not 40 <= int(text[:6]) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of columns from 40 to 10000")
    return int(text)
