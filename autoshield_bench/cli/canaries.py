"""``aubench canaries``: do the checks catch defenses that are wrong in known ways, and let sound ones pass?"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoshield_bench.canaries.trial import Finding, Report

NAME = "canaries"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        NAME,
        help="try the checks on defenses that are wrong in known ways",
        description="Run defenses whose declarations are false, each at three strengths, and sound ones beside them, "
        "on scikit-learn's digits. Every canary must be caught by a check that is meant for it, and every sound "
        "defense must pass. Needs no network and leaves nothing behind. Exit code 1 where one is missed or a sound one "
        "is not let pass.",
    )
    parser.add_argument("--only", metavar="PATTERN", help="only defenses whose name matches, such as 'quantiser-*'")
    parser.add_argument(
        "--workers", type=int, metavar="N", default=2, help="processes of one thread each (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Hold the trial and print what became of each defense; return 1 where one was misjudged."""
    from autoshield_bench.cli.warnings import show_log
    from autoshield_bench.engine.process import prepare_process
    from autoshield_bench.errors import UsageError

    if not 1 <= arguments.workers <= 64:
        raise UsageError(f"--workers: {arguments.workers} is not between 1 and 64")
    show_log()
    prepare_process()  # before torch is loaded
    from autoshield_bench.canaries.trial import hold

    def tell(own: Finding) -> None:
        if not arguments.quiet:
            sys.stderr.write(f"{own.label}: {own.ruling}\n")
            sys.stderr.flush()

    report = hold(arguments.only, workers=arguments.workers, tell=tell)
    if arguments.json:
        json.dump(report.to_json(), sys.stdout, indent=2, allow_nan=False)
        sys.stdout.write("\n")
    else:
        _print(report)
    return int(bool(report.misses or report.false_alarms))


def _print(report: Report) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from autoshield_bench.reporting.text import visible

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("defense", "strength", "expected", "caught by", "worst case", "verdict"):
        table.add_column(column, justify="right" if column == "worst case" else "left")
    for own in report.findings:
        table.add_row(*(visible(text) for text in row(own)))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # Redirected output is read by programs: never fold a line to the width of a terminal that is not there.
        console.width = 200
    console.print(table)
    for own in (*report.misses, *report.false_alarms):
        said = [f"{verdict.check} ({verdict.ruling}): {verdict.text}" for verdict in own.verdicts if verdict.costs_rank]
        for line in [*own.errors, *said] or ["no check has anything against it"]:
            sys.stdout.write(visible(f"{own.label}: {line}") + "\n")
    sys.stdout.write(report.summary + "\n")


def row(own: Finding) -> tuple[str, ...]:
    """Return a line of the table."""
    from autoshield_bench.canaries.catalogue import STRENGTHS

    expected = "to pass" if own.strength is None else " or ".join(own.expected) or "a low worst case"
    found = ", ".join(verdict.check for verdict in own.verdicts if verdict.costs_rank) or "-"
    return (
        own.name,
        "sound" if own.strength is None else STRENGTHS[own.strength],
        expected,
        found,
        "-" if own.worst_case is None else f"{own.worst_case:.4f}",
        own.ruling,
    )
