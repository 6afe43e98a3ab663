"""Runs a plan: what has no sound record is handed to an executor, piece by piece; what is finished stays.

Neither this module nor anything it imports loads torch: a re-run with nothing changed costs no start-up, and with
worker processes the parent stays small and alive whatever becomes of them, unless a plugin's own module loads torch or
ends the process while the suite is checked. All that the driver knows about a run is in
its results directory and in the cache; a new one picks up from there.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from autoshield_bench import places
from autoshield_bench.cache import in_use
from autoshield_bench.contracts import PairMetric, PredictionMetric
from autoshield_bench.engine.driver import Driver
from autoshield_bench.engine.executors import Executor
from autoshield_bench.engine.executors.inline import Inline
from autoshield_bench.engine.executors.local import Local
from autoshield_bench.engine.facts import is_strong, trained_on
from autoshield_bench.engine.jobs import Job
from autoshield_bench.engine.needs import needs
from autoshield_bench.engine.options import RunOptions, plan_for, results_directory
from autoshield_bench.engine.progress import Progress, Silence
from autoshield_bench.errors import StoreError, UsageError
from autoshield_bench.migration import read_plan_file
from autoshield_bench.plain_files import read_plain, refuse_odd_entries
from autoshield_bench.plan import Cell, EvidencePlan, Plan
from autoshield_bench.registry import speaking_for
from autoshield_bench.reporting.derived import leaderboard_json, markdown_report
from autoshield_bench.results import (
    LARGEST_SAMPLES,
    CellRecord,
    ResultSet,
    cell_path,
    load_results,
    other_plan_path,
    read_record,
    samples_path,
)
from autoshield_bench.store import results_lock, write_bytes, write_json, write_text
from autoshield_bench.suite_check import LoadedSuite, load_suite
from autoshield_bench.verdicts import NOT_MADE, Level, evidence_path, read_evidence


def run(
    suite: str | Path | LoadedSuite,
    *,
    results_dir: str | Path = "results",
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    device: str = "auto",
    seed: int | None = None,
    limit: int | None = None,
    only: str | None = None,
    force: bool = False,
    batch_size: int | None = None,
    threads: int | None = None,
    jobs: int | None = None,
    time_limit: float | None = None,
    evidence: Level = "fast",
    progress: Progress | None = None,
) -> ResultSet:
    """Run a suite and return its results; see ``RunOptions`` for the arguments.

    Computes in this process unless ``jobs`` asks for worker processes, which survive what plugins do to them.
    Cells that fail are recorded as failed and do not stop the others. Raises SuiteError, DataError, StoreError or
    UsageError before anything is computed.
    """
    loaded = suite if isinstance(suite, LoadedSuite) else load_suite(suite)
    options = RunOptions(
        results_dir=Path(results_dir),
        data_dir=Path(data_dir) if data_dir else None,
        cache_dir=Path(cache_dir) if cache_dir else None,
        device=device,
        seed=seed,
        limit=limit,
        only=only,
        force=force,
        batch_size=batch_size,
        threads=threads,
        jobs=jobs,
        time_limit=time_limit,
        evidence=evidence,
    )
    return run_plan(plan_for(loaded, options), loaded, options, progress or Silence())


def _finished(
    directory: Path, cells: Sequence[Cell], loaded: LoadedSuite, warn: Callable[[str], None]
) -> dict[str, CellRecord]:
    records = {cell.key: finished_record(directory, cell, loaded, warn) for cell in cells}
    return {key: record for key, record in records.items() if record is not None}


def finished_record(
    directory: Path, cell: Cell, loaded: LoadedSuite, warn: Callable[[str], None] = lambda _problem: None
) -> CellRecord | None:
    """Return a cell's record if nothing of it has to be computed: sound, well, and with every metric to be had.

    ``warn`` hears of one that is there and cannot be trusted.
    """
    path = directory / cell_path(cell.key, cell.id)
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except StoreError as error:
        warn(f"{error}; computed again")
        return None
    if record.status != "ok" or record.key != cell.key or record.score_key != cell.score_key:
        return None
    if not _has_samples(directory, record):
        return None  # results that came from a repository: computed here, they have their per-image arrays
    if record.strong != is_strong(cell) or record.facts.get("trained_on") != trained_on(cell):
        return None  # a plugin declares something else of itself now
    for use in cell.metrics:
        taken = record.metrics.get(use.label)
        if taken is None:
            return None
        if taken.retry:
            metric: PairMetric | PredictionMetric = loaded.registry.make(use.plugin, use.params)
            with speaking_for(use.plugin):
                if metric.unavailable() is None:
                    return None
    return record


def _has_samples(directory: Path, record: CellRecord) -> bool:
    """Return whether a record's per-image arrays are there, and whole."""
    try:
        data = read_plain(directory / samples_path(record.key), LARGEST_SAMPLES)
    except StoreError:
        return False
    return not record.samples or hashlib.sha256(data).hexdigest() == record.samples


