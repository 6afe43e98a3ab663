"""``aubench run``: run a suite and print its leaderboard."""

from __future__ import annotations

import argparse
import dataclasses

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
    parser.add_argument(
        "--jobs", type=_jobs, default="auto", metavar="N", help="worker processes, or auto: one for two cores (default)"
    )
    parser.add_argument(
        "--time-limit",
        type=_seconds,
        default=_TIME_LIMIT,
        metavar="TIME",
        help="longest that one cell may take, such as 90s, 30m or 12h, or none (default: 12h)",
    )
    parser.add_argument(
        "--in-process", action="store_true", help="compute in this process, for debuggers: what kills it ends the run"
    )
    add_print_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(handler=run)


_TIME_LIMIT = 12 * 3600.0
_UNITS = {"s": 1, "m": 60, "h": 3600}
_MOST_JOBS = 256


def _jobs(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_JOBS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number from 1 to {_MOST_JOBS}")
    return int(text)


def _seconds(text: str) -> float | None:
    if text == "none":
        return None
    unit = _UNITS.get(text[-1:])
    try:
        seconds = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give one such as 90s, 30m or 12h, or none")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Run the suite; return 1 where cells failed."""
    from autoshield_bench.cli.progress import watcher
    from autoshield_bench.cli.warnings import say, show_log
    from autoshield_bench.engine.options import plan_for, results_directory
    from autoshield_bench.engine.process import for_workers, prepare_process
    from autoshield_bench.engine.runner import run_plan

    show_log()
    loaded, options = load(arguments)
    if arguments.in_process:
        prepare_process()
        options = dataclasses.replace(options, time_limit=None)
    plan = plan_for(loaded, options)
    if not arguments.in_process:
        options = for_workers(options, arguments.jobs, plan.device)
    results = run_plan(plan, loaded, options, watcher(quiet=arguments.quiet))
    code = print_results(results, arguments)
    say(f"results: {results_directory(plan, options)}")
    return code
