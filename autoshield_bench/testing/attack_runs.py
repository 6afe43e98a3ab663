"""How the kit runs an attack: requests as the host makes them, and results that are fit to be judged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoshield_bench.contracts import Attack, AttackRequest, AttackSpec, Defense, Norm, ThreatModel
from autoshield_bench.engine.access import GradientTarget
from autoshield_bench.engine.guard import check_shape
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline
from autoshield_bench.errors import CellError
from autoshield_bench.seeding import ImageRandom
from autoshield_bench.testing.outcome import NotJudged
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, SHAPE, Linear, World, global_state

EPS: dict[Norm, float] = {"linf": 0.1, "l2": 0.8}
"""Radius at which most properties are checked."""
WIDE: dict[Norm, float] = {"linf": 0.4, "l2": 3.0}
"""A radius at which the bounds of [0, 1] matter everywhere."""
CHUNK = 4
"""Images of a part: no part is a single image, which has a check of its own."""


def request_for(
    world: World,
    norm: Norm,
    eps: float,
    *,
    model: nn.Module | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    rows: list[int] | None = None,
    stages: tuple[FittedStage, ...] = (),
) -> AttackRequest:
    """Return a request as the host makes it, for the world's images at ``rows`` (all by default)."""
    chosen = list(range(IMAGES)) if rows is None else rows
    classifier = world.classifier() if model is None else model
    rng = world.rng(indices=chosen)
    target = GradientTarget(
        Pipeline(classifier, stages, PassCounter()),
        rng.child("target"),
        classes=2 if isinstance(classifier, Linear) else world.classes,
        eot=2,
    )
    return AttackRequest(
        images=(world.images if images is None else images)[chosen],
        labels=(world.labels if labels is None else labels)[chosen],
        threat=ThreatModel(norm=norm, eps=eps),
        target=target,
        rng=rng.child("attack"),
    )


def randomised_request(world: World, norm: Norm, eps: float) -> AttackRequest:
    """Return a request whose target adds noise per image before it classifies."""
    stage = FittedStage(component="0:noise", defense=_Noise(), differentiable=True, stochastic=True)
    return request_for(world, norm, eps, stages=(stage,))


def replaced_target(request: AttackRequest, target: Any) -> AttackRequest:
    """Return the request with another target."""
    return dataclasses.replace(request, target=target)


def norms(subject: Subject) -> tuple[Norm, ...]:
    """Return the norms that the attack declares."""
    return cast("AttackSpec", subject.spec).norms


def chunks() -> list[list[int]]:
    """Return the rows of the world's images in parts."""
    return [list(range(start, start + CHUNK)) for start in range(0, IMAGES, CHUNK)]


def adversarial(subject: Subject, request: AttackRequest, attack: Attack | None = None) -> Tensor:
    """Run the attack. Raises NotJudged where the result is no batch of finite images, which has its own checks."""
    runner: Attack = attack or subject.make()
    returned = runner.run(request)
    try:
        result = check_shape(returned, request.images, "the attack").detach()
    except CellError as error:
        raise NotJudged(f"{error} (check 'like-images')") from error
    if not bool(torch.isfinite(result).all()):
        raise NotJudged("the result is not finite (check 'finite')")
    return result


def two_runs(subject: Subject, world: World, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return the results of one request, run twice on one instance under different global seeds."""
    attack = subject.make()
    results = []
    for seed in (1, 2):
        with global_state(seed):
            results.append(adversarial(subject, request_for(world, norm, EPS[norm]), attack))
    return results[0], results[1]


def steady(subject: Subject, world: World, norm: Norm) -> Tensor:
    """Return the result of the full batch. Raises NotJudged where a second run gives another one."""
    first, second = two_runs(subject, world, norm)
    if not torch.equal(first, second):
        raise NotJudged("two runs with the same seed differ (check 'same-seed')")
    return first


@dataclass(frozen=True, kw_only=True)
class _Noise(Defense):
    """A randomised stage: noise that is keyed per image, so that a batch of the wrong size cannot pass."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the images with a little noise."""
        return (x + 0.05 * rng.normal(SHAPE, "noise").to(x)).clamp(0, 1)
