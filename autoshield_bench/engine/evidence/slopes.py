"""Whether gradients are there, and are what finite differences say: of the pipeline, and of each of its parts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autoshield_bench.engine.evidence.case import Case, Images, beyond
from autoshield_bench.engine.evidence.probes import noisy, probes
from autoshield_bench.engine.integrity import held_modules_of
from autoshield_bench.engine.pipeline import FittedStage
from autoshield_bench.errors import CellError, GradientCut
from autoshield_bench.margins import margins
from autoshield_bench.seeding import ImageRandom, global_seed
from autoshield_bench.verdicts import Verdict

_MOVED = 0.1
"""Change of a score, in units of its spread, that has to show in a gradient somewhere."""


@dataclass(frozen=True)
class _Slope:
    """One part of the pipeline as a function from images to one number per image."""

    name: str
    stage: FittedStage | None
    """None for the classifier."""
    scores: bool = False
    """Whether it is the stage's anomaly score, and not what it makes of an image."""

    @property
    def component(self) -> str:
        """The name under which its passes are counted."""
        return "classifier" if self.stage is None else self.stage.component


def gradients(case: Case) -> Verdict:
    """Gradients exist, are not zero under cross-entropy and margin alike, and agree with finite differences."""
    images = probes(case)
    x = images.images.to(case.device)
    labels = images.labels.to(case.device)
    rng = case.rng(images, "gradients")
    wrong: list[str] = []
    numbers: dict[str, Any] = {"images": len(images)}
    try:
        point = x.clone().requires_grad_()
        with global_seed("evidence", "gradients"):
            logits = case.pipeline(point, rng).logits
        known = (logits.argmax(1) == labels).cpu()
        zero = torch.ones(len(images), dtype=torch.bool)
        losses = (functional.cross_entropy(logits, labels, reduction="none"), margins(logits, labels))
        for loss in losses:
            (gradient,) = torch.autograd.grad(loss.sum(), point, retain_graph=True, allow_unused=True)
            if gradient is None:
                raise GradientCut("no gradient reaches the images")
            sizes = gradient.flatten(1).abs().amax(1).cpu()
            if not bool(torch.isfinite(sizes).all()):
                wrong.append(f"the gradients of {int((~torch.isfinite(sizes)).sum())} images are NaN or infinite")
            zero &= sizes == 0
        silent = int((zero & known).sum())
        numbers |= {"silent": silent, "correct": int(known.sum())}
        if beyond(silent, max(int(known.sum()), 1), 0.01):
            wrong.append(f"zero under cross-entropy and margin for {silent} of {int(known.sum())} correct images")
    except (GradientCut, RuntimeError) as error:
        wrong.append(" ".join(str(error).split())[:200])
    for stage in case.stages:
        if stage.component in case.thresholds and stage.differentiable:
            flat = _flat(case, stage, images)
            numbers[f"flat {stage.component}"] = flat
            if beyond(flat, len(images), 0.05):
                wrong.append(
                    f"the score of {stage.component} moves and has no slope for {flat} of {len(images)} images"
                )
    for slope in _slopes(case):
        off, asked = _disagreements(case, slope, images)
        numbers[f"disagree {slope.name}"] = off
        if beyond(off, max(asked, 1), 0.05):
            wrong.append(f"those of {slope.name} disagree with finite differences for {off} of {asked} images")
    text = "; ".join(wrong) if wrong else "gradients are there, and agree with finite differences"
    return Verdict(check="gradients", ruling="fail" if wrong else "pass", text=text, numbers=numbers)


def _slopes(case: Case) -> Iterator[_Slope]:
    for stage in case.stages:
        if stage.transforms and stage.differentiable:
            yield _Slope(stage.component, stage)
        if stage.component in case.thresholds and stage.differentiable:
            yield _Slope(f"the score of {stage.component}", stage, scores=True)
    yield _Slope("the classifier", None)


def _flat(case: Case, stage: FittedStage, images: Images) -> int:
    """Return for how many images noise moves the score of a stage that has no slope before it nor after."""
    rng = case.rng(images, "flat")
    values, slopes = [], torch.zeros(len(images), dtype=torch.bool)
    for number, x in enumerate((images.images, noisy(case, images))):
        inside = 0.05 + 0.9 * x + rng.uniform(x.shape[1:], "start", number, low=-0.01, high=0.01)
        point = inside.to(case.device).requires_grad_()
        with global_seed("evidence", "flat"):
            score = stage.defense.anomaly_score(point, case.classify, rng.child("score"))
        assert score is not None
        case.counter.forward(stage.component, len(images))
        values.append(score.detach().double().cpu())
        gradient = None
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score.sum(), point, allow_unused=True)
            case.counter.backward(stage.component, len(images))
        if gradient is not None:
            slopes |= gradient.flatten(1).abs().amax(1).cpu() > 0
    moved = (values[1] - values[0]).abs() > _MOVED * case.thresholds[stage.component].scale
    return int((moved & ~slopes).sum())


