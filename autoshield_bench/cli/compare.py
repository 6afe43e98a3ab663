"""``aubench compare``: two defenses, or two runs, on the same images; is the difference real? Imports no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from autoshield_bench.cli.show import default_width, find_results, width_option
from autoshield_bench.errors import StoreError

if TYPE_CHECKING:
    from autoshield_bench.comparison import Comparison
    from autoshield_bench.results import ResultSet

NAME = "compare"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        NAME,
        help="compare two defenses or two runs on the same images: is the difference real?",
        description="Compare B with A on the images that both evaluated: clean accuracy, every attack that both have, "
        "and the worst case, each with an exact paired test, adjusted for the size of the table. Without defenses, "
        "every defense that both have is compared with its namesake. Exit code 0 whatever the difference, unless "
        "--fail-on asks for more; 3 where records are damaged.",
    )
    where = "a results directory, or a suite's name for ./results/NAME; with :DEFENSE, one defense of it, by its label"
    parser.add_argument("a", metavar="A", help=where)
    parser.add_argument("b", metavar="B", help="the same")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--fail-on",
        choices=("regression",),
        help="exit code 1 where B is really worse than A anywhere (adjusted p below 0.05), or has no result where it "
        "planned one and A has it",
    )
    parser.add_argument(
        "--width", type=width_option, metavar="N", help="columns of the table (default: the terminal's)"
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison. Raises UsageError or StoreError where there is nothing to compare."""
    from autoshield_bench.cli.warnings import warn
    from autoshield_bench.comparison import choose_pairs, compare, defenses_of
    from autoshield_bench.reporting.comparison import comparison_value, print_comparison
    from autoshield_bench.reporting.console import console_for
    from autoshield_bench.reporting.tables import json_text

    (first, one), (second, two) = _loaded(arguments.a), _loaded(arguments.b)
    pairs = choose_pairs(first, one, second, two)
    remarks = []
    if one is None and two is None:
        for name, own, other in (("A", first, second), ("B", second, first)):
            alone = [label for label in defenses_of(own) if label not in defenses_of(other)]
            remarks += [f"Only {name} has the defense {label}." for label in alone]
    comparison = compare(first, second, pairs, remarks=remarks)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if arguments.json:
        sys.stdout.write(json_text(comparison_value(comparison)))
    else:
        print_comparison(comparison, console_for(sys.stdout, arguments.width or default_width()))
    sys.stdout.flush()
    damaged = [*first.damaged, *second.damaged]
    for line in damaged:
        warn(line)
    failed = arguments.fail_on == "regression" and _complain(comparison)
    return StoreError.exit_code if damaged else int(failed)


def split_argument(text: str) -> tuple[str, str | None]:
    """Return results and defense of ``RESULTS[:DEFENSE]``; the results are the longest prefix that is a directory."""
    cuts = [len(text), *(index for index in range(len(text) - 1, 0, -1) if text[index] == ":")]
    for cut in cuts:
        if any(place.is_dir() for place in (Path(text[:cut]), Path("results") / text[:cut])):
            return text[:cut], text[cut + 1 :] if cut < len(text) else None
    return text[: cuts[-1]], None  # nothing exists: what is before the first colon is looked for, and not found


def _loaded(text: str) -> tuple[ResultSet, str | None]:
    from autoshield_bench.results import load_results

    name, defense = split_argument(text)
    return load_results(find_results(name)), defense


def _complain(comparison: Comparison) -> bool:
    """Say on stderr where B is worse or has lost results; return whether there is any such place."""
    from autoshield_bench.reporting.comparison import place_title, sentence
    from autoshield_bench.reporting.text import visible

    lines = [f"regression: {sentence(own, comparison)}" for own in comparison.regressions]
    lines += [f"lost: {place_title(own.place, comparison)}: {own.reason}" for own in comparison.lost]
    for line in lines:
        sys.stderr.write(f"{visible(line)}\n")
    return bool(lines)
