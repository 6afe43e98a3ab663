"""``aubench plugins``: list what is installed, pin it, and check that a plugin keeps the rules."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoshield_bench.cli.options import LOCK_FILE, add_lock_options, add_plugin_option, lock_file, plugin_files
from autoshield_bench.cli.warnings import warn

if TYPE_CHECKING:
    from autoshield_bench.registry import Loading
    from autoshield_bench.testing.outcome import Outcome

NAME = "plugins"

KINDS = ("attack", "defense", "metric", "dataset", "model")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(NAME, help="list plugins", description="Look at the installed plugins.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list plugins", description="List plugins without importing their code.")
    listing.add_argument("--kind", choices=KINDS, help="only this kind")
    listing.add_argument(
        "--timings", action="store_true", help="show what each manifest costs to load, and who imports torch"
    )
    add_lock_options(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(handler=run_list)
    locking = actions.add_parser(
        "lock",
        help="pin the installed plugins",
        description="Write which distributions provide plugins here, with version and SHA-256 of their files. With "
        "--locked, other commands load nothing else. Loads no plugin.",
    )
    locking.add_argument(
        "--out", type=Path, metavar="FILE", default=Path(LOCK_FILE), help="where to write (default: ./%(default)s)"
    )
    locking.set_defaults(handler=run_lock)
    checking = actions.add_parser(
        "check",
        help="check that a plugin keeps the rules",
        description="Run the contract kit on one plugin, in a process of its own and with a time limit for each check. "
        "Exit code 1 where a check fails.",
    )
    checking.add_argument("name", metavar="NAME", help="name of the plugin, or DISTRIBUTION/NAME")
    checking.add_argument("--kind", choices=KINDS, help="kind, where plugins of several kinds share the name")
    checking.add_argument(
        "--params", metavar="JSON", default="{}", help="parameters as a JSON object, if not the defaults"
    )
    add_plugin_option(checking)
    checking.add_argument("--timeout", type=float, metavar="S", default=60.0, help="seconds per check (default: 60)")
    checking.add_argument("--json", action="store_true", help="print JSON")
    checking.set_defaults(handler=run_check)


def run_list(arguments: argparse.Namespace) -> int:
    """Print the plugins; what could not be loaded is warned of on stderr."""
    from autoshield_bench.registry import Registry

    registry = Registry.discover(lock=lock_file(arguments))
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
        value: dict[str, Any] = {"plugins": rows, "problems": problems}
        if arguments.timings:
            value["timings"] = [dataclasses.asdict(loading) for loading in registry.loadings]
        json.dump(value, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print_table(rows)
        if arguments.timings:
            _print_loadings(registry.loadings)
    for problem in registry.problems:
        warn(str(problem))
    return 0


def run_lock(arguments: argparse.Namespace) -> int:
    """Pin what is installed and print the file."""
    from autoshield_bench.pins import installed_pins, write_lock
    from autoshield_bench.reporting.text import visible

    pins = installed_pins()
    write_lock(arguments.out, [pinned.pin for pinned in pins])
    for pinned in pins:
        editable = ", editable: any change to its files is another hash" if pinned.editable else ""
        line = f"{pinned.pin.distribution} {pinned.pin.version}  {pinned.pin.sha256[:12]}{editable}"
        sys.stderr.write(f"{visible(line)}\n")
    sys.stdout.write(f"{arguments.out}\n")
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    """Run the contract kit on one plugin; return 1 where a check fails."""
    from autoshield_bench.errors import UsageError
    from autoshield_bench.registry import Registry
    from autoshield_bench.strict_json import parse_json
    from autoshield_bench.testing.isolated import isolated_checks
    from autoshield_bench.testing.subject import find_plugin

    try:
        params = parse_json(arguments.params)
    except ValueError as error:
        raise UsageError(f"--params: not JSON ({error})") from error
    if not isinstance(params, dict):
        raise UsageError(f"--params: {arguments.params} is not a JSON object, such as '{{\"steps\": 5}}'")
    if not arguments.timeout > 0:
        raise UsageError(f"--timeout: {arguments.timeout:g} is not positive")
    files = plugin_files(arguments)
    plugin = find_plugin(Registry.discover(files), arguments.name, arguments.kind)
    use = f"{plugin.distribution}/{plugin.name}"
    if not arguments.json:
        sys.stdout.write(
            f"{plugin.kind} {plugin.name} of {plugin.distribution} {plugin.distribution_version}".rstrip() + "\n"
        )
    outcomes = []
    for outcome in isolated_checks(plugin.kind, use, params=params, files=files, timeout=arguments.timeout):
        outcomes.append(outcome)
        if not arguments.json:
            _print_outcome(outcome)
    count = {
        verdict: sum(each.verdict == verdict for each in outcomes) for verdict in ("passed", "failed", "not judged")
    }
    if arguments.json:
        value = {
            "kind": plugin.kind,
            "name": plugin.name,
            "distribution": plugin.distribution,
            "params": params,
            "checks": [outcome.to_json() for outcome in outcomes],
            "passed": not count["failed"],
        }
        json.dump(value, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(", ".join(f"{number} {verdict}" for verdict, number in count.items()) + "\n")
    return 1 if count["failed"] else 0


def _print_outcome(outcome: Outcome) -> None:
    lines = [f"  {outcome.verdict:<10}  {outcome.check:<24}  {outcome.message}".rstrip()]
    if outcome.remedy:
        indent = 14 * " "  # under the name of the check
        text = f"{indent}what to do: {outcome.remedy}"
        # Redirected output is read by programs: fold only to the width of a terminal that is there.
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else len(text)
        lines += textwrap.wrap(text, max(width, 40), subsequent_indent=indent, break_on_hyphens=False)
    for line in lines:
        sys.stdout.write("".join(each if each.isprintable() else " " for each in line) + "\n")
    sys.stdout.flush()


def _print_loadings(loadings: Sequence[Loading]) -> None:
    from autoshield_bench.reporting.text import visible

    for loading in sorted(loadings, key=lambda loading: -loading.seconds):
        line = f"{loading.seconds:7.3f} s  {visible(loading.entry_point)} of {visible(loading.distribution)}"
        heavy = "  imports torch: name heavy code in the spec's factory, not in the manifest"
        sys.stdout.write(line + (heavy if loading.imported_torch else "") + "\n")


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
