"""Does jobs: computes a cell and writes its record, or judges a worst case and writes the verdicts.

Works the same in a worker process and in the caller's own. What several jobs share, such as networks in memory, is kept
from one to the next.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from autoshield_bench import places
from autoshield_bench.engine.data import Data
from autoshield_bench.engine.environment import Origin, record_environment
from autoshield_bench.engine.evidence.judge import judge
from autoshield_bench.engine.facts import facts, is_strong
from autoshield_bench.engine.jobs import Job, Reply, digest
from autoshield_bench.engine.journal import Journal
from autoshield_bench.engine.options import BATCH_SIZES, RunOptions, plan_for, results_directory
from autoshield_bench.engine.progress import Silence
from autoshield_bench.engine.repository import commit_of
from autoshield_bench.engine.scoring import Score, Scorer
from autoshield_bench.engine.stages import Workshop, describe_failure
from autoshield_bench.errors import AubenchError, CheckpointError, SuiteError, WorkerError, WriteError
from autoshield_bench.plan import Cell, EvidencePlan, Plan
from autoshield_bench.results import CellRecord, samples_path, write_record
from autoshield_bench.seeding import global_seed
from autoshield_bench.store import ArtifactStore, content_key, write_bytes
from autoshield_bench.suite_check import LoadedSuite, load_suite
from autoshield_bench.verdicts import write_evidence

Tell = Callable[[str], None]

_PAUSE = 0.2
"""Seconds between two reports on the same stage."""


class Bench:
    """Everything that the jobs of one run share."""

    def __init__(self, plan: Plan, loaded: LoadedSuite, options: RunOptions) -> None:
        self.plan = plan
        # Absolute: a plugin may be in another directory when something is to be written.
        self._directory = results_directory(plan, options).absolute()
        self._teller = _Teller()
        self._journal = Journal(self._directory)
        self._settings = contextlib.ExitStack()
        self._settings.enter_context(_numeric_settings(options.threads))
        batch_size = options.batch_size or BATCH_SIZES[plan.device]
        self._env = record_environment(self._directory, plan.device, torch.get_num_threads(), batch_size)
        dataset = loaded.registry.make(plan.dataset.plugin, plan.suite.dataset.params)
        self._data = Data(dataset, plan.data_dir)
        self._workshop = Workshop(
            registry=loaded.registry,
            store=ArtifactStore((options.cache_dir or places.cache_dir()).absolute()),
            data=self._data,
            device=plan.device,
            batch_size=batch_size,
            journal=self._journal,
            progress=self._teller,
            force=options.force,
        )
        self._origin = Origin(self._env, plan.numeric_class, plan.dataset.identity, self._data)
        self._largest = max(cell.images for cell in plan.cells)
        self._model, self._scorer = "", Scorer(self._workshop, self._largest)
        self._cells = {cell.key: cell for cell in plan.cells}
        self._evidence = {own.key: own for own in plan.evidence}
        about = {
            "suite": plan.suite.name,
            "sha256": content_key(plan.suite.to_json()),
            "env": self._env,
            # Not in the machine record: two commits that compute the same must leave the same bytes.
            "git": commit_of(loaded.folder),
        }
        self._journal.event("run", cells=len(plan.cells), device=plan.device, **about)

    def do(self, job: Job, tell: Tell) -> Reply:
        """Do a job of this run. Raises CheckpointError or StoreError where no other job would fare better."""
        self._teller.tell = tell
        self._workshop.made_now.update(job.made)
        before = set(self._workshop.made_now)
        began = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints is chatter
            if job.kind == "cell":
                self._compute(self._cells[job.key])
            else:
                self._judge(self._evidence[job.key])
        seconds = round(time.perf_counter() - began, 4)
        return Reply(seconds=seconds, made=tuple(sorted(self._workshop.made_now - before)))

    def close(self) -> None:
        """Give back what was set for the run."""
        self._settings.close()
        self._journal.close()

    def _compute(self, cell: Cell) -> None:
        if cell.model.key != self._model:
            # Cells of one classifier stand together: what was kept for those of another is let go.
            self._model, self._scorer = cell.model.key, Scorer(self._workshop, self._largest)
        if self._workshop.has_networks(cell):
            self._data.release_training()
        began = time.perf_counter()
        record = _record(cell, self._scorer, self._directory, self._origin)
        write_record(self._directory, record)
        seconds = round(time.perf_counter() - began, 4)
        self._journal.event("done", cell=str(cell.id), status=record.status, seconds=seconds)

    def _judge(self, own: EvidencePlan) -> None:
        began = time.perf_counter()
        evidence = judge(own, self.plan.level, self._workshop, self._directory, self._env)
        write_evidence(self._directory, evidence)
        self._journal.event("judged", where=str(own.id), seconds=round(time.perf_counter() - began, 4))


_benches: dict[str, Bench] = {}

_OF_THE_PROCESS = (errno.EMFILE, errno.EFBIG)
"""Why a file cannot be written for reasons of this process: descriptors that a plugin has left open, its limits."""


def answer(text: str, tell: Tell) -> str:
    """Do a job that says everything, and return the reply; an error that concerns the whole run is a reply too."""
    job = Job.from_text(text)
    handler = _Forward(tell)
    logging.getLogger("autoshield_bench").addHandler(handler)
    try:
        return _bench_for(job).do(job, tell).to_text()
    except WriteError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _OF_THE_PROCESS:
            raise  # this process can write no more, and ends; the disk is well
        return Reply(error=type(error).__name__, message=str(error)).to_text()
    except SuiteError as error:
        return Reply(error="SuiteError", message="; ".join(error.problems)).to_text()
    except AubenchError as error:
        return Reply(error=type(error).__name__, message=str(error)).to_text()
    except Exception as error:  # a bug of ours: said once, with its place in the log
        logging.getLogger(__name__).exception("job %s", job.key)
        return Reply(error=type(error).__name__, message=describe_failure(error)).to_text()
    finally:
        logging.getLogger("autoshield_bench").removeHandler(handler)


class _Forward(logging.Handler):
    """Passes what the harness logs on to whoever watches the run."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell it as a warning."""
        self._tell(json.dumps({"warn": record.getMessage()}))


