"""Results made by hand, for tests of what is said about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoshield_bench.outcomes import Outcomes
from autoshield_bench.results import (
    PLAN_SCHEMA,
    CellId,
    CellRecord,
    MetricResult,
    ResultSet,
    write_record,
)
from autoshield_bench.store import content_key, write_json


def cell(defense: str, attack: str | None = None, access: str | None = None, **fields: Any) -> CellId:
    """Return a cell's place; ``attack`` None is the cell on clean images."""
    threat = {} if attack is None else {"norm": fields.pop("norm", "linf"), "eps": fields.pop("eps", 0.2)}
    place = {"dataset": "mnist", "model": "small-cnn", "seed": 0, **threat, **fields}
    return CellId(defense=defense, attack=attack, access=access, **place)


def record(
    place: CellId,
    correct: Iterable[int] = (),
    evaluated: Iterable[int] | None = None,
    *,
    size: int = 10,
    error: str | None = None,
    **fields: Any,
) -> CellRecord:
    """Return what a cell came to: the images classified correctly, of those evaluated (all by default)."""
    outcomes = Outcomes.from_indices(size, range(size) if evaluated is None else evaluated, correct)
    return CellRecord(
        key=content_key({"cell": str(place)}),
        score_key="0" * 64,
        cell=place,
        status="failed" if error is not None else "ok",
        error=error,
        outcomes=None if error is not None else outcomes,
        **fields,
    )


def metric(pairs: Mapping[str, float | None] | None, n: int = 10, **fields: Any) -> MetricResult:
    """Return a metric's result by pair; None as a value is an undefined one, None as ``pairs`` none at all."""
    entries = {
        name: {"value": value, "n": n, "undefined": 0 if value is not None else n}
        for name, value in (pairs or {}).items()
    }
    return MetricResult(**{"direction": "higher", "unit": "", "notes": "", "pairs": entries, **fields})


def result_set(*records: CellRecord, missing: Iterable[CellId] = (), name: str = "mnist", **fields: Any) -> ResultSet:
    """Return records as the results of a suite."""
    return ResultSet(Path("results") / "x", {"name": name}, records, tuple(missing), **fields)


def write_results(directory: Path, results: ResultSet) -> None:
    """Write a results directory as a run leaves it."""
    planned = [(own.key, own.cell) for own in results.records]
    planned += [(content_key({"cell": str(place)}), place) for place in results.missing]
    cells = [{"key": key, "cell": place.__dict__} for key, place in planned]
    plan = {"schema": PLAN_SCHEMA, "suite": dict(results.suite), "plugins": {}, "cells": cells}
    write_json(directory / "plan.json", plan)
    for own in results.records:
        write_record(directory, own)
