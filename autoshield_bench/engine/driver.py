"""Hands what is to be done to an executor, piece by piece, and makes up for what is lost on the way.

The driver knows no more than the results directory and the cache tell: another one picks up wherever this one ends.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoshield_bench import places
from autoshield_bench.engine.executors import Executor, Outcome
from autoshield_bench.engine.facts import facts, is_strong
from autoshield_bench.engine.jobs import Job, Kind, Reply, job_for
from autoshield_bench.engine.options import RunOptions
from autoshield_bench.engine.progress import Progress
from autoshield_bench.errors import StoreError
from autoshield_bench.plan import Cell, EvidencePlan, Plan
from autoshield_bench.results import CellRecord, cell_path, read_record, write_record
from autoshield_bench.store import ArtifactStore
from autoshield_bench.suite_check import LoadedSuite
from autoshield_bench.verdicts import NOT_MADE, EvidenceRecord, Verdict, evidence_path, read_evidence, write_evidence

ATTEMPTS = 3
"""Times that a job is given to a worker before its loss is put down to the job."""

_QUOTED = 600
"""Characters of a lost worker's log that its record quotes."""


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A cell or a judgement that is to be done."""

    job: Job
    artifacts: tuple[tuple[str, str], ...]
    """Stage and key of what it reads or makes."""
    after: frozenset[str]
    """Keys of the cells that have to be finished first."""


class Driver:
    """Gets cells computed and worst cases judged."""

    def __init__(
        self, plan: Plan, loaded: LoadedSuite, options: RunOptions, directory: Path, progress: Progress
    ) -> None:
        self._plan = plan
        self._loaded = loaded
        self._options = options
        self._directory = directory
        self._progress = progress
        self._store = ArtifactStore(options.cache_dir or places.cache_dir())
        self._cells = {cell.key: cell for cell in plan.cells}
        self._evidence = {own.key: own for own in plan.evidence}
        self._made: set[str] = set()

    def hear(self, _ticket: int, message: str) -> None:
        """Show what a job tells while it runs."""
        try:
            value = json.loads(message)
        except ValueError:
            return
        if not isinstance(value, dict):
            return
        if "stage" in value:
            self._progress.stage(str(value["stage"]), int(value["total"]))
        elif "done" in value:
            self._progress.advance(int(value["done"]))
        elif "warn" in value:
            self._progress.warn(str(value["warn"]))

    def drive(self, cells: Sequence[Cell], unjudged: Sequence[EvidencePlan], executor: Executor) -> None:
        """Do all of it. Raises what a job raised that concerns the whole run; what is finished by then is on disk."""
        waiting = [*map(self._computing, cells), *map(self._judging, unjudged)]
        running: dict[int, _Piece] = {}
        attempts: Counter[str] = Counter()
        while waiting or running:
            while len(running) < executor.capacity and (piece := self._next(waiting, running.values())) is not None:
                waiting.remove(piece)
                attempts[piece.job.key] += 1
                made = tuple(sorted(self._made)) if self._options.force else ()
                running[executor.submit(dataclasses.replace(piece.job, made=made).to_text())] = piece
            for told in executor.wait():
                piece = running.pop(told.ticket)
                reply = Reply.from_text(told.reply) if told.status == "done" else None
                outcome = told
                if told.status == "done" and (reply is None or not self._is_done(piece, reply)):
                    # A plugin can write what it likes: that a job is done is believed where its result is there.
                    outcome = dataclasses.replace(told, status="lost", why="done as it said, without a sound result")
                if outcome.status == "lost" and attempts[piece.job.key] < ATTEMPTS:
                    self._progress.warn(f"{self._name(piece)}: its worker was {outcome.why}; it is done again")
                    waiting.insert(0, piece)
                elif reply is not None and reply.concerns_the_job_alone:
                    why = f"met by an error of its own: {reply.error}: {reply.message}"
                    self._give_up(piece, dataclasses.replace(outcome, status="late", why=why), 1)
                elif reply is not None and outcome.status == "done":
                    self._finish(piece, reply)
                else:
                    self._give_up(piece, outcome, attempts[piece.job.key])

    # -- order -----------------------------------------------------------------------------------------------------

    def _next(self, waiting: Sequence[_Piece], under_way: Collection[_Piece]) -> _Piece | None:
        """Return the first piece that nothing under way stands before.

        Two jobs never make the same artifact: the second would do in vain what the first has half done.
        """
        unfinished = {piece.job.key for piece in (*waiting, *under_way) if piece.job.kind == "cell"}
        held = {own for piece in under_way for own in piece.artifacts if self._is_missing(own)}
        for piece in waiting:
            if not piece.after & unfinished and not any(own in held for own in piece.artifacts):
                return piece
        return None

    def _is_missing(self, artifact: tuple[str, str]) -> bool:
        return not self._store.has(*artifact) or (self._options.force and artifact[1] not in self._made)

    def _computing(self, cell: Cell) -> _Piece:
        models, stages = [cell.model], list(cell.stages)
        attacks = []
        if cell.attack is not None:
            models, stages = [*models, cell.attack.model], [*stages, *cell.attack.seen]
            attacks.append(("attack", cell.attack.key))
        artifacts = [("train", model.key) for model in models if model.trained_by_harness]
        artifacts += [("fit", stage.key) for stage in stages]
        return _Piece(job=self._job("cell", cell.key), artifacts=(*artifacts, *attacks), after=frozenset())

    def _judging(self, own: EvidencePlan) -> _Piece:
        after = frozenset(cell.key for cell in (*own.cells, *own.easier))
        return _Piece(job=self._job("evidence", own.key), artifacts=(), after=after)

    def _job(self, kind: Kind, key: str) -> Job:
        return job_for(self._loaded, self._options, self._plan, kind, key)

    # -- outcomes --------------------------------------------------------------------------------------------------

    def _is_done(self, piece: _Piece, reply: Reply) -> bool:
        if reply.error:
            return True
        try:
            if piece.job.kind == "cell":
                cell = self._cells[piece.job.key]
                read_record(self._directory / cell_path(cell.key, cell.id))
            else:
                own = self._evidence[piece.job.key]
                read_evidence(self._directory / evidence_path(own.key, own.id))
        except StoreError:
            return False
        return True

    def _finish(self, piece: _Piece, reply: Reply) -> None:
        reply.raise_error()
        self._made.update(reply.made)
        if piece.job.kind == "cell":
            self._show(self._cells[piece.job.key], reply.seconds)
        else:
            own = self._evidence[piece.job.key]
            self._progress.judged(read_evidence(self._directory / evidence_path(own.key, own.id)), reply.seconds)

    def _show(self, cell: Cell, seconds: float) -> None:
        self._progress.cell(read_record(self._directory / cell_path(cell.key, cell.id)), seconds)

    def _give_up(self, piece: _Piece, outcome: Outcome, attempts: int) -> None:
        """Record that a piece took its worker with it; the next run tries again."""
        times = f", {attempts} times" if outcome.status == "lost" else ""
        last = " ".join(outcome.log.split())[-_QUOTED:]
        error = f"its worker was {outcome.why}{times}" + (f"; it had last written: {last}" if last else "")
        if piece.job.kind == "cell":
            cell = self._cells[piece.job.key]
            record = CellRecord(
                key=cell.key,
                score_key=cell.score_key,
                cell=cell.id,
                status="crashed",
                error=error,
                strong=is_strong(cell),
                facts=facts(cell),
                numeric_class=self._plan.numeric_class,
            )
            write_record(self._directory, record)
            self._show(cell, 0.0)
            return
        own = self._evidence[piece.job.key]
        verdict = Verdict(check="valid", ruling="unproven", text=f"{NOT_MADE}: {error}", numbers={})
        evidence = EvidenceRecord(
            key=own.key, where=own.id, level=self._plan.level, verdicts=(verdict,), passes=0, judged=0
        )
        write_evidence(self._directory, evidence)
        self._progress.judged(evidence, 0.0)

    def _name(self, piece: _Piece) -> str:
        key = piece.job.key
        return str(self._cells[key].id) if piece.job.kind == "cell" else f"evidence on {self._evidence[key].id}"
