"""How the kit runs an attack: requests as the host makes them, and results that are fit to be judged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoshield_bench.contracts import Attack, AttackRequest, AttackSpec, Defense, Norm, ThreatModel
from autoshield_bench.engine.access import attempt, searched, target_for
from autoshield_bench.engine.guard import check_shape
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline
from autoshield_bench.errors import AccessError, CellError
from autoshield_bench.seeding import ImageRandom, global_seed
from autoshield_bench.testing.outcome import NotJudged
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, SHAPE, Linear, World, global_state

EPS: dict[Norm, float] = {"linf": 0.1, "l2": 0.8}
"""Radius at which most properties are checked."""
WIDE: dict[Norm, float] = {"linf": 0.4, "l2": 3.0}
"""A radius at which the bounds of [0, 1] matter everywhere."""
QUERIES = 100
"""Queries per image that an attack without gradients is given, save where its strength is judged."""
CHUNK = 4
"""Images of a part: no part is a single image, which has a check of its own."""


def request_for(
    subject: Subject,
    world: World,
    norm: Norm,
    eps: float,
    *,
    model: nn.Module | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    rows: list[int] | None = None,
    stages: tuple[FittedStage, ...] = (),
    targets: Tensor | None = None,
    queries: int = QUERIES,
) -> AttackRequest:
    """Return a request as the host makes it, for the world's images at ``rows`` (all by default)."""
    spec = declared(subject)
    chosen = list(range(IMAGES)) if rows is None else rows
    classifier = world.classifier() if model is None else model
    rng = world.rng(indices=chosen)
    clean = (world.images if images is None else images)[chosen]
    true = (world.labels if labels is None else labels)[chosen]
    threat = searched(spec, ThreatModel(norm=norm, eps=eps), SHAPE)
    budget = None if spec.needs == "gradients" else queries
    target = target_for(
        spec,
        "white-box" if spec.needs == "gradients" else "black-box",
        Pipeline(classifier, stages, PassCounter()),
        rng.child("target"),
        classes=classifier.classes if isinstance(classifier, Linear) else world.classes,
        eot=2,
        images=clean,
        labels=true,
        threat=threat,
        targets=targets,
        queries=budget,
    )
    return AttackRequest(
        images=clean,
        labels=true,
        threat=threat,
        target=target,
        rng=rng.child("attack"),
        targets=targets,
        queries=budget,
        decoys=lambda: _decoys(world, clean, true, targets),
    )


def _decoys(world: World, images: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Return for each image the nearest of the world's validation images of another class, or else itself."""
    pool, classes = (part.to(images.device) for part in world.part("validation"))
    fits = classes[None] != labels[:, None] if targets is None else classes[None] == targets[:, None]
    away = torch.cdist(images.flatten(1), pool.flatten(1)).masked_fill(~fits, torch.inf)
    nearest = away.min(1)
    return torch.where(nearest.values.isfinite().view(-1, 1, 1, 1), pool[nearest.indices], images)


def run(subject: Subject, request: AttackRequest, attack: Attack | None = None) -> Any:
    """Run the attack as the host does. Raises NotJudged where it asks for more than it declares."""
    try:
        return run_as_declared(subject, request, attack)
    except AccessError as error:
        raise NotJudged(f"{error} (check 'declared-access')") from error


def run_as_declared(subject: Subject, request: AttackRequest, attack: Attack | None = None) -> Any:
    """Run the attack as the host does: global state is seeded where it says that it draws from there."""
    runner: Attack = attack or subject.make()
    if declared(subject).randomness == "rng":
        return attempt(runner, request)
    with global_seed("contract kit"):
        return attempt(runner, request)


def randomised_request(subject: Subject, world: World, norm: Norm, eps: float) -> AttackRequest:
    """Return a request whose target adds noise per image before it classifies."""
    stage = FittedStage(component="0:noise", defense=_Noise(), differentiable=True, stochastic=True)
    return request_for(subject, world, norm, eps, stages=(stage,))


def replaced_target(request: AttackRequest, target: Any) -> AttackRequest:
    """Return the request with another target."""
    return dataclasses.replace(request, target=target)


def norms(subject: Subject) -> tuple[Norm, ...]:
    """Return the norms that the attack declares."""
    return declared(subject).norms


def declared(subject: Subject) -> AttackSpec:
    """Return what the attack declares."""
    return cast("AttackSpec", subject.spec)


def with_eps(subject: Subject) -> tuple[Norm, ...]:
    """Return the norms of a fixed-budget attack. Raises NotJudged for a minimum-norm one, which knows no eps."""
    if declared(subject).search == "minimum-norm":
        raise NotJudged("a minimum-norm attack is not given an eps")
    return norms(subject)


def chunks() -> list[list[int]]:
    """Return the rows of the world's images in parts."""
    return [list(range(start, start + CHUNK)) for start in range(0, IMAGES, CHUNK)]


def adversarial(subject: Subject, request: AttackRequest, attack: Attack | None = None) -> Tensor:
    """Run the attack. Raises NotJudged where the result is no batch of finite images, which has its own checks."""
    returned = run(subject, request, attack)
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
            results.append(adversarial(subject, request_for(subject, world, norm, EPS[norm]), attack))
    return results[0], results[1]


def steady(subject: Subject, world: World, norm: Norm) -> Tensor:
    """Return the result of the full batch. Raises NotJudged where a second run gives another one."""
    if declared(subject).randomness == "irreproducible":
        raise NotJudged("it declares itself irreproducible")
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