def _bench_for(job: Job) -> Bench:
    if job.context not in _benches:
        for other in _benches.values():
            other.close()
        _benches.clear()
        options = job.run_options()
        lock = Path(job.lock) if job.lock else None
        loaded = load_suite(Path(job.suite), plugins=tuple(map(Path, job.plugins)), lock=lock)
        plan = plan_for(loaded, options)
        if digest(plan) != job.plan:
            raise WorkerError(
                f"{job.suite}: the suite, a plugin or the environment changed while it ran; run it again: what is "
                "finished stays"
            )
        _benches[job.context] = Bench(plan, loaded, options)
    return _benches[job.context]


class _Teller(Silence):
    """Tells whoever gave the job what goes on."""

    def __init__(self) -> None:
        self.tell: Tell = lambda _message: None
        self._last = 0.0

    def stage(self, title: str, total: int) -> None:
        """Tell of a stage."""
        self.tell(json.dumps({"stage": title, "total": total}))

    def advance(self, done: int) -> None:
        """Tell how far it is, now and then."""
        now = time.monotonic()
        if now - self._last > _PAUSE:
            self._last = now
            self.tell(json.dumps({"done": done}))

    def warn(self, message: str) -> None:
        """Pass a warning on."""
        self.tell(json.dumps({"warn": message}))


def _record(cell: Cell, scorer: Scorer, directory: Path, origin: Origin) -> CellRecord:
    """Score one cell; whatever a plugin raises becomes a failed record, so that the other cells go on."""
    shared: dict[str, Any] = {
        "key": cell.key,
        "score_key": cell.score_key,
        "cell": cell.id,
        "env": origin.env,
        "numeric_class": origin.numeric_class,
    }
    about = {"harness": origin.harness()}
    try:
        with global_seed("cell", cell.key):
            score = scorer.score(cell)
        about["inputs"] = origin.inputs(cell.images)
    except (CheckpointError, WriteError):
        raise  # the user's file or the disk, not a plugin's doing: no other cell would fare better
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return CellRecord(status="failed", error=describe_failure(error), facts=facts(cell) | about, **shared)
    return CellRecord(
        status="ok",
        outcomes=score.outcomes,
        detection=score.detection,
        strong=is_strong(cell),
        metrics=score.metrics,
        passes=score.passes,
        facts=facts(cell, score.routes, score.changed) | about,
        samples=_write_samples(directory, cell.key, score),
        **shared,
    )


def _write_samples(directory: Path, key: str, score: Score) -> str:
    """Write the per-image arrays and return the SHA-256 of their file."""
    from safetensors.torch import save

    plain = {name: tensor.contiguous() for name, tensor in score.samples.items()}
    data = save(plain)
    write_bytes(directory / samples_path(key), data)
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _numeric_settings(threads: int | None) -> Iterator[None]:
    """Ask torch for deterministic algorithms and a thread count, and give back what was set before."""
    # cuBLAS is deterministic only with this set before its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
        torch.backends.cudnn.allow_tf32,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # Torch's default lets a GPU round float32 to a mantissa of ten bits in convolutions.
    torch.backends.cudnn.allow_tf32 = False
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
        torch.set_num_threads(before[3])
        torch.backends.cudnn.allow_tf32 = before[4]
