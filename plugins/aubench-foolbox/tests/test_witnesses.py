"""The adapters against foolbox called without them, against the built-in attacks, and against the closed form."""

from __future__ import annotations

from typing import Any

import eagerpy
import pytest
import torch
from autoshield_bench.balls import distance
from autoshield_bench.contracts import Norm
from autoshield_bench.seeding import global_seed
from cases import Case, foolbox, linear_case, registry, run

RADII: dict[Norm, float] = {"linf": 0.1, "l2": 0.5}
FB = foolbox.attacks

FIXED = [
    ("foolbox-fgsm", "linf", {}, FB.LinfFastGradientAttack()),
    ("foolbox-fgsm", "l2", {}, FB.L2FastGradientAttack()),
    ("foolbox-pgd", "linf", {"steps": 10}, FB.LinfProjectedGradientDescentAttack(steps=10, rel_stepsize=0.25)),
    ("foolbox-pgd", "l2", {"steps": 10}, FB.L2ProjectedGradientDescentAttack(steps=10, rel_stepsize=0.25)),
    (
        "foolbox-pgd",
        "linf",
        {"steps": 5, "step_size": 0.01, "random_start": False},
        FB.LinfProjectedGradientDescentAttack(steps=5, abs_stepsize=0.01, random_start=False),
    ),
    ("foolbox-mim", "linf", {}, FB.LinfMomentumIterativeFastGradientMethod()),
    ("foolbox-mim", "l2", {"momentum": 0.5}, FB.L2MomentumIterativeFastGradientMethod(momentum=0.5)),
]

NEAREST = [
    ("foolbox-deepfool", "linf", {}, FB.LinfDeepFoolAttack()),
    ("foolbox-deepfool", "l2", {"loss": "crossentropy"}, FB.L2DeepFoolAttack(loss="crossentropy")),
    ("foolbox-deepfool", "l2", {"steps": 2, "candidates": 4}, FB.L2DeepFoolAttack(steps=2, candidates=4)),
    ("foolbox-ddn", "l2", {}, FB.DDNAttack()),
    ("foolbox-ddn", "l2", {"steps": 4, "init_epsilon": 0.3}, FB.DDNAttack(steps=4, init_epsilon=0.3)),
    ("foolbox-fmn", "linf", {}, FB.LInfFMNAttack()),
    ("foolbox-cw", "l2", {"steps": 40, "step_size": 0.05}, FB.L2CarliniWagnerAttack(steps=40, stepsize=0.05)),
    (
        "foolbox-cw",
        "l2",
        {"steps": 30, "step_size": 0.1, "binary_search_steps": 5, "confidence": 0.5, "abort_early": False},
        FB.L2CarliniWagnerAttack(steps=30, stepsize=0.1, binary_search_steps=5, confidence=0.5, abort_early=False),
    ),
]


def names(cases: list[Any]) -> list[str]:
    return [f"{name}-{norm}-{position}" for position, (name, norm, *_) in enumerate(cases)]


def other_classes(case: Case) -> torch.Tensor:
    return (case.labels + 1) % 10


def goal(case: Case, *, targeted: bool) -> Any:
    if targeted:
        return foolbox.criteria.TargetedMisclassification(other_classes(case))
    return foolbox.criteria.Misclassification(case.labels)


def modes(cases: list[Any]) -> list[Any]:
    """Both goals where the attack takes targets."""
    return [
        pytest.param(*case, targeted, id=f"{name}-{'targeted' if targeted else 'untargeted'}")
        for name, case in zip(names(cases), cases, strict=True)
        for targeted in (False, True)
        if not targeted or registry().find("attack", case[0]).spec.targeted
    ]


@pytest.mark.parametrize(("name", "norm", "params", "outside", "targeted"), modes(FIXED))
def test_a_fixed_budget_attack_finds_what_foolbox_finds(
    digits: Case, name: str, norm: Norm, params: dict[str, Any], outside: Any, targeted: bool
) -> None:
    request, _ = digits.request(name, norm, RADII[norm], targets=other_classes(digits) if targeted else None)
    ours = run(name, request, **params)
    with global_seed("test"):
        _, theirs, _ = outside(
            digits.model(), digits.images, goal(digits, targeted=targeted), epsilons=request.threat.eps
        )
    assert float((ours - theirs).abs().max()) <= 1e-6
    assert float((ours - digits.images).abs().max()) > 0.05, "it moved"


