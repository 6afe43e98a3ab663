"""What a plan would cost: image-passes by counting, seconds from the journals of earlier runs of the suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoshield_bench.contracts import Attack, Dataset, Defense
from autoshield_bench.engine.cost import fit_passes, fitting_size, training_passes
from autoshield_bench.engine.pace import Pace, known_timings
from autoshield_bench.engine.runner import finished_record
from autoshield_bench.plan import Cell, Plan
from autoshield_bench.registry import speaking_for
from autoshield_bench.store import ArtifactStore
from autoshield_bench.suite_check import LoadedSuite
from autoshield_bench.verdicts import SHARE_OF_COST, Level, evidence_path


@dataclass(frozen=True)
class PlannedCell:
    """A cell and whether its record is there."""

    cell: Cell
    finished: bool


@dataclass(frozen=True)
class Job:
    """One artifact that the unfinished cells need."""

    stage: str
    title: str
    cached: bool
    passes: int | None
    """Image-passes at most, forward and backward together, over all components; None where the plugin does not say."""
    seconds: float | None
    """As earlier runs tell; None where none of them does."""

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON."""
        return {
            "stage": self.stage,
            "title": self.title,
            "cached": self.cached,
            "image_passes": self.passes,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Work:
    """What is to be done."""

    cells: tuple[PlannedCell, ...]
    jobs: tuple[Job, ...]
    evidence: float | None
    """Seconds that the judgements take; None where no earlier run tells."""
    level: Level
    """How much evidence is taken."""

    @property
    def seconds(self) -> float | None:
        """Seconds of one worker for all that is to do, as far as they are known; None where nothing that takes long
        is."""
        waiting = [job for job in self.jobs if not job.cached]
        # Scoring is a forward pass or two beside the attack's hundreds.
        if any(job.seconds is None for job in waiting if job.stage != "score"):
            return None
        return sum(job.seconds or 0.0 for job in waiting) + (self.evidence or 0.0)

    def summary(self) -> str:
        """Return the estimate in one phrase."""
        waiting = [job for job in self.jobs if not job.cached]
        passes = sum(job.passes or 0 for job in waiting)
        apart = self.level != "off" and self.evidence is None
        more = f", and up to {SHARE_OF_COST[self.level]:.0%} of the attacks for evidence" if apart else ""
        if self.seconds is None:
            return f"at most {passes:,} image-passes to do{more}; no earlier run here tells how long they take"
        return f"at most {passes:,} image-passes, about {self.seconds:.0f} s as earlier runs here went{more}"


def estimate(plan: Plan, cells: Sequence[Cell], loaded: LoadedSuite, store: ArtifactStore, directory: Path) -> Work:
    """Return the cells, the artifacts that unfinished ones need, and their cost."""
    planned = tuple(PlannedCell(cell, finished_record(directory, cell, loaded) is not None) for cell in cells)
    dataset: Dataset = loaded.registry.make(plan.dataset.plugin, plan.suite.dataset.params)
    fitting = fitting_size(dataset.info())
    needed = {str(item.cell.id): list(_needs(item.cell, loaded, fitting)) for item in planned}
    pace = Pace(known_timings(directory), _attack_bounds(needed))
    jobs: dict[tuple[str, str], Job] = {}
    for item in planned:
        if not item.finished:
            for stage, key, title, passes in needed[str(item.cell.id)]:
                cached = stage != "score" and store.has(stage, key)
                # As the journal counts them: in training once per epoch.
                images = {"train": (passes or 0) // 2, "fit": fitting}.get(stage, item.cell.images)
                took = None if cached else pace.seconds(stage, str(item.cell.id), images, passes)
                jobs.setdefault((stage, key), Job(stage, title, cached, passes, took))
    chosen = {cell.key for cell in cells}
    unjudged = [
        own.id
        for own in plan.evidence
        if chosen & {cell.key for cell in own.cells} and not (directory / evidence_path(own.key, own.id)).exists()
    ]
    judging = [pace.seconds("evidence", str(where), 1, None) for where in unjudged]
    known = [seconds for seconds in judging if seconds is not None]
    return Work(planned, tuple(jobs.values()), sum(known) if len(known) == len(judging) else None, plan.level)


def _attack_bounds(needed: Mapping[str, Sequence[tuple[str, str, str, int | None]]]) -> dict[tuple[str, str], int]:
    """Return the image-passes at most of each attack, by the cells that need it."""
    return {
        (stage, cell): passes
        for cell, works in needed.items()
        for stage, _key, _title, passes in works
        if stage == "attack" and passes is not None
    }


def _needs(cell: Cell, loaded: LoadedSuite, fitting: int) -> Iterator[tuple[str, str, str, int | None]]:
    """Yield (stage, key, title, image-passes) of everything that leads to a cell."""
    registry, attack = loaded.registry, cell.attack
    networks = [(cell.model, cell.stages)]
    if attack is not None and attack.access == "transfer":
        networks.append((attack.model, attack.seen))
    for model, stages in networks:
        if model.trained_by_harness:
            with speaking_for(model.use.plugin):
                epochs = registry.make(model.use.plugin, model.use.params).recipe().epochs
            yield "train", model.key, f"{model.use.label} (seed {model.seed})", training_passes(fitting, epochs)
        for position, stage in enumerate(stages):
            made = registry.make(stage.use.plugin, stage.use.params)
            if type(made).fit is not Defense.fit:
                title = f"{stage.component} (seed {stage.seed})"
                yield "fit", stage.key, title, fit_passes(made, position, fitting)
    if attack is not None:
        components = 1 + len(attack.seen)
        with speaking_for(attack.use.plugin):
            passes = _passes(registry.make(attack.use.plugin, attack.use.params), len(attack.routes))
        cost = None if passes is None else passes * cell.images * components * attack.eot
        if attack.queries is not None:
            cost = attack.queries * cell.images * components  # at most
        yield "attack", attack.key, attack.title(cell.id.defense), cost
    yield "score", cell.key, str(cell.id), cell.images * (1 + len(cell.stages))


def _passes(runner: Attack, routes: int) -> int | None:
    """Return the passes of an image that nothing breaks: in full on one route, a look at the others."""
    look = runner.first_look()
    full, beside = _own_passes(runner), _own_passes(runner if look is None else look)
    return None if full is None or beside is None else full + (routes - 1) * beside


def _own_passes(runner: Attack) -> int | None:
    """Return the passes of a run on one image, a gradient being two; None where the attack does not say."""
    steps, forward = runner.gradient_steps(), runner.forward_passes()
    return None if steps is None and not forward else 2 * (steps or 0) + forward
