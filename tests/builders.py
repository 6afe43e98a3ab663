"""Results made by hand, for tests of what is said about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoshield_bench.outcomes import Detection, Draws, Outcomes, mask_of
from autoshield_bench.results import (
    PLAN_SCHEMA,
    CellId,
    CellRecord,
    MetricResult,
    ResultSet,
    write_record,
)
from autoshield_bench.store import content_key, write_json
from autoshield_bench.verdicts import EvidenceId, EvidenceRecord, Ruling, Verdict, write_evidence


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


def drawn(
    place: CellId,
    scored: Sequence[int],
    selection: Sequence[int] | None = None,
    evaluated: Sequence[int] | None = None,
    *,
    n: int = 20,
    size: int = 10,
    **fields: Any,
) -> CellRecord:
    """Return what a cell of a stochastic defense came to: how many of ``n`` draws were right per evaluated image.

    Without a ``selection`` the two sets of draws agree.
    """
    images = range(size) if evaluated is None else evaluated
    draws = Draws(n=n, selection=bytes(scored if selection is None else selection), scored=bytes(scored))
    correct = [image for image, hits in zip(images, scored, strict=True) if 2 * hits > n]
    own = record(place, correct, images, size=size, **fields)
    return replace(own, outcomes=Outcomes.from_indices(size, images, correct, draws))


def detection(
    flagged: Mapping[str, Iterable[int]],
    *,
    size: int = 10,
    not_applicable: Mapping[str, str] | None = None,
    auroc: Mapping[str, float | None] | None = None,
) -> Detection:
    """Return what detectors made of a cell: the images flagged, by nominal false-positive rate as text."""
    return Detection(
        flagged={rate: mask_of(size, images) for rate, images in flagged.items()},
        thresholds={rate: {"1:autoencoder": 0.5} for rate in flagged},
        not_applicable=not_applicable or {},
        auroc=auroc or {"1:autoencoder": None},
    )


def verdict(check: str, ruling: Ruling = "pass", text: str = "so it is", **numbers: float) -> Verdict:
    """Return what a check says."""
    return Verdict(check=check, ruling=ruling, text=text, numbers=numbers)


def evidence(defense: str, *verdicts: Verdict, passes: int = 12, judged: int = 100, **fields: Any) -> EvidenceRecord:
    """Return what the checks said of a defense's worst case at the threat of ``cell``; a pass where none is named."""
    level = fields.pop("level", "fast")
    place = {"dataset": "mnist", "model": "small-cnn", "seed": 0, "norm": "linf", "eps": 0.2, **fields}
    where = EvidenceId(defense=defense, **place)
    return EvidenceRecord(
        key=content_key({"evidence": str(where)}),
        where=where,
        level=level,
        verdicts=verdicts or (verdict("valid"),),
        passes=passes,
        judged=judged,
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


def write_results(directory: Path, results: ResultSet, **plan_fields: Any) -> None:
    """Write a results directory as a run leaves it; ``plan_fields`` stand in its plan."""
    planned = [(own.key, own.cell) for own in results.records]
    planned += [(content_key({"cell": str(place)}), place) for place in results.missing]
    cells = [{"key": key, "cell": place.__dict__} for key, place in planned]
    judged = [{"key": own.key, "where": own.where.__dict__} for own in results.evidence]
    plan = {
        "schema": PLAN_SCHEMA,
        "suite": dict(results.suite),
        "data": None,
        "harness": {},
        "numeric_class": "",
        "checkpoints": {},
        "plugins": {},
        "cells": cells,
        "evidence": {"level": results.evidence_level, "records": judged},
        **plan_fields,
    }
    plan = {"suite_sha256": content_key(plan["suite"]), **plan}
    write_json(directory / "plan.json", plan)
    for found in results.evidence:
        write_evidence(directory, found)
    for own in results.records:
        write_record(directory, own)
