"""Walks a plan: runs the cells that have no sound record, isolates failures, keeps everything that is finished.

This module imports torch only once there is something to compute, so a re-run with nothing changed costs no start-up.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoshield_bench import places
from autoshield_bench.contracts import PairMetric, PredictionMetric
from autoshield_bench.engine.journal import Journal
from autoshield_bench.engine.progress import Progress, Silence
from autoshield_bench.errors import CheckpointError, StoreError, UsageError, WriteError
from autoshield_bench.numeric import Device, resolve_device
from autoshield_bench.plan import Cell, EvidencePlan, Plan, make_plan
from autoshield_bench.registry import speaking_for
from autoshield_bench.reporting.derived import leaderboard_json, markdown_report
from autoshield_bench.results import (
    CellRecord,
    ResultSet,
    cell_path,
    load_results,
    read_record,
    samples_path,
    write_record,
)
from autoshield_bench.routes import enumerated
from autoshield_bench.seeding import global_seed
from autoshield_bench.store import ArtifactStore, read_json, write_bytes, write_json, write_text
from autoshield_bench.suite_check import LoadedSuite, load_suite
from autoshield_bench.suite_file import replaced
from autoshield_bench.verdicts import LEVELS, NOT_MADE, Level, evidence_path, read_evidence, write_evidence

if TYPE_CHECKING:
    from autoshield_bench.engine.scoring import Score, Scorer

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
    evidence: Level = "fast"
    """How much is spent on the checks that gate a rank: ``off``; ``fast``, at most 30 % of the passes of the attacks
    that they judge; ``full``, at most 150 %."""


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
    evidence: Level = "fast",
    progress: Progress | None = None,
) -> ResultSet:
    """Run a suite and return its results; see ``RunOptions`` for the arguments.

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
        evidence=evidence,
    )
    return run_plan(plan_for(loaded, options), loaded, options, progress or Silence())


def plan_for(loaded: LoadedSuite, options: RunOptions) -> Plan:
    """Return the plan of a suite under these options."""
    for name, most in (("limit", 2**31), ("batch_size", 2**20), ("threads", 1024)):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= most:
            raise UsageError(f"{name.replace('_', '-')}: {value} is not between 1 and {most}")
    if options.evidence not in LEVELS:
        raise UsageError(f"evidence: {options.evidence!r} is not one of {', '.join(LEVELS)}")
    if options.seed is not None:
        if not 0 <= options.seed < 2**31:
            raise UsageError(f"seed: {options.seed} is not between 0 and 2147483647")
        loaded = LoadedSuite(replaced(loaded.suite, seeds=(options.seed,)), loaded.registry, loaded.folder)
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


def _finished(directory: Path, cells: Sequence[Cell], loaded: LoadedSuite) -> dict[str, CellRecord]:
    records = {cell.key: finished_record(directory, cell, loaded) for cell in cells}
    return {key: record for key, record in records.items() if record is not None}


def finished_record(directory: Path, cell: Cell, loaded: LoadedSuite) -> CellRecord | None:
    """Return a cell's record if nothing of it has to be computed: sound, well, and with every metric to be had."""
    path = directory / cell_path(cell.key, cell.id)
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except StoreError:
        return None
    if record.status != "ok" or record.key != cell.key or record.score_key != cell.score_key:
        return None
    if not (directory / samples_path(cell.key)).is_file():
        return None  # results that came from a repository: computed here, they have their per-image arrays
    if record.strong != _is_strong(cell) or record.facts.get("trained_on") != _trained_on(cell):
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


def run_plan(plan: Plan, loaded: LoadedSuite, options: RunOptions, progress: Progress) -> ResultSet:
    """Run what is not finished, one cell after the other, and return all results of the plan."""
    directory = results_directory(plan, options)
    chosen = plan.matching(options.only)
    if not chosen:
        raise UsageError(f"--only {options.only!r} matches no cell; `aubench plan` lists them")
    finished = {} if options.force else _finished(directory, chosen, loaded)
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
    journal = Journal(directory)
    try:
        if waiting or unjudged:
            _compute(_execution_order(waiting), unjudged, plan, loaded, options, directory, journal, progress)
    finally:
        journal.close()
        progress.end()
    results = load_results(directory)
    write_text(directory / "derived" / "leaderboard.md", markdown_report(results))
    write_text(directory / "derived" / "leaderboard.json", leaderboard_json(results))
    return results


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
        if read_json(path) == value:
            return
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


