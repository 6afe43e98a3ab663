"""``aubench merge``: join the results of one suite from several machines or parts. Imports no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoshield_bench.cli.show import find_results
from autoshield_bench.errors import StoreError

if TYPE_CHECKING:
    from autoshield_bench.merge.decide import Merge

NAME = "merge"

MERGE_SCHEMA = "aubench.merge/1"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        NAME,
        help="join the results of one suite from several machines or parts",
        description="Join results directories of one suite: parts run with --seed or --only, or the same cells from "
        "several machines. Equal results are taken once; of one numeric class, different ones are a conflict, never "
        "averaged; other numeric classes are kept beside and compared. Exit code 1 where there is a conflict, or "
        "classes differ more than rounding explains; 2 where they are not parts of one suite; 3 where files are "
        "damaged.",
    )
    parser.add_argument("first", metavar="A", help="a results directory, or a suite's name for ./results/NAME")
    parser.add_argument("others", metavar="B", nargs="+", help="the same; the leaderboard is of A's numeric class")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="DIR",
        help="write a new directory; without it, A gains what the others have, unless there is a conflict",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Merge. Raises UsageError or StoreError where that cannot be done; nothing is written then."""
    from autoshield_bench.cli.warnings import warn
    from autoshield_bench.merge.decide import decide, left_behind
    from autoshield_bench.merge.parts import check_apart
    from autoshield_bench.merge.write import add_to_first, write_into
    from autoshield_bench.reporting.derived import leaderboard_json, markdown_report
    from autoshield_bench.reporting.tables import json_text
    from autoshield_bench.reporting.text import visible
    from autoshield_bench.results import load_results
    from autoshield_bench.store import results_lock, write_text

    directories = [find_results(name) for name in (arguments.first, *arguments.others)]
    check_apart(directories, arguments.into)

    def derive(directory: Path) -> None:
        results = load_results(directory)
        write_text(directory / "derived" / "leaderboard.md", markdown_report(results))
        write_text(directory / "derived" / "leaderboard.json", leaderboard_json(results))

    target: Path | None = arguments.into or directories[0]
    if arguments.into is not None:
        merge = decide(directories)
        write_into(merge, arguments.into, derive)
    else:
        with results_lock(directories[0]):
            merge = decide(directories)
            if merge.conflicts:
                target = None
            else:
                add_to_first(merge, derive)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if arguments.json:
        sys.stdout.write(json_text(merge_value(merge, target)))
    else:
        sys.stdout.write("".join(f"{visible(line)}\n" for line in _lines(merge, target)))
    for path in left_behind(merge.parts[1:] if arguments.into is None else merge.parts):
        warn(f"{path}: no result, and not merged")
    for line in merge.damaged:
        warn(line)
    if merge.damaged:
        return StoreError.exit_code
    return int(bool(merge.conflicts) or merge.beyond)


def merge_value(merge: Merge, target: Path | None) -> dict[str, Any]:
    """Return a merge as JSON."""
    return {
        "schema": MERGE_SCHEMA,
        "merged": [str(part.directory) for part in merge.parts],
        "into": None if target is None else str(target),
        "suite": merge.plan["suite"].get("name"),
        "numeric_class": merge.numeric_class,
        "cells": {"planned": merge.planned, "present": merge.present, "in_several": merge.shared},
        "conflicts": [
            {"where": own.where, "files": [str(path) for path in own.files], "difference": own.said}
            for own in merge.conflicts
        ],
        "damaged": list(merge.damaged),
        "classes": [
            {
                "numeric_class": own.numeric_class,
                "plan": f"plans/{own.short}.json",
                "cells": own.cells,
                "changes": [
                    {
                        "cell": str(change.cell),
                        "n": change.n,
                        "changed": change.changed,
                        "compared": change.compared,
                        "accuracy": list(change.right),
                        "beyond_tolerance": change.beyond,
                    }
                    for change in own.changes
                ],
            }
            for own in merge.classes
        ],
        "tolerance": tolerance(),
    }


def tolerance() -> float:
    """Return the share of images that may change between numeric classes."""
    from autoshield_bench.merge.classes import TOLERANCE

    return TOLERANCE


def _lines(merge: Merge, target: Path | None) -> list[str]:
    from autoshield_bench.merge.classes import worst

    names = " and ".join(str(part.directory) for part in merge.parts)
    lines = [f"merged {names} into {target}" if target else f"not merged: {names} contradict each other; see below"]
    lines.append(
        f"numeric class {merge.numeric_class or 'not recorded'}: {merge.present} of {merge.planned} cells, "
        f"{merge.shared} of them in several directories with equal results"
    )
    if merge.present < merge.planned:
        lines.append("`aubench run` with the same suite runs the missing cells")
    for own in merge.classes:
        lines.append(
            f"numeric class {own.numeric_class or 'not recorded'}: {own.cells} cells, kept beside with their plan "
            f"(plans/{own.short}.json); the leaderboard is of {merge.numeric_class or 'the class of the first'}"
        )
        largest = worst(own.changes)
        if largest is None:
            lines.append("  no cell in both classes to compare")
            continue
        images, changed = sum(change.n for change in own.changes), sum(change.changed for change in own.changes)
        lines.append(
            f"  {changed} of {images} {largest.compared} differ in {len(own.changes)} cells; most, {largest.changed} "
            f"of {largest.n}, at {largest.cell}; tolerance {tolerance():.0%} of a cell"
        )
        lines += [
            f"  beyond tolerance: {change.cell}: {change.changed} of {change.n} {change.compared} differ, accuracy "
            f"{change.right[0]:.3f} and {change.right[1]:.3f}"
            for change in own.beyond
        ]
    for conflict in merge.conflicts:
        files = " and ".join(map(str, conflict.files))
        left = "left out, both kept under beside/" if target else "name a new directory with --into to merge the rest"
        lines.append(f"conflict: {conflict.where}: {conflict.said}: {files}; {left}")
    return lines
