"""How the kit calls a metric: inputs from good to bad, and values that are fit to be judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from autoshield_bench.contracts import MetricSpec, MetricValues, PairMetric, PredictionMetric
from autoshield_bench.testing.outcome import NotJudged, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, World

AGREEMENT = 1e-6
"""Largest relative difference of values that must agree."""
LEVELS = (0.01, 0.03, 0.08, 0.15, 0.25, 0.4)
"""Standard deviations of the noise that grows."""

Inputs = tuple[Tensor, ...]
"""``(reference, other)`` for a pair metric; ``(labels, clean logits, logits)`` for one of predictions."""


def make(subject: Subject) -> PairMetric | PredictionMetric:
    """Return a fresh metric. Raises NotJudged where it cannot be taken here, such as for want of weights."""
    metric: PairMetric | PredictionMetric = subject.make()
    reason = metric.unavailable()
    if reason is not None:
        raise NotJudged(f"unavailable here: {reason}")
    metric.prepare()
    return metric


def batch(subject: Subject, world: World, rows: list[int] | None = None) -> Inputs:
    """Return an ordinary input at ``rows`` (all by default): noisy images, some of them broken."""
    chosen = list(range(IMAGES)) if rows is None else rows
    return tuple(tensor[chosen] for tensor in growing(subject, world)[3])


def growing(subject: Subject, world: World) -> list[Inputs]:
    """Return inputs from the best to the worst: images under growing noise, or predictions ever more wrong."""
    source = torch.Generator().manual_seed(29)
    if metric_spec(subject).looks_at == "pair":
        noise = torch.randn(world.images.shape, generator=source).to(world.images)
        return [(world.inner_images, (world.inner_images + level * noise).clamp(0, 1)) for level in LEVELS]
    labels = world.labels
    clean = _predicting(labels, world)
    cases: list[Inputs] = []
    for position in range(len(LEVELS)):
        wrong = torch.arange(IMAGES, device=labels.device) < IMAGES * position // (len(LEVELS) - 1)
        cases.append((labels, clean, _predicting(torch.where(wrong, (labels + 1) % world.classes, labels), world)))
    return cases


def extremes(subject: Subject, world: World) -> list[tuple[str, Inputs]]:
    """Return inputs at and beyond the edges of what is usual, each with a name."""
    cases = growing(subject, world)
    named = [("the best case", cases[0]), ("an ordinary case", cases[3]), ("the worst case", cases[-1])]
    if metric_spec(subject).looks_at == "pair":
        images = world.images
        zeros, ones = torch.zeros_like(images), torch.ones_like(images)
        return [
            *named,
            ("identical images", (images, images.clone())),
            ("identical black images", (zeros, zeros.clone())),
            ("black against white", (zeros, ones)),
            ("an image against its negative", (images, 1 - images)),
        ]
    labels = world.labels
    never = _predicting((labels + 1) % world.classes, world)
    return [*named, ("never right", (labels, never, never.clone()))]


def raw(metric: PairMetric | PredictionMetric, inputs: Inputs) -> MetricValues:
    """Return what the metric returns, whatever it is."""
    if isinstance(metric, PairMetric):
        reference, other = inputs
        return metric.per_image(reference, other)
    labels, clean, logits = inputs
    return metric.per_image(labels, clean, logits)


def measured(metric: PairMetric | PredictionMetric, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return values and where they are defined. Raises NotJudged where there is not one value per image."""
    returned: object = raw(metric, tuple(tensor.clone() for tensor in inputs))
    count = len(inputs[0])
    if not isinstance(returned, MetricValues) or tuple(getattr(returned.values, "shape", ())) != (count,):
        raise NotJudged("it does not return one value per image (check 'one-value-per-image')")
    defined = torch.ones(count, dtype=torch.bool) if returned.defined is None else returned.defined.cpu()
    return returned.values.detach().cpu(), defined


def numbers(metric: PairMetric | PredictionMetric, inputs: Inputs) -> list[float]:
    """Return the defined, finite values as the host hands them to ``aggregate``."""
    values, defined = measured(metric, inputs)
    found: list[float] = values[defined].tolist()
    return [value for value in found if math.isfinite(value)]


def defined_mean(metric: PairMetric | PredictionMetric, inputs: Inputs) -> float:
    """Return the plain mean of the defined values. Raises NotJudged where there is none."""
    found: Sequence[float] = numbers(metric, inputs)
    if not found:
        raise NotJudged("no value is defined and finite on ordinary input (check 'finite')")
    return math.fsum(found) / len(found)


def metric_spec(subject: Subject) -> MetricSpec:
    """Return what the metric declares."""
    return cast("MetricSpec", subject.spec)


def _predicting(classes: Tensor, world: World) -> Tensor:
    """Return logits whose highest is at ``classes``, with a margin of 1 to 4 and other logits that differ."""
    source = torch.Generator().manual_seed(31)
    logits = torch.rand((len(classes), world.classes), generator=source).to(world.device)
    margin = 2 + 3 * torch.rand((len(classes), 1), generator=source).to(world.device)
    return logits.scatter_add(1, classes[:, None], margin)


def steady(subject: Subject, world: World) -> tuple[Tensor, Tensor]:
    """Return the values of the ordinary input. Raises NotJudged where a second call gives other ones."""
    metric = make(subject)
    first, second = (measured(metric, batch(subject, world)) for _call in range(2))
    if not torch.equal(first[0][first[1]], second[0][second[1]]):
        raise NotJudged("two calls on the same images differ (check 'deterministic')")
    return first


def require_same(
    whole: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], when: str, tolerance: float = AGREEMENT
) -> None:
    """Raise ContractViolation where values, or where they are defined, differ."""
    changed_ = int((whole[1] != other[1]).sum())
    require(changed_ == 0, f"{when}, {changed_} of {IMAGES} images change between defined and undefined")
    defined = whole[1]
    a, b = whole[0][defined].double(), other[0][defined].double()
    gaps = (a - b).abs()
    differing = int((gaps > tolerance * a.abs().clamp_min(1.0)).sum())
    require(
        differing == 0,
        f"{when}, {differing} of {IMAGES} values differ, by up to {float(gaps.max()) if len(gaps) else 0.0:.3g}",
    )