def _compute(
    cells: list[Cell],
    unjudged: list[EvidencePlan],
    plan: Plan,
    loaded: LoadedSuite,
    options: RunOptions,
    directory: Path,
    journal: Journal,
    progress: Progress,
) -> None:
    import torch

    from autoshield_bench.engine.data import Data
    from autoshield_bench.engine.environment import record_environment
    from autoshield_bench.engine.scoring import Scorer
    from autoshield_bench.engine.stages import Workshop

    batch_size = options.batch_size or BATCH_SIZES[plan.device]
    with _numeric_settings(options.threads):
        env = record_environment(directory, plan.device, torch.get_num_threads(), batch_size)
        dataset = loaded.registry.make(plan.dataset.plugin, plan.suite.dataset.params)
        data = Data(dataset, plan.data_dir)
        workshop = Workshop(
            registry=loaded.registry,
            store=ArtifactStore(options.cache_dir or places.cache_dir()),
            data=data,
            device=plan.device,
            batch_size=batch_size,
            journal=journal,
            progress=progress,
            force=options.force,
        )
        largest = max(cell.images for cell in plan.cells)
        journal.event("run", suite=plan.suite.name, cells=len(cells), device=plan.device, env=env)
        model = ""
        for cell in cells:
            if cell.model.key != model:
                # Cells of one classifier stand together: what was kept for those of another is let go.
                model, scorer = cell.model.key, Scorer(workshop, largest)
            if workshop.has_networks(cell):
                data.release_training()
            began = time.perf_counter()
            with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints is chatter
                record = _record(cell, scorer, directory, env)
            seconds = time.perf_counter() - began
            write_record(directory, record)
            journal.event("done", cell=str(cell.id), status=record.status, seconds=round(seconds, 4))
            progress.cell(record, seconds)
        if unjudged:
            from autoshield_bench.engine.evidence.judge import judge

            for own in unjudged:
                began = time.perf_counter()
                with contextlib.redirect_stdout(sys.stderr):
                    evidence = judge(own, plan.level, workshop, directory, env)
                write_evidence(directory, evidence)
                seconds = time.perf_counter() - began
                journal.event("judged", where=str(own.id), seconds=round(seconds, 4))
                progress.judged(evidence, seconds)


def _record(cell: Cell, scorer: Scorer, directory: Path, env: str) -> CellRecord:
    """Score one cell; whatever a plugin raises becomes a failed record, so that the other cells go on."""
    from autoshield_bench.engine.stages import describe_failure

    shared: dict[str, Any] = {"key": cell.key, "score_key": cell.score_key, "cell": cell.id, "env": env}
    try:
        with global_seed("cell", cell.key):
            score = scorer.score(cell)
    except (CheckpointError, WriteError):
        raise  # the user's file or the disk, not a plugin's doing: no other cell would fare better
    except (Exception, SystemExit) as error:
        return CellRecord(status="failed", error=describe_failure(error), facts=_facts(cell), **shared)
    _write_samples(directory, cell.key, score)
    return CellRecord(
        status="ok",
        outcomes=score.outcomes,
        detection=score.detection,
        strong=_is_strong(cell),
        metrics=score.metrics,
        passes=score.passes,
        facts=_facts(cell, score.routes),
        **shared,
    )


def _is_strong(cell: Cell) -> bool:
    return bool(cell.attack and cell.attack.spec.strong)


def _trained_on(cell: Cell) -> list[str]:
    return sorted({stage.spec.trained_on for stage in cell.stages} - {"nothing"})


def _facts(cell: Cell, routes: Mapping[str, Mapping[str, int]] | None = None) -> dict[str, Any]:
    """Return the provenance of a cell: who took part, with which parameters, through which gradients.

    ``routes`` says what became of each gradient route, once it is known."""
    facts: dict[str, Any] = {
        "model": {
            "identity": cell.model.use.identity,
            "key": cell.model.key,
            "trained_here": cell.model.trained_by_harness,
        },
        "defense": [
            {
                "component": stage.component,
                "identity": stage.use.identity,
                "key": stage.key,
                "differentiable": stage.spec.differentiable,
                "stochastic": stage.spec.stochastic,
            }
            for stage in cell.stages
        ],
        "trained_on": _trained_on(cell),
        "stochastic": any(stage.spec.stochastic for stage in cell.stages),
        "subset": {"images": cell.images, "rule": "stratified prefix of one fixed order"},
        "metrics": {use.label: use.identity for use in cell.metrics},
    }
    if cell.attack is not None:
        facts["attack"] = {
            "identity": cell.attack.use.identity,
            "key": cell.attack.key,
            "gradient_path": ["exact" if stage.spec.differentiable else "bpda" for stage in cell.attack.seen],
            "routes": dict(routes or {}),
            "every_route": enumerated([stage.link for stage in cell.attack.seen]) and len(cell.attack.routes) > 1,
            "false_positive_rate": cell.attack.rate,
            "eot": cell.attack.eot,
            "needs": cell.attack.spec.needs,
            "search": cell.attack.spec.search,
            "randomness": cell.attack.spec.randomness,
            "goal": cell.attack.goal,
            "queries": cell.attack.queries,
            "stop_on_success": cell.attack.stop_on_success,
            **({"eot_not_applicable": True} if cell.attack.eot_idle else {}),
            "made_on": {"model": cell.attack.model.key, "stages": [stage.key for stage in cell.attack.seen]},
        }
    return facts


def _write_samples(directory: Path, key: str, score: Score) -> None:
    from safetensors.torch import save

    plain = {name: tensor.contiguous() for name, tensor in score.samples.items()}
    write_bytes(directory / samples_path(key), save(plain))


@contextlib.contextmanager
def _numeric_settings(threads: int | None) -> Iterator[None]:
    """Ask torch for deterministic algorithms and a thread count, and give back what was set before."""
    import torch

    # cuBLAS is deterministic only with this set before its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
        torch.set_num_threads(before[3])
