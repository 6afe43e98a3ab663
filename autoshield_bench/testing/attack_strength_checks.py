"""What an attack may see, and how strong it must be: two more groups of ``attack_checks``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoshield_bench.contracts import LossGradient, Target
from autoshield_bench.testing.attack_runs import (
    EPS,
    adversarial,
    norms,
    randomised_request,
    replaced_target,
    request_for,
    steady,
)
from autoshield_bench.testing.checks import check
from autoshield_bench.testing.outcome import ContractViolation, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, World, margins

LINEAR_SHARE = 0.95
"""Share of the closed-form optimum that an attack with gradients must reach on a linear model."""
CONFIDENT = 60.0
"""Sharpness at which the classifier is so sure that its gradients are tiny, as those of real networks are."""


# What it may see --------------------------------------------------------------------------------------------------


class _Sealed:
    """A target with the promised methods and nothing else to reach into."""

    __slots__ = ("classes", "logits", "loss_gradient", "select")

    def __init__(self, target: Target) -> None:
        def logits(x: Tensor) -> Tensor:
            return target.logits(x)

        def loss_gradient(x: Tensor, loss: Callable[[Tensor], Tensor]) -> LossGradient:
            return target.loss_gradient(x, loss)

        def select(rows: Tensor) -> _Sealed:
            return _Sealed(target.select(rows))

        self.classes, self.logits, self.loss_gradient, self.select = target.classes, logits, loss_gradient, select


@check(
    "attack",
    "public-target",
    meaning="The attack asks its target through classes, logits, loss_gradient and select alone.",
    catches="target._pipeline.classifier: past the access level, and past the count of passes.",
)
def public_target(subject: Subject, world: World) -> None:
    """Check that a target without private parts gives the same result."""
    for norm in norms(subject):
        whole = steady(subject, world, norm)
        request = request_for(world, norm, EPS[norm])
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
)
def randomised_target(subject: Subject, world: World) -> None:
    """Check a run against a pipeline that draws noise per image."""
    for norm in norms(subject):
        steady(subject, world, norm)
        try:
            adversarial(subject, randomised_request(world, norm, EPS[norm]))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ContractViolation(
                f"{norm}: raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ) from error


# Strength ---------------------------------------------------------------------------------------------------------


@check(
    "attack",
    "stronger-than-noise",
    meaning="It raises the margin of a confident classifier more than random noise of the full size does.",
    catches="Gradients under a fixed threshold count as zero, so confident images are never moved.",
)
def stronger_than_noise(subject: Subject, world: World) -> None:
    """Check the mean gain in margin against that of random noise of equal size."""
    for norm in norms(subject):
        request = request_for(world, norm, EPS[norm], model=world.classifier(CONFIDENT))
        clean, labels = request.images.clone(), request.labels.clone()
        result = adversarial(subject, request)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5)).to(clean)
        step = noise.sign() if norm == "linf" else noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        noisy = (clean + EPS[norm] * step).clamp(0, 1)
        model = world.classifier(CONFIDENT)  # a fresh one: what the attack did to its own is another check's matter
        with torch.no_grad():
            before, attacked, random = (margins(model(x), labels).mean() for x in (clean, result, noisy))
        gain, chance = float(attacked - before), float(random - before)
        require(
            gain > max(chance, 0.0),
            f"{norm} eps {EPS[norm]:g}: raised the mean margin by {gain:.4g}, random noise by {chance:.4g}",
        )


@check(
    "attack",
    "linear-optimum",
    meaning=f"On a linear model of two classes it reaches {LINEAR_SHARE:.0%} of the gain that theory allows.",
    catches="Half a step: eps is taken for the width of the ball instead of its radius.",
)
def linear_optimum(subject: Subject, world: World) -> None:
    """Check the gain in margin against eps times the dual norm of the weights."""
    for norm in norms(subject):
        model, images = world.linear(), world.inner_images
        with torch.no_grad():
            labels = model(images).argmax(1)
        eps = EPS[norm]
        result = adversarial(subject, request_for(world, norm, eps, model=model, images=images, labels=labels))
        gap = (model.weight[1] - model.weight[0]).detach()
        # Hoelder: the largest change of a linear function over a ball is eps times the dual norm of its weights.
        optimum = eps * float(gap.abs().sum() if norm == "linf" else gap.norm())
        with torch.no_grad():
            gain = float((margins(model(result), labels) - margins(model(images), labels)).mean())
        require(
            gain >= LINEAR_SHARE * optimum,
            f"{norm} eps {eps:g}: gained {gain:.4g} of the {optimum:.4g} that is possible ({gain / optimum:.1%})",
        )
