"""What a plan would cost: image-passes by counting, seconds from the journals of earlier runs of the suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoshield_bench.contracts import Attack, Dataset, Defense
from autoshield_bench.engine.cost import fit_passes, fitting_size, training_passes
from autoshield_bench.engine.journal import read_rates
from autoshield_bench.engine.runner import finished_record
from autoshield_bench.plan import Cell, Plan
from autoshield_bench.registry import speaking_for
from autoshield_bench.store import ArtifactStore
from autoshield_bench.suite_check import LoadedSuite
from autoshield_bench.verdicts import SHARE_OF_COST, Level


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
    """Image-passes, forward and backward together, over all components; None where the plugin does not say."""

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON."""
        return {"stage": self.stage, "title": self.title, "cached": self.cached, "image_passes": self.passes}


@dataclass(frozen=True)
class Work:
    """What is to be done."""

    cells: tuple[PlannedCell, ...]
    jobs: tuple[Job, ...]
    seconds: float | None
    """None where no earlier run on this machine tells how fast it is."""
    level: Level
    """How much evidence comes on top."""

    def summary(self) -> str:
        """Return the estimate in one phrase."""
        waiting = [job for job in self.jobs if not job.cached]
        passes = sum(job.passes or 0 for job in waiting)
        more = f", and up to {SHARE_OF_COST[self.level]:.0%} of the attacks for evidence" if self.level != "off" else ""
        if self.seconds is None:
            return f"about {passes:,} image-passes to do{more}; no earlier run here tells how long they take"
        return f"about {passes:,} image-passes and {self.seconds:.0f} s to do at the speed of earlier runs here{more}"


def estimate(plan: Plan, cells: Sequence[Cell], loaded: LoadedSuite, store: ArtifactStore, directory: Path) -> Work:
    """Return the cells, the artifacts that unfinished ones need, and their cost."""
    planned = tuple(PlannedCell(cell, finished_record(directory, cell, loaded) is not None) for cell in cells)
    dataset: Dataset = loaded.registry.make(plan.dataset.plugin, plan.suite.dataset.params)
    fitting = fitting_size(dataset.info())
    jobs: dict[tuple[str, str], Job] = {}
    for item in planned:
        if not item.finished:
            for stage, key, title, passes in _needs(item.cell, loaded, fitting):
                cached = stage != "score" and store.has(stage, key)
                jobs.setdefault((stage, key), Job(stage, title, cached, passes))
    rates = read_rates(directory)
    waiting = [job for job in jobs.values() if not job.cached]
    known = all(job.stage in rates for job in waiting if job.stage != "score")
    # Scoring is a forward pass or two beside the attack's hundreds: counted, but not timed where no run has told.
    seconds = sum((job.passes or 0) * rates.get(job.stage, 0.0) for job in waiting) if known else None
    return Work(planned, tuple(jobs.values()), seconds, plan.level)


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