def _disagreements(case: Case, slope: _Slope, images: Images) -> tuple[int, int]:
    """Return for how many images autograd's slope is not that of finite differences, and of how many asked.

    In float64 where the stage computes in it, and in float32 with longer steps: the better of the two counts, since
    what computes in float32 inside has no slope at small steps. Asked inside [0, 1], where clipping has no kink, along
    the gradient and along a random direction. (0, 0) where the stage can be asked in neither.
    """
    rng = case.rng(images, "slopes")
    shape = images.images.shape[1:]
    # Values so far apart that what sorts them, as a median does, comes to few kinks within the long steps.
    start = (0.15 + 0.7 * images.images + rng.uniform(shape, "start", low=-0.1, high=0.1)).to(case.device)
    seen = rng.normal(shape, "seen").to(start)
    random = rng.normal(shape, "direction").to(start)
    best: int | None = None
    for precision, step in ((torch.float64, 1e-6), (torch.float32, 2e-3)):
        try:
            function = _function(case, slope, images, rng, precision, seen)
            case.counter.backward(slope.component, len(images))
            off = int(_compare(function, start.to(precision), random.to(precision), step).sum())
        except (RuntimeError, TypeError, ValueError, CellError):
            continue
        best = off if best is None else min(best, off)
        if best == 0:
            break
    return (0, 0) if best is None else (best, len(images))


def _function(case: Case, slope: _Slope, images: Images, rng: ImageRandom, precision: torch.dtype, seen: Tensor) -> Any:
    stage = slope.stage
    network = copy.deepcopy(case.pipeline.classifier).to(precision)

    def logits(x: Tensor) -> Tensor:
        case.counter.forward("classifier", len(x))
        return _as(network(x), precision)

    if stage is None:
        return lambda x: margins(logits(x), images.labels.to(x.device))
    defense = copy.deepcopy(stage.defense)
    for module in held_modules_of(defense):
        module.to(precision)
    position = [own.component for own in case.stages].index(stage.component)
    draws = rng.child("stage", position)

    def score(x: Tensor) -> Tensor:
        with global_seed("evidence", "slopes"):
            found = defense.anomaly_score(x.clone(), logits, draws)
        assert found is not None
        case.counter.forward(stage.component, len(x))
        return _as(found, precision)

    def purify(x: Tensor) -> Tensor:
        with global_seed("evidence", "slopes"):
            purified = defense.purify(x.clone(), draws)
        case.counter.forward(stage.component, len(x))
        return (_as(purified, precision) * seen.to(precision)).flatten(1).sum(1)

    return score if slope.scores else purify


def _as(value: Tensor, precision: torch.dtype) -> Tensor:
    if value.dtype != precision:
        raise TypeError(f"computes in {value.dtype}")
    return value


def _compare(function: Any, start: Tensor, random: Tensor, step: float) -> Tensor:
    """Return per image whether the slopes disagree along any direction."""
    point = start.clone().requires_grad_()
    value = function(point)
    (gradient,) = torch.autograd.grad(value.sum(), point, allow_unused=True) if value.requires_grad else (None,)
    gradient = torch.zeros_like(start) if gradient is None else gradient
    off = torch.zeros(len(start), dtype=torch.bool)
    shape = (-1, *[1] * (start.dim() - 1))
    for direction in (gradient.detach(), random):
        length = direction.flatten(1).norm(dim=1)
        unit = direction / length.clamp_min(1e-300 if start.dtype == torch.float64 else 1e-30).view(shape)
        claimed = (gradient * unit).flatten(1).sum(1)
        with torch.no_grad():
            ahead, behind = function(start + step * unit), function(start - step * unit)
        measured = (ahead - behind) / (2 * step)
        rounding = 8 * torch.finfo(start.dtype).eps * value.detach().abs().clamp_min(1e-3) / step
        size = torch.maximum(claimed.abs(), measured.abs())
        off |= ((claimed - measured).abs() > 0.25 * size + rounding).cpu()
    return off
