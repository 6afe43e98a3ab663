"""``aubench plugins list``: what is installed, where it came from, and what could not be loaded."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from autoshield_bench.cli.warnings import warn

NAME = "plugins"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(NAME, help="list plugins", description="Look at the installed plugins.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list plugins", description="List plugins without importing their code.")
    listing.add_argument("--kind", choices=("attack", "defense", "metric", "dataset", "model"), help="only this kind")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(handler=run_list)


def run_list(arguments: argparse.Namespace) -> int:
    """Print the plugins; what could not be loaded is warned of on stderr."""
    from autoshield_bench.registry import Registry

    registry = Registry.discover()
    plugins = sorted(registry.plugins, key=lambda plugin: (plugin.kind, plugin.name, plugin.distribution))
    rows: list[dict[str, Any]] = [
        {
            "kind": plugin.kind,
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.distribution_version,
            "origin": plugin.origin,
            "summary": " ".join(plugin.spec.summary.split()),
        }
        for plugin in plugins
        if arguments.kind in (None, plugin.kind)
    ]
    problems = [
        {"distribution": problem.distribution, "entry_point": problem.entry_point, "message": problem.message}
        for problem in registry.problems
    ]
    if arguments.json:
        json.dump({"plugins": rows, "problems": problems}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print_table(rows)
    for problem in registry.problems:
        warn(str(problem))
    return 0


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from autoshield_bench.reporting.text import visible

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("kind", "name", "distribution", "version", "origin"):
        table.add_column(column, no_wrap=True)
    table.add_column("summary")
    for row in rows:
        table.add_row(*(visible(str(value)) for value in row.values()))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # Redirected output is read by programs: never fold a line to the width of a terminal that is not there.
        console.width = 240
    console.print(table)
