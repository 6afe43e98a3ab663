"""``aubench plan``: what a run would do, what is finished, and what the rest would cost. Runs nothing."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from autoshield_bench.cli.options import add_plan_options, load

NAME = "plan"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        NAME,
        help="show the cells of a suite, what is finished and what the rest would cost",
        description="Show the cells of a suite, what is finished or cached, and a cost estimate. Runs nothing; brings "
        "the data set if it is not there, since its content is part of every key.",
    )
    add_plan_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    from autoshield_bench import places
    from autoshield_bench.engine.estimate import estimate
    from autoshield_bench.engine.options import plan_for, results_directory
    from autoshield_bench.plain_files import refuse_odd_entries
    from autoshield_bench.store import ArtifactStore

    loaded, options = load(arguments)
    plan = plan_for(loaded, options)
    store = ArtifactStore(options.cache_dir or places.cache_dir())
    directory = results_directory(plan, options)
    refuse_odd_entries(directory)
    work = estimate(plan, plan.matching(options.only), loaded, store, directory)
    if arguments.json:
        value: dict[str, Any] = {
            "suite": plan.suite.name,
            "results": str(directory),
            "device": plan.device,
            "cells": [
                {"cell": str(item.cell.id), "key": item.cell.key, "finished": item.finished, "images": item.cell.images}
                for item in work.cells
            ],
            "work": [job.to_json() for job in work.jobs],
            "seconds": work.seconds,
        }
        json.dump(value, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    for item in work.cells:
        sys.stdout.write(
            f"{'finished' if item.finished else 'to do   '}  {item.cell.id}  ({item.cell.images} images)\n"
        )
    sys.stdout.write("\n")
    for job in work.jobs:
        cost = f"{job.passes:,} image-passes" if job.passes is not None else "unknown cost"
        sys.stdout.write(f"{'cached ' if job.cached else 'to do  '}  {job.stage:<6}  {job.title}  {cost}\n")
    finished = sum(item.finished for item in work.cells)
    sys.stdout.write(f"\n{len(work.cells)} cells, {finished} finished; {work.summary()}\n")
    return 0
