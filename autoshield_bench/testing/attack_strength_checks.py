"""What an attack may see, and how strong it must be: two more groups of ``attack_checks``."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from autoshield_bench.balls import distance
from autoshield_bench.contracts import LossGradient, Norm, Target, TargetOutput, ThreatModel
from autoshield_bench.engine.access import QueryTarget
from autoshield_bench.errors import AccessError
from autoshield_bench.margins import margins
from autoshield_bench.testing.attack_runs import (
    EPS,
    adversarial,
    declared,
    norms,
    randomised_request,
    replaced_target,
    request_for,
    run_as_declared,
    steady,
)
from autoshield_bench.testing.checks import check
from autoshield_bench.testing.outcome import ContractViolation, NotJudged, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, World

LINEAR_SHARE = 0.95
"""Share of the closed-form optimum that an attack with gradients must reach on a linear model."""
STRENGTH_QUERIES = 1000
"""Queries per image of an attack without gradients where its strength is judged."""
FEW_QUERIES = 7
"""A budget that every attack without gradients exhausts."""
CONFIDENT = 60.0
"""Sharpness at which the classifier is so sure that its gradients are tiny, as those of real networks are."""


# What it may see --------------------------------------------------------------------------------------------------


class _Sealed:
    """A target with the promised methods and nothing else to reach into."""

    __slots__ = ("classes", "detects", "labels", "logits", "loss_gradient", "output", "output_gradient", "select")

    def __init__(self, target: Target) -> None:
        def logits(x: Tensor) -> Tensor:
            return target.logits(x)

        def labels(x: Tensor) -> Tensor:
            return target.labels(x)

        def loss_gradient(x: Tensor, loss: Callable[[Tensor], Tensor]) -> LossGradient:
            return target.loss_gradient(x, loss)

        def output(x: Tensor) -> TargetOutput:
            return target.output(x)

        def output_gradient(x: Tensor, loss: Callable[[TargetOutput], Tensor]) -> LossGradient:
            return target.output_gradient(x, loss)

        def select(rows: Tensor) -> _Sealed:
            return _Sealed(target.select(rows))

        self.classes, self.detects, self.logits, self.labels = target.classes, target.detects, logits, labels
        self.loss_gradient, self.output, self.output_gradient, self.select = (
            loss_gradient,
            output,
            output_gradient,
            select,
        )


@check(
    "attack",
    "public-target",
    meaning="The attack asks its target through the methods of contracts.Target alone.",
    catches="target._pipeline.classifier: past the access level, and past the count of passes.",
    remedy="Replace what reaches inside by the methods of `request.target`, and tests of its type or its attributes "
    "by what the spec declares in `needs`. A library that wants an `nn.Module` is handed `TargetModule(request)`.",
)
def public_target(subject: Subject, world: World) -> None:
    """Check that a target without private parts gives the same result."""
    for norm in norms(subject):
        whole = steady(subject, world, norm)
        request = request_for(subject, world, norm, EPS[norm])
        try:
            result = adversarial(subject, replaced_target(request, _Sealed(request.target)))
        except AttributeError as error:
            raise ContractViolation(f"{norm}: reached for something that a target does not promise: {error}") from error
        differing = int((whole != result).flatten(1).any(1).sum())
        require(
            differing == 0,
            f"{norm}: {differing} of {IMAGES} images differ when the target offers its promised methods alone",
        )


@check(
    "attack",
    "randomised-target",
    meaning="It runs against a randomised pipeline, and calls select() before it asks about some of its images.",
    catches="target.logits(x[active]) on a smaller batch than the one the target was made for.",
    remedy="Where a step looks at some of the images, call `request.target.select(rows)` and "
    "`request.rng.select(rows)` first and ask those; `rows` may name an image more than once, for several points of "
    "it. `TargetModule(request)` does this for a wrapped library that cuts a batch down.",
)
def randomised_target(subject: Subject, world: World) -> None:
    """Check a run against a pipeline that draws noise per image."""
    for norm in norms(subject):
        steady(subject, world, norm)
        try:
            adversarial(subject, randomised_request(subject, world, norm, EPS[norm]))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ContractViolation(
                f"{norm}: raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ) from error


@check(
    "attack",
    "declared-access",
    meaning="It asks its target for what it declares to need and for nothing more.",
    catches="Declared needs='labels', and a loss of the logits underneath.",
    remedy='Ask with `request.target.labels(x)` under `needs="labels"`, and with `request.target.logits(x)` under '
    '`needs="scores"`. Where the method does use more, declare that in the spec: `needs="gradients"` is right for '
    "one that calls `loss_gradient`, and is not run under black-box access.",
)
def declared_access(subject: Subject, world: World) -> None:
    """Check that nothing is asked for that the declaration does not cover."""
    if declared(subject).needs == "gradients":
        raise NotJudged("it declares needs='gradients', which covers everything that a target gives")
    for norm in norms(subject):
        request = request_for(subject, world, norm, EPS[norm])
        try:
            run_as_declared(subject, request)
        except AccessError as error:
            raise ContractViolation(f"{norm}: {error}") from error


@check(
    "attack",
    "query-budget",
    meaning="When an image's query budget is spent it asks no more about it: BudgetSpent passes through, or is caught "
    "once for that image.",
    catches="A bare `except Exception` around the query, in a loop that asks again.",
    remedy="Let `BudgetSpent` leave `run`, or in a loop over single images take the image's row of its `best`. Narrow "
    "the `except` around a query to the errors that it is meant for, and read `request.queries` to plan ahead.",
)
def query_budget(subject: Subject, world: World) -> None:
    """Check a run whose budget ends early."""
    if declared(subject).needs == "gradients":
        raise NotJudged("it declares needs='gradients', and queries are counted under black-box access alone")
    for norm in norms(subject):
        request = request_for(subject, world, norm, EPS[norm], queries=FEW_QUERIES)
        log = cast("QueryTarget", request.target).log
        adversarial(subject, request)
        require(
            log.asked_again == 0,
            f"{norm}: asked {log.asked_again} more times about images whose {FEW_QUERIES} queries were spent",
        )


# Strength ---------------------------------------------------------------------------------------------------------


@check(
    "attack",
    "stronger-than-noise",
    meaning="It raises the margin of a confident classifier more than random noise of the full size does; "
    "a minimum-norm attack finds nearer points than noise of growing size.",
    catches="Gradients under a fixed threshold count as zero, so confident images are never moved.",
    remedy="Ascend a loss that is higher where the classifier is more wrong, and step along `gradient.sign()` for "
    "linf and along `gradient / norm` of each image for l2, so that a small gradient counts in full. The default "
    "parameters must be strong enough: steps that add up to at least eps, and no need of more than "
    f"{STRENGTH_QUERIES:,} queries per image without gradients.",
)
def stronger_than_noise(subject: Subject, world: World) -> None:
    """Check the mean gain in margin, or the median distance, against that of random noise."""
    for norm in norms(subject):
        request = request_for(
            subject, world, norm, EPS[norm], model=world.classifier(CONFIDENT), queries=STRENGTH_QUERIES
        )
        clean, labels = request.images.clone(), request.labels.clone()
        result = adversarial(subject, request)
        model = world.classifier(CONFIDENT)  # a fresh one: what the attack did to its own is another check's matter
        drawn = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5)).to(clean)
        noise = drawn.sign() if norm == "linf" else drawn / drawn.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        if declared(subject).search == "minimum-norm":
            _nearer_than_noise(model, clean, labels, result, noise, request.threat)
            continue
        noisy = (clean + EPS[norm] * noise).clamp(0, 1)
        with torch.no_grad():
            before, attacked, random = (margins(model(x).double(), labels).mean() for x in (clean, result, noisy))
        gain, chance = float(attacked - before), float(random - before)
        require(
            gain > max(chance, 0.0),
            f"{norm} eps {EPS[norm]:g}: raised the mean margin by {gain:.4g}, random noise by {chance:.4g}",
        )


def _nearer_than_noise(
    model: nn.Module, clean: Tensor, labels: Tensor, result: Tensor, noise: Tensor, ball: ThreatModel
) -> None:
    """Compare median distances; where no point is misclassified, an image counts with the size of the whole range."""
    found = _distances(model, clean, labels, result, ball)
    chance = torch.full_like(found, ball.eps)
    for step in range(1, 65):
        noisy = (clean + ball.eps * step / 64 * noise).clamp(0, 1)
        chance = torch.minimum(chance, _distances(model, clean, labels, noisy, ball))
    ours, theirs = float(found.median()), float(chance.median())
    require(
        ours < theirs,
        f"{ball.norm}: the median distance of its points is {ours:.4g}, that of growing noise {theirs:.4g}",
    )


def _distances(model: nn.Module, clean: Tensor, labels: Tensor, points: Tensor, ball: ThreatModel) -> Tensor:
    with torch.no_grad():
        fallen = model(points).argmax(1) != labels
    return torch.where(
        fallen, distance(points, clean, ball.norm), torch.full_like(fallen, ball.eps, dtype=torch.float64)
    )


@check(
    "attack",
    "linear-optimum",
    meaning=f"On a linear model of two classes it reaches {LINEAR_SHARE:.0%} of the gain that theory allows; a "
    "minimum-norm attack comes as near to the shortest distance.",
    catches="Half a step: eps is taken for the width of the ball instead of its radius.",
    remedy="Take eps as a radius, let the steps add up to at least eps, step along `gradient.sign()` for linf and "
    "along `gradient / norm` for l2, and bisect to the boundary in a minimum-norm attack. Where the method cannot "
    "promise the optimum, as a random search cannot, declare `linear_optimum=False`.",
)
def linear_optimum(subject: Subject, world: World) -> None:
    """Check the gain in margin, or the distance, against the closed form from the dual norm of the weights."""
    if not declared(subject).linear_optimum:
        raise NotJudged("it does not declare that it finds the optimum of a linear model")
    for norm in norms(subject):
        model, images = world.linear(), world.inner_images
        with torch.no_grad():
            labels = model(images).argmax(1)
        eps = EPS[norm]
        request = request_for(
            subject, world, norm, eps, model=model, images=images, labels=labels, queries=STRENGTH_QUERIES
        )
        result = adversarial(subject, request)
        gap = (model.weight[1] - model.weight[0]).detach()
        # Hoelder: the largest change of a linear function over a ball is eps times the dual norm of its weights.
        dual = float(gap.abs().sum() if norm == "linf" else gap.norm())
        with torch.no_grad():
            before, after = margins(model(images).double(), labels), margins(model(result).double(), labels)
        if declared(subject).search == "minimum-norm":
            _shortest(distance(result, images, norm), -before / dual, after, norm)
            continue
        gain, optimum = float((after - before).mean()), eps * dual
        require(
            gain >= LINEAR_SHARE * optimum,
            f"{norm} eps {eps:g}: gained {gain:.4g} of the {optimum:.4g} that is possible ({gain / optimum:.1%})",
        )


def _shortest(found: Tensor, optimum: Tensor, margin: Tensor, norm: Norm) -> None:
    standing = int((margin < 0).sum())
    require(standing == 0, f"{norm}: {standing} of {len(found)} points are classified correctly, on a linear model")
    ratio = float((found / optimum.clamp_min(1e-9)).median())
    require(
        ratio <= 1 / LINEAR_SHARE,
        f"{norm}: its points lie {ratio:.4g} times as far away as the nearest ones (median of {len(found)} images)",
    )


@check(
    "attack",
    "targeted-goal",
    meaning="Given targets, it raises their margin, and more so than without them.",
    catches="request.targets is never read: the attack goes for any wrong class.",
    remedy="Where `request.targets` is not None, descend the cross-entropy to `request.targets`, or ascend the "
    "margin of that class, in place of ascending the loss of the true one. An attack that has no such mode declares "
    "`targeted=False`.",
)
def targeted_goal(subject: Subject, world: World) -> None:
    """Check the mean gain in the target's margin with targets against that without."""
    if not declared(subject).targeted:
        raise NotJudged("it does not declare that it takes targets")
    for norm in norms(subject):
        with torch.no_grad():
            order = world.classifier()(world.images).argsort(1)
        targets = order[:, 0]  # the least likely class: an attack that looks for any wrong one goes elsewhere
        gains = []
        for given in (targets, None):
            request = request_for(subject, world, norm, EPS[norm], targets=given, queries=STRENGTH_QUERIES)
            result = adversarial(subject, request)
            model = world.classifier()
            with torch.no_grad():
                before, after = (-margins(model(x).double(), targets).mean() for x in (world.images, result))
            gains.append(float(after - before))
        require(
            gains[0] > max(gains[1], 0.0),
            f"{norm}: the targets' mean margin changed by {gains[0]:+.4g} with targets and {gains[1]:+.4g} without",
        )
