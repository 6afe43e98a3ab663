"""What cells cost: image-passes from their records, seconds from the journal of this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from autoshield_bench.reporting.grids import Grid
from autoshield_bench.reporting.text import Plain
from autoshield_bench.results import ResultSet
from autoshield_bench.strict_json import json_lines

STAGES = ("train", "fit", "attack", "score")


@dataclass(frozen=True)
class Timing:
    """How long a stage of a cell took when it was last computed."""

    seconds: float
    images: int


def read_timings(directory: Path) -> dict[str, dict[str, Timing]]:
    """Return timings by cell id and stage from ``journal/*.jsonl``; the last one wins, torn lines are skipped."""
    found: dict[str, dict[str, Timing]] = {}
    files = (directory / "journal").glob("*.jsonl")
    # A journal's name ends in its time: <host>-<pid>-<utc>.jsonl.
    for path in sorted(files, key=lambda path: (path.stem.rsplit("-", 1)[-1], path.name)):
        for event in json_lines(path):
            _take(event, found)
    return found


def _take(event: object, found: dict[str, dict[str, Timing]]) -> None:
    if not isinstance(event, dict) or event.get("event") != "cell" or event.get("stage") not in STAGES:
        return
    seconds, images, cell = event.get("seconds"), event.get("images"), event.get("cell")
    if isinstance(cell, str) and _is_number(seconds) and _is_number(images):
        found.setdefault(cell, {})[event["stage"]] = Timing(float(seconds), int(images))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def cost_grid(results: ResultSet, timings: Mapping[str, Mapping[str, Timing]]) -> Grid:
    """Return one row per cell, stage and component. Timings of stages that belong to no cell come last."""
    rows: list[tuple[str, ...]] = []
    cells = [str(record.cell) for record in results.records]
    for name, record in zip(cells, results.records, strict=True):
        timed = timings.get(name, {})
        for stage in STAGES:
            components = record.passes.get(stage, {})
            times = _time_fields(timed.get(stage))
            for component, passes in components.items():
                counts = (Plain(passes.get("forward", 0)), Plain(passes.get("backward", 0)))
                rows.append((name, stage, component, *counts, *times))
                times = _time_fields(None)
            if stage in timed and not components:
                rows.append((name, stage, "-", Plain("-"), Plain("-"), *times))
    for name in sorted(timings.keys() - set(cells)):
        for stage, timing in timings[name].items():
            rows.append((name, stage, "-", Plain("-"), Plain("-"), *_time_fields(timing)))
    notes = ["Image-passes per component; examples that several cells share are counted in each."]
    if timings:
        notes.append("Seconds: when the stage was last computed on this machine; what came from the cache has none.")
    else:
        notes.append("No timings: the journal of the machine that ran this is not here.")
    header = ("Cell", "Stage", "Component", "Forward", "Backward", "Seconds", "Images/s")
    return Grid(f"Cost of {results.name}", header, tuple(rows), tuple(notes))


def cost_value(results: ResultSet, timings: Mapping[str, Mapping[str, Timing]]) -> list[dict[str, Any]]:
    """Return passes and timings by cell as a JSON value."""
    passes = {str(record.cell): record.passes for record in results.records}
    names = [*passes, *sorted(timings.keys() - passes.keys())]
    return [
        {
            "cell": name,
            "passes": passes.get(name, {}),
            "timings": {stage: asdict(timing) for stage, timing in timings.get(name, {}).items()},
        }
        for name in names
    ]


def _time_fields(timing: Timing | None) -> tuple[str, str]:
    if timing is None:
        return Plain(""), Plain("")
    speed = f"{timing.images / timing.seconds:.0f}" if timing.seconds > 0 else "-"
    return Plain(f"{timing.seconds:.2f}"), Plain(speed)
