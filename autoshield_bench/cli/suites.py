"""``aubench suites``: the suites that ship with the package."""

from __future__ import annotations

import argparse
import json
import sys

NAME = "suites"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        NAME, help="list the shipped suites", description="List the suites that `aubench run NAME` finds by name."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the suites."""
    from autoshield_bench.shipped import shipped_suites
    from autoshield_bench.suite_file import SuiteDocument

    found = []
    for name, path in shipped_suites().items():
        suite = SuiteDocument.read(path).suite()
        found.append({"name": name, "description": suite.description, "path": str(path)})
    if arguments.json:
        json.dump(found, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("suite", "what it does", box=None, pad_edge=False)
    for entry in found:
        table.add_row(entry["name"], entry["description"])
    Console(highlight=False, markup=False).print(table)
    return 0
