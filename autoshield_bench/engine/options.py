"""How to run a suite, and the plan that comes of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from autoshield_bench import places
from autoshield_bench.errors import UsageError
from autoshield_bench.numeric import Device, resolve_device
from autoshield_bench.plan import Plan, make_plan
from autoshield_bench.suite_check import LoadedSuite
from autoshield_bench.suite_file import replaced
from autoshield_bench.verdicts import LEVELS, Level

BATCH_SIZES: dict[Device, int] = {"cpu": 250, "cuda": 2500, "mps": 1000}
"""Images per batch of attacks and scoring, fixed per device: chosen by measurement, never by timing at run time."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run, beside the suite itself."""

    results_dir: Path = Path("results")
    """Results go to ``<results_dir>/<suite>``, with ``-limit<N>`` and ``-seed<N>`` behind the name where those are
    set, so that a quick try never stands in for the suite's own results."""
    data_dir: Path | None = None
    cache_dir: Path | None = None
    device: str = "auto"
    seed: int | None = None
    """Replaces the suite's seeds."""
    limit: int | None = None
    """Evaluate at most so many test images."""
    only: str | None = None
    """Run only cells whose id matches this shell pattern."""
    force: bool = False
    """Compute everything again."""
    batch_size: int | None = None
    threads: int | None = None
    """Threads that torch may use, in each process."""
    jobs: int | None = None
    """Worker processes; None computes in this very process."""
    time_limit: float | None = None
    """Seconds that one cell, or one judgement, may take in a worker process."""
    evidence: Level = "fast"
    """How much is spent on the checks that gate a rank: ``off``; ``fast``, at most 30 % of the passes of the attacks
    that they judge; ``full``, at most 150 %."""


def plan_for(loaded: LoadedSuite, options: RunOptions) -> Plan:
    """Return the plan of a suite under these options."""
    for name, most in (("limit", 2**31), ("batch_size", 2**20), ("threads", 1024), ("jobs", 256)):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= most:
            raise UsageError(f"{name.replace('_', '-')}: {value} is not between 1 and {most}")
    if options.time_limit is not None and not options.time_limit > 0:
        raise UsageError(f"time-limit: {options.time_limit:g} is not positive")
    if options.evidence not in LEVELS:
        raise UsageError(f"evidence: {options.evidence!r} is not one of {', '.join(LEVELS)}")
    if options.seed is not None:
        if not 0 <= options.seed < 2**31:
            raise UsageError(f"seed: {options.seed} is not between 0 and 2147483647")
        loaded = dataclasses.replace(loaded, suite=replaced(loaded.suite, seeds=(options.seed,)))
    try:
        device = resolve_device(options.device)
    except ValueError as error:
        raise UsageError(f"device: {error}; choose auto or cpu") from error
    return make_plan(
        loaded,
        data_dir=options.data_dir or places.data_dir(),
        device=device,
        batch_size=options.batch_size or BATCH_SIZES[device],
        limit=options.limit,
        level=options.evidence,
    )


def results_directory(plan: Plan, options: RunOptions) -> Path:
    """Return where the results of this plan go."""
    limited = f"-limit{options.limit}" if options.limit else ""
    seeded = f"-seed{options.seed}" if options.seed is not None else ""
    return options.results_dir / f"{plan.suite.name}{limited}{seeded}"
