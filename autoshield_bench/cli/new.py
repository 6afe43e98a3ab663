"""``aubench new plugin``: write a small distribution to start from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

NAME = "new"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(NAME, help="write a new plugin", description="Write something to start from.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    plugin = actions.add_parser(
        "plugin",
        help="write a new plugin",
        description="Write a distribution with one plugin that works: pyproject, module, manifest, contract test and "
        "README. It installs and passes its test at once.",
    )
    plugin.add_argument("name", metavar="NAME", help="name of the plugin; the distribution is aubench-NAME")
    plugin.add_argument("--kind", choices=("attack", "defense", "metric"), required=True, help="what it is")
    plugin.add_argument(
        "--dir", type=Path, metavar="D", default=Path(), help="where the folder aubench-NAME goes (default: here)"
    )
    plugin.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the files, and say what to do next."""
    from autoshield_bench.scaffold.write import new_plugin

    root = new_plugin(arguments.name, arguments.kind, arguments.dir)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        sys.stdout.write(f"{path}\n")
    name = root.name.removeprefix("aubench-")
    sys.stderr.write(f"next: pip install -e {root} && pytest {root} && aubench plugins check {name}\n")
    return 0
