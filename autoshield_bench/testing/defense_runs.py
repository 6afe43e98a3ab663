"""How the kit fits and runs a defense: stage after stage, as the host does it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoshield_bench.contracts import Defense, FitRequest
from autoshield_bench.engine.guard import check_images
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline, frozen
from autoshield_bench.errors import CellError
from autoshield_bench.seeding import ImageRandom, generator, global_seed
from autoshield_bench.testing.outcome import NotJudged
from autoshield_bench.testing.subject import Part, Subject
from autoshield_bench.testing.world import IMAGES, World, global_state

AGREEMENT = 1e-5
"""Largest difference of two runs that must agree: the order of float32 sums may show, nothing else."""


@dataclass(frozen=True)
class Fitted:
    """A fitted defense: its stages, in order."""

    stages: tuple[FittedStage, ...]

    @property
    def transforming(self) -> tuple[FittedStage, ...]:
        """The stages that map images. Raises NotJudged where there is none."""
        found = tuple(stage for stage in self.stages if stage.transforms)
        if not found:
            raise NotJudged("it does not transform images")
        return found

    @property
    def stochastic(self) -> bool:
        """Whether a stage declares itself stochastic."""
        return any(stage.stochastic for stage in self.stages)

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return what reaches the classifier, unchecked; without gradients."""
        with torch.no_grad():
            for position, stage in enumerate(self.transforming):
                x = stage.defense.purify(x, rng.child("stage", position))
        return x

    def pipeline(self, classifier: nn.Module) -> Pipeline:
        """Return the defended pipeline."""
        return Pipeline(classifier, self.stages, PassCounter())

    def logits(self, world: World, rows: Sequence[int] | None = None, *, seed: int = 7) -> Tensor:
        """Return the logits on the world's images at ``rows`` (all by default)."""
        chosen = list(range(IMAGES) if rows is None else rows)
        with torch.no_grad():
            return self.pipeline(world.classifier())(world.images[chosen], world.rng(seed, chosen)).logits


def fitted(subject: Subject, world: World, *, seed: int = 0) -> Fitted:
    """Return the defense, each stage fitted on the output of those before it. Raises NotJudged for an empty chain."""
    stages: list[FittedStage] = []
    for position, part in enumerate(subject.parts):
        stages.append(fit_stage(part, world, tuple(stages), position, seed=seed))
    if not stages:
        raise NotJudged("a chain without stages defends nothing")
    return Fitted(tuple(stages))


def fit_stage(
    part: Part,
    world: World,
    before: tuple[FittedStage, ...] = (),
    position: int = 0,
    *,
    seed: int = 0,
    classifier: nn.Module | None = None,
) -> FittedStage:
    """Return one stage, fitted if it learns anything."""
    spec, make = part
    defense: Defense = make()
    stage = FittedStage(
        component=f"{position}:{spec.name}",
        defense=defense,
        differentiable=spec.differentiable,
        stochastic=spec.stochastic,
    )
    if learns(defense):
        request = fit_request(world, before, stage.component, seed=seed)
        if spec.needs_classifier:
            request = dataclasses.replace(request, classifier=classifier or world.classifier())
        with global_seed("kit", seed, stage.component):
            defense.fit(request)
    for module in defense.modules():
        frozen(module.to(world.device))
    return stage


def learns(defense: Defense) -> bool:
    """Return whether the defense overrides ``fit``."""
    return type(defense).fit is not Defense.fit


def fit_request(world: World, before: tuple[FittedStage, ...], component: str, *, seed: int) -> FitRequest:
    """Return what the host hands to ``fit``: a fitting and a validation part, and nothing of the test images."""
    images, labels = world.part("fitting")
    validation_images, validation_labels = world.part("validation")
    return FitRequest(
        images=images,
        labels=labels,
        validation_images=validation_images,
        validation_labels=validation_labels,
        upstream=_upstream(before),
        classifier=None,
        generator=generator("kit", seed, component),
        device=world.device,
        progress=lambda _done, _total: None,
    )


def purified(defense: Fitted, world: World, rows: Sequence[int] | None = None, *, seed: int = 7) -> Tensor:
    """Return the purified images at ``rows``. Raises NotJudged where they are no images, which has its own checks."""
    chosen = list(range(IMAGES) if rows is None else rows)
    images = world.images[chosen]
    try:
        return check_images(defense.purify(images.clone(), world.rng(seed, chosen)), images, "purify")
    except CellError as error:
        raise NotJudged(f"{error} (checks 'like-images' and 'unit-range')") from error


def steady(defense: Fitted, world: World) -> Tensor:
    """Return the logits. Raises NotJudged where the same rng gives other ones, which has its own checks."""
    first = defended(defense, world)
    with global_state(99):
        second = defended(defense, world)
    if not torch.equal(first, second):
        raise NotJudged("two passes with the same rng differ (checks 'seeded' and 'randomness-from-rng')")
    return first


def defended(defense: Fitted, world: World, rows: Sequence[int] | None = None, *, seed: int = 7) -> Tensor:
    """Return finite logits. Raises NotJudged where they are none, which has its own checks."""
    try:
        logits = defense.logits(world, rows, seed=seed)
    except CellError as error:
        raise NotJudged(f"{error} (checks 'like-images' and 'unit-range')") from error
    count = IMAGES if rows is None else len(rows)
    if logits.shape != (count, world.classes) or not bool(torch.isfinite(logits).all()):
        raise NotJudged("the logits have the wrong shape or are not finite (check 'logits')")
    return logits


def doubled(defense: Defense) -> Defense:
    """Return a copy whose networks compute in float64."""
    twin = copy.deepcopy(defense)
    for module in twin.modules():
        module.double()
    return twin


def _upstream(before: tuple[FittedStage, ...]) -> Callable[[Tensor], Tensor]:
    def purify(x: Tensor) -> Tensor:
        with torch.no_grad():
            for stage in before:
                if stage.transforms:
                    x = stage.defense.purify(x, ImageRandom(17, range(len(x))).child(stage.component))
        return x

    return purify