def run_plan(plan: Plan, loaded: LoadedSuite, options: RunOptions, progress: Progress) -> ResultSet:
    """Run what is not finished, one cell after the other, and return all results of the plan.

    Raises HeldError where another run holds the results directory.
    """
    directory = results_directory(plan, options)
    refuse_odd_entries(directory)
    chosen = plan.matching(options.only)
    if not chosen:
        raise UsageError(f"--only {options.only!r} matches no cell; `aubench plan` lists them")
    with results_lock(directory):
        return _run_chosen(plan, chosen, loaded, options, directory, progress)


def _run_chosen(
    plan: Plan, chosen: Sequence[Cell], loaded: LoadedSuite, options: RunOptions, directory: Path, progress: Progress
) -> ResultSet:
    cache = options.cache_dir or places.cache_dir()
    finished = {} if options.force else _finished(directory, chosen, loaded, progress.warn)
    waiting = [cell for cell in chosen if cell.key not in finished]
    unjudged = _unjudged(directory, plan, chosen, waiting, force=options.force)
    _write_plan(directory, plan)
    progress.begin(len(chosen), len(chosen) - len(waiting))
    for label, reason in sorted(
        {
            (label, metric.unavailable)
            for record in finished.values()
            for label, metric in record.metrics.items()
            if metric.retry and metric.unavailable
        }
    ):
        progress.warn(f"metric {label!r} was unavailable: {reason}; `--force` tries again")
    try:
        if waiting or unjudged:
            driver = Driver(plan, loaded, options, directory, progress)
            with in_use(cache, needs(plan), directory), _executor(driver, plan, loaded, options, directory) as executor:
                driver.drive(_execution_order(waiting), unjudged, executor)
        elif cache.is_dir():
            with in_use(cache, needs(plan), directory):
                pass  # nothing to do, and what an interrupted run left is cleared away
    finally:
        progress.end()
    results = load_results(directory)
    write_text(directory / "derived" / "leaderboard.md", markdown_report(results))
    write_text(directory / "derived" / "leaderboard.json", leaderboard_json(results))
    return results


@contextlib.contextmanager
def _executor(
    driver: Driver, plan: Plan, loaded: LoadedSuite, options: RunOptions, directory: Path
) -> Iterator[Executor]:
    """Yield what does the jobs: worker processes, or this process where none were asked for."""
    if options.jobs is None:
        from autoshield_bench.engine.bench import Bench

        bench = Bench(plan, loaded, options)
        # An error that concerns the whole run is raised as it is: here no seam has to be passed.
        executor: Executor = Inline(lambda job, tell: bench.do(Job.from_text(job), tell).to_text(), driver.hear)
        closing = bench.close
    else:
        if loaded.file is None:
            raise UsageError("jobs: plugins that exist in this process alone cannot be handed to workers; leave it out")
        executor = Local(
            driver.hear,
            capacity=options.jobs,
            time_limit=options.time_limit,
            logs=directory / "journal",
            environment={} if options.threads is None else {"OMP_NUM_THREADS": str(options.threads)},
        )
        closing = executor.close
    try:
        yield executor
    finally:
        executor.close()
        closing()


def _unjudged(
    directory: Path, plan: Plan, chosen: Sequence[Cell], waiting: Sequence[Cell], *, force: bool
) -> list[EvidencePlan]:
    """Return the worst-case estimates to judge: those whose cells are all run here or on disk, and not judged yet."""
    running, here = {cell.key for cell in waiting}, {cell.key for cell in chosen}
    found = []
    for own in plan.evidence:
        keys = {cell.key for cell in (*own.cells, *own.easier)}
        if not keys & here:
            continue
        elsewhere = [cell for cell in (*own.cells, *own.easier) if cell.key not in running]
        if not all((directory / cell_path(cell.key, cell.id)).exists() for cell in elsewhere):
            continue
        path = directory / evidence_path(own.key, own.id)
        if force or keys & running or not _sound(path, own):
            found.append(own)
    return found


def _sound(path: Path, own: EvidencePlan) -> bool:
    try:
        if not path.exists():
            return False
        found = read_evidence(path)
        # What could not be asked is asked again: whatever stood in the way may be gone.
        return found.key == own.key and not any(verdict.text.startswith(NOT_MADE) for verdict in found.verdicts)
    except StoreError:
        return False


def _write_plan(directory: Path, plan: Plan) -> None:
    path, value = directory / "plan.json", plan.to_json()
    try:
        before = read_plan_file(path)
        if before == value:
            return
        other = str(before.get("numeric_class", ""))
        if before.get("suite_sha256") == value["suite_sha256"] and other not in ("", value["numeric_class"]):
            # Another machine's records stay, and so does what names them.
            write_bytes(directory / other_plan_path(other), path.read_bytes())
    except StoreError:
        pass
    write_json(path, value)


def _execution_order(cells: list[Cell]) -> list[Cell]:
    """Put cells that share a classifier, then an attack, beside each other, so that each is in memory once."""
    first_seen: dict[str, int] = {}
    for cell in cells:
        for key in (cell.model.key, cell.attack.key if cell.attack else ""):
            first_seen.setdefault(key, len(first_seen))
    return sorted(
        cells,
        key=lambda cell: (
            first_seen[cell.model.key],
            cell.attack is not None,
            first_seen[cell.attack.key if cell.attack else ""],
        ),
    )
