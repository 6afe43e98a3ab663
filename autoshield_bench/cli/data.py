"""``aubench data``: bring a data set, and say where it lies."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

NAME = "data"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(NAME, help="fetch data sets", description="Bring data sets and list them.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    fetch = actions.add_parser("fetch", help="bring a data set", description="Bring a data set and verify it.")
    fetch.add_argument("name", metavar="NAME", help="name of the data set (`aubench data list`)")
    fetch.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where to put it; default: AUBENCH_DATA or the cache"
    )
    fetch.add_argument("--json", action="store_true", help="print JSON")
    fetch.set_defaults(handler=run_fetch)
    listing = actions.add_parser("list", help="list data sets", description="List the data sets there are plugins for.")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(handler=run_list)


def run_fetch(arguments: argparse.Namespace) -> int:
    """Fetch one data set and print where it lies."""
    from autoshield_bench import places
    from autoshield_bench.cli.warnings import show_log
    from autoshield_bench.registry import Registry, speaking_for

    show_log()
    registry = Registry.discover()
    plugin = registry.find("dataset", arguments.name)
    dataset = registry.make(plugin, {})
    data_dir = arguments.data_dir or places.data_dir()
    with speaking_for(plugin):
        where = dataset.fetch(data_dir)
        fingerprint = dataset.fingerprint(data_dir)
    if arguments.json:
        json.dump({"name": arguments.name, "path": str(where), "fingerprint": fingerprint}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(f"{where}\n")
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    """Print the data sets."""
    from autoshield_bench.registry import Registry

    plugins = Registry.discover().of_kind("dataset")
    if arguments.json:
        rows = [{"name": plugin.name, "summary": plugin.spec.summary} for plugin in plugins]
        json.dump(rows, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    from autoshield_bench.reporting.text import visible

    for plugin in plugins:
        sys.stdout.write(f"{plugin.name:<15}  {visible(' '.join(plugin.spec.summary.split()))}\n")
    return 0