@pytest.mark.parametrize(("name", "norm", "params", "outside", "targeted"), modes(NEAREST))
def test_a_minimum_norm_attack_finds_what_foolbox_finds(
    digits: Case, name: str, norm: Norm, params: dict[str, Any], outside: Any, targeted: bool
) -> None:
    request, _ = digits.request(name, norm, targets=other_classes(digits) if targeted else None)
    ours = run(name, request, **params)
    with global_seed("test"):
        theirs, _, found = outside(digits.model(), digits.images, goal(digits, targeted=targeted), epsilons=None)
    # Where CarliniWagner finds nothing it returns black images, and calls them found if the network takes them so.
    found &= (theirs != 0).flatten(1).any(1)
    assert int(found.sum()) > 0
    # Bit by bit but for DeepFool: gradients come in another order of memory, and each step repeats their rounding.
    room = 2e-7 if name == "foolbox-deepfool" else 0.0
    assert float((ours[found] - theirs[found]).abs().max()) <= room
    assert torch.equal(ours[~found], digits.images[~found]), "the clean image stands where foolbox found nothing"


def test_carlini_wagner_in_foolbox_returns_black_images_where_it_finds_nothing(digits: Case) -> None:
    """So that the rule above is about something; where this fails, foolbox has mended it."""
    outside = FB.L2CarliniWagnerAttack(steps=40, stepsize=0.05)
    found, _, _ = outside(digits.model(), digits.images, goal(digits, targeted=True), epsilons=None)
    assert 0 < int((found == 0).flatten(1).all(1).sum()) < len(found)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_the_built_in_one(digits: Case, norm: Norm) -> None:
    request, _ = digits.request("foolbox-fgsm", norm, RADII[norm])
    assert float((run("foolbox-fgsm", request) - run("fgsm", request)).abs().max()) <= 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_breaks_as_many_images_as_the_built_in_one(digits: Case, norm: Norm) -> None:
    request, _ = digits.request("foolbox-pgd", norm, RADII[norm])
    ours, built_in = (int(digits.wrong(run(name, request)).sum()) for name in ("foolbox-pgd", "pgd"))
    assert 10 <= built_in <= 50, "a comparison where all or nothing falls would say little"
    assert abs(ours - built_in) <= 1


@pytest.mark.parametrize(
    ("name", "norm", "params", "share"),
    [
        ("foolbox-deepfool", "linf", {}, 1.03),
        ("foolbox-deepfool", "l2", {}, 1.03),
        ("foolbox-cw", "l2", {"steps": 200, "step_size": 0.002}, 1.03),
        ("foolbox-ddn", "l2", {}, 1.03),
        ("foolbox-fmn", "linf", {}, 1.03),
    ],
)
def test_the_distance_on_a_linear_model_is_that_of_the_closed_form(
    name: str, norm: Norm, params: dict[str, Any], share: float
) -> None:
    case = linear_case()
    request, _ = case.request(name, norm)
    found = run(name, request, **params)
    shortest = case.network.shortest(case.images, norm)  # type: ignore[operator]
    away = distance(found, case.images, norm)
    assert bool(case.wrong(found).all())
    assert bool((away >= shortest - 1e-6).all()), "nothing lies nearer than the boundary"
    assert bool((away <= share * shortest + 1e-3).all()), (away / shortest).tolist()


def test_l2_fmn_is_left_out_because_its_projection_does_nothing() -> None:
    """Where this fails, foolbox has mended it, and the norm can be offered."""
    centre, far = (eagerpy.astensor(torch.full((1, 4), value)) for value in (0.0, 1.0))
    radius = eagerpy.astensor(torch.tensor([0.1]))
    assert torch.equal(FB.L2FMNAttack().project(far, centre, radius).raw, far.raw)
    assert float(FB.LInfFMNAttack().project(far, centre, radius).raw.max()) == pytest.approx(0.1)
