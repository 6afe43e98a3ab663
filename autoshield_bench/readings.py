"""Metric readings: values averaged over seeds, and the states in which there is no value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, TypeVar

from autoshield_bench.results import CellRecord, MetricResult

T = TypeVar("T")

_PAIRS = ("clean-adversarial", "clean-purified")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a reader must know of a metric."""

    label: str
    direction: str
    unit: str
    notes: str
    unavailable: str | None
    """Why it could not be taken somewhere, with the remedy."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A metric's value, averaged over seeds."""

    state: Literal["value", "undefined", "unavailable", "absent"]
    value: float | None = None
    n: int = 0
    """Images it was taken on, per seed; the smallest where seeds differ."""
    undefined: int = 0
    """Images among them without a value; the most of any seed."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One pair metric for one defense; every value compares with the clean image."""

    before: Reading
    """Adversarial image, before purification."""
    after: Reading
    """The adversarial image purified."""
    clean: Reading
    """The clean image purified."""


@dataclass(frozen=True)
class Passes:
    """Image-passes, forward and backward together, summed over a row's cells and seeds.

    Examples that several rows share, as gray-box ones do, are counted in each of them.
    """

    attack: int
    score: int


def metrics_of(records: Sequence[CellRecord]) -> tuple[list[Metric], list[Metric]]:
    """Return pair metrics (with those that were unavailable throughout) and prediction metrics."""
    by_label: dict[str, list[MetricResult]] = {}
    for record in records:
        for label, metric in record.metrics.items():
            by_label.setdefault(label, []).append(metric)
    pair: list[Metric] = []
    prediction: list[Metric] = []
    for label, own in by_label.items():
        pairs = {name for metric in own for name in metric.pairs}
        kind = prediction if "predictions" in pairs and not pairs.intersection(_PAIRS) else pair
        kind.append(
            Metric(
                label=label,
                direction=own[0].direction,
                unit=str(own[0].unit or ""),
                notes="; ".join(unique(str(metric.notes) for metric in own if metric.notes)),
                unavailable="; ".join(unique(metric.unavailable for metric in own if metric.unavailable)) or None,
            )
        )
    return pair, prediction


def read(records: Iterable[CellRecord], label: str, pair: str) -> Reading:
    """Return a metric's value over one cell per seed: the mean over the seeds that have one."""
    values, n, undefined = [], [], []
    unavailable = False
    for metric in (record.metrics[label] for record in records if label in record.metrics):
        unavailable = unavailable or bool(metric.unavailable)
        entry = metric.pairs.get(pair)
        if entry is None:
            continue
        n.append(_count(entry.get("n")))
        undefined.append(_count(entry.get("undefined")))
        value = entry.get("value")
        if isinstance(value, int | float) and math.isfinite(value):
            values.append(float(value))
    if not n:
        return Reading(state="unavailable" if unavailable else "absent")
    state: Literal["value", "undefined"] = "value" if values else "undefined"
    return Reading(state=state, value=fmean(values) if values else None, n=min(n), undefined=max(undefined))


def passes_of(records: Iterable[CellRecord], stage: str) -> int:
    """Return the image-passes of a stage (``attack`` or ``score``), forward and backward together."""
    return sum(
        _count(count)
        for record in records
        for component in record.passes.get(stage, {}).values()
        for count in component.values()
    )


def unique(values: Iterable[T]) -> list[T]:
    """Return the values without repetition, in the order of their first appearance."""
    return list(dict.fromkeys(values))


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
