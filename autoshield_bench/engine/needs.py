"""What a plan needs of the artifact cache, whether it is there or has yet to be made."""

from __future__ import annotations

from collections.abc import Iterator

from autoshield_bench.plan import Cell, Plan
from autoshield_bench.store import content_key


def needs(plan: Plan) -> frozenset[tuple[str, str]]:
    """Return stage and key of every artifact that a run of the plan reads or makes."""
    judged = (cell for own in plan.evidence for cell in (*own.cells, *own.easier))
    return frozenset(own for cell in (*plan.cells, *judged) for own in _of_cell(cell))


def _of_cell(cell: Cell) -> Iterator[tuple[str, str]]:
    models, stages = [cell.model], list(cell.stages)
    if cell.attack is not None:
        models, stages = [*models, cell.attack.model], [*stages, *cell.attack.seen]
        yield "attack", cell.attack.key
    for model in models:
        yield "train", model.key
    for stage in stages:
        yield "fit", stage.key
    yield "calibrate", calibration_key(cell)


def calibration_key(cell: Cell) -> str:
    """Return the key of the anomaly scores that fix a cell's thresholds: the one that ``stages`` uses."""
    stages = [stage.key for stage in cell.stages]
    return content_key({"stage": "calibrate", "model": cell.model.key, "stages": stages, "seed": cell.id.seed})
