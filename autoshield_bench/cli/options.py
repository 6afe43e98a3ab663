"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoshield_bench.engine.options import RunOptions
    from autoshield_bench.suite_check import LoadedSuite

LOCK_FILE = "plugins.lock"


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides which cells there are."""
    parser.add_argument(
        "suite", metavar="SUITE", help="a suite file, or the name of a shipped suite (`aubench suites`)"
    )
    add_plugin_option(parser)
    add_lock_options(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    parser.add_argument("--seed", type=int, metavar="N", help="replace the suite's training seeds by this one")
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate at most N test images (a stratified subset)")
    parser.add_argument("--only", metavar="PATTERN", help="only cells whose id matches, such as '*/autoencoder/pgd/*'")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="data directory in torchvision's layout")
    parser.add_argument(
        "--results-dir",
        type=Path,
        metavar="DIR",
        default=Path("results"),
        help="results go to DIR/<suite> (default: %(default)s)",
    )
    parser.add_argument(
        "--evidence",
        choices=("fast", "full", "off"),
        default="fast",
        help="checks that gate a rank: fast costs at most 30 %% of the attacks they judge, full at most 150 %% "
        "(default: %(default)s)",
    )
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="cache of networks and adversarial images")


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """Add the plugin that is a single file."""
    parser.add_argument(
        "--plugin",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="also load a plugin from a single Python file; may be given more than once",
    )


def plugin_files(arguments: argparse.Namespace) -> tuple[Path, ...]:
    """Return the files that ``--plugin`` names, each once."""
    return tuple(dict.fromkeys(path.absolute() for path in arguments.plugin))


def add_lock_options(parser: argparse.ArgumentParser) -> None:
    """Add what holds the plugins to those that somebody looked at."""
    parser.add_argument(
        "--locked",
        action="store_true",
        help=f"load no plugin unless all are as ./{LOCK_FILE} pins them (`aubench plugins lock`)",
    )
    parser.add_argument("--lock-file", type=Path, metavar="FILE", help=f"another file than ./{LOCK_FILE}, for --locked")


def lock_file(arguments: argparse.Namespace) -> Path | None:
    """Return the file that pins the plugins; None where nothing is asked of them."""
    from autoshield_bench.errors import UsageError

    if arguments.lock_file is not None and not arguments.locked:
        raise UsageError("--lock-file: means something with --locked alone; give both")
    return (arguments.lock_file or Path(LOCK_FILE)) if arguments.locked else None


def load(arguments: argparse.Namespace) -> tuple[LoadedSuite, RunOptions]:
    """Return the suite that the arguments name and how to run it; plugins that could not load are warned of."""
    from autoshield_bench.cli.warnings import warn
    from autoshield_bench.engine.options import RunOptions
    from autoshield_bench.errors import PluginError
    from autoshield_bench.providers import FILE
    from autoshield_bench.suite_check import load_suite

    loaded = load_suite(arguments.suite, plugins=plugin_files(arguments), lock=lock_file(arguments))
    for problem in loaded.registry.problems:
        if problem.distribution == FILE:
            raise PluginError(str(problem))  # asked for by name: never passed over
        warn(str(problem))
    options = RunOptions(
        results_dir=arguments.results_dir,
        data_dir=arguments.data_dir,
        cache_dir=arguments.cache_dir,
        device=arguments.device,
        seed=arguments.seed,
        limit=arguments.limit,
        only=arguments.only,
        force=getattr(arguments, "force", False),
        batch_size=getattr(arguments, "batch_size", None),
        threads=getattr(arguments, "threads", None),
        time_limit=getattr(arguments, "time_limit", None),
        evidence=arguments.evidence,
    )
    return loaded, options
