"""``aubench cache``: what the artifact cache holds, whether it is sound, and how to make it smaller."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

NAME = "cache"

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        NAME,
        help="show, check or prune the artifact cache",
        description="The cache of trained networks and adversarial images. All of it can be made again.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    info = actions.add_parser("info", help="what it holds", description="Number and size of the artifacts by stage.")
    info.set_defaults(handler=run_info)
    verify = actions.add_parser(
        "verify",
        help="hash everything again",
        description="Hash every artifact again and set damaged ones aside; the next run makes them anew. Exit code 3 "
        "where there were any.",
    )
    verify.set_defaults(handler=run_verify)
    prune = actions.add_parser(
        "prune",
        help="remove the longest unused",
        description="Remove what killed runs left and what was set aside, then artifacts, the longest unused first, "
        "down to a size. What a run under way or an interrupted one needs stays; exit code 1 where that is more than "
        "SIZE.",
    )
    prune.add_argument(
        "--keep", type=size_option, metavar="SIZE", required=True, help="bytes to keep, such as 500M, 2G or 0"
    )
    prune.add_argument("--abandon", action="store_true", help="keep nothing for interrupted runs")
    prune.set_defaults(handler=run_prune)
    for action in (info, verify, prune):
        action.add_argument("--cache-dir", type=Path, metavar="DIR", help="default: AUBENCH_CACHE or the user's cache")
        action.add_argument("--json", action="store_true", help="print JSON")


def run_info(arguments: argparse.Namespace) -> int:
    """Print what the cache holds."""
    from autoshield_bench.cache import contents, size_of

    root = _root(arguments)
    found = contents(root)
    stages: dict[str, dict[str, int]] = {}
    for entry in found.entries:
        own = stages.setdefault(entry.stage if entry.complete else "unfinished", {"artifacts": 0, "bytes": 0})
        own["artifacts"] += 1
        own["bytes"] += entry.size
    aside = {"artifacts": len(found.aside), "bytes": sum(map(size_of, found.aside))}
    runs = [{name: run.get(name) for name in ("pid", "host", "since")} for run in found.runs]
    living = {key for run in found.runs for key in run.get("keys", ())}
    waiting = [
        {"results": str(own.results), "since": _day(own.since)}
        for own in found.interrupted
        if not own.keys <= living  # those of a living run are in both places
    ]
    if arguments.json:
        value = {"path": str(root), "stages": stages, "set_aside": aside, "bytes": found.size, "runs": runs}
        value["interrupted"] = waiting
        return _print_json(value)
    sys.stdout.write(f"{root}\n")
    oldest: dict[str, float] = {}
    for entry in found.entries:
        name = entry.stage if entry.complete else "unfinished"
        oldest[name] = min(entry.used, oldest.get(name, entry.used))
    rows = [(name, own, f"  longest unused since {_day(oldest[name])}") for name, own in sorted(stages.items())]
    for name, own, note in [*rows, *([("set aside", aside, "")] if found.aside else [])]:
        sys.stdout.write(f"  {name:<10} {own['artifacts']:>6}  {size_text(own['bytes']):>9}{note}\n")
    artifacts = len(found.entries) + len(found.aside)
    sys.stdout.write(f"  {'all':<10} {artifacts:>6}  {size_text(found.size):>9}\n")
    for run in runs:
        sys.stdout.write(f"  in use by process {run['pid']} on {run['host']} since {run['since']}\n")
    for kept in waiting:
        line = f"kept for the run in {kept['results']}, interrupted on {kept['since']}; `prune --abandon` drops it"
        sys.stdout.write(f"  {_visible(line)}\n")
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Hash everything again; return 3 where something was damaged."""
    from autoshield_bench.cache import verify
    from autoshield_bench.errors import StoreError

    sound, damaged = verify(_root(arguments))
    if arguments.json:
        _print_json({"sound": sound, "damaged": damaged})
    else:
        for line in damaged:
            sys.stdout.write(f"damaged, set aside: {_visible(line)}\n")
        sys.stdout.write(f"{sound} artifacts are sound, {len(damaged)} damaged\n")
    return StoreError.exit_code if damaged else 0


def run_prune(arguments: argparse.Namespace) -> int:
    """Remove artifacts; return 1 where more than the size asked for has to stay."""
    from autoshield_bench.cache import prune

    done = prune(_root(arguments), arguments.keep, abandon=arguments.abandon)
    reached = done.left <= arguments.keep
    if arguments.json:
        value = {"removed": done.removed, "freed": done.freed, "left": done.left, "spared": done.spared}
        _print_json({**value, "keep": arguments.keep, "reached": reached})
    else:
        spared = f"; {done.spared} spared, which a run under way or an interrupted one needs" if done.spared else ""
        sys.stdout.write(
            f"{done.removed} artifacts removed, {size_text(done.freed)} freed, {size_text(done.left)} left{spared}\n"
        )
    return 0 if reached else 1


def size_option(text: str) -> int:
    """Return the bytes that a size such as ``500M`` or ``1.5 GiB`` stands for, in powers of 1024.

    Raises ArgumentTypeError where it is none.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kmgt]?)(?:i?b)?", text.strip().lower(), re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write one such as 500M, 2G or 0")
    return int(float(found[1]) * _UNITS[found[2]])


def size_text(size: int) -> str:
    """Return bytes as people read them."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def _root(arguments: argparse.Namespace) -> Path:
    from autoshield_bench import places

    return arguments.cache_dir or places.cache_dir()


def _day(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "an unknown day"


def _visible(line: str) -> str:
    from autoshield_bench.reporting.text import visible

    return visible(line)


def _print_json(value: dict[str, Any]) -> int:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0
