"""``aubench run``: run a suite and print its leaderboard."""

from __future__ import annotations

import argparse
import sys

from autoshield_bench.cli.options import add_plan_options, load
from autoshield_bench.cli.show import add_print_options, print_results

NAME = "run"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        NAME,
        help="run a suite and print its leaderboard",
        description="Run what is not finished of a suite, then print its leaderboard. A cell that fails is recorded "
        "and does not stop the others; Ctrl-C keeps what is finished.",
    )
    add_plan_options(parser)
    parser.add_argument("--force", action="store_true", help="compute everything again")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images per batch of attacks and scoring")
    parser.add_argument("--threads", type=int, metavar="N", help="threads that torch may use")
    add_print_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the suite; return 1 where cells failed."""
    from autoshield_bench.cli.process import prepare_process
    from autoshield_bench.cli.progress import watcher
    from autoshield_bench.cli.warnings import show_log
    from autoshield_bench.engine.runner import plan_for, results_directory, run_plan

    show_log()
    prepare_process()
    loaded, options = load(arguments)
    plan = plan_for(loaded, options)
    results = run_plan(plan, loaded, options, watcher(quiet=arguments.quiet))
    code = print_results(results, arguments)
    sys.stderr.write(f"results: {results_directory(plan, options)}\n")
    return code
