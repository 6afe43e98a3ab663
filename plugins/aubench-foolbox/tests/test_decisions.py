"""Attacks on labels: starts image by image, foolbox's own walk from there, and the correction of HopSkipJump."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autoshield_bench.balls import distance
from autoshield_bench.contracts import Defense
from autoshield_bench.engine.access import attempt, target_for
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline
from autoshield_bench.seeding import global_seed
from cases import Case, attack, foolbox, registry, replaced, run
from torch import Tensor, nn

from aubench_foolbox.library import PerImageHopSkipJump
from aubench_foolbox.quiet import quiet
from aubench_foolbox.starts import find_starts, some

BOTH = ["foolbox-boundary", "foolbox-hop-skip-jump"]


class NoiseIsZero(nn.Module):
    """Takes rough images for class 0, as many networks take noise for one class; else the mean brightness decides."""

    def forward(self, x: Tensor) -> Tensor:
        rough = (x[..., 1:] - x[..., :-1]).abs().flatten(1).mean(1)
        bright = x.flatten(1).mean(1)
        one = torch.where(rough > 0.15, torch.full_like(bright, -1.0), bright - 0.5)
        return torch.stack([torch.zeros_like(one), one], dim=1)


def dark_and_bright() -> Case:
    """Smooth images: 0 and 1 are dark (class 0), 2 and 3 bright (class 1)."""
    levels = torch.tensor([0.2, 0.3, 0.7, 0.8])
    return Case(NoiseIsZero().eval(), levels.view(4, 1, 1, 1).expand(4, 1, 8, 8).clone(), torch.tensor([0, 0, 1, 1]))


def test_foolbox_gives_up_on_the_whole_batch_where_one_image_has_no_start() -> None:
    case = dark_and_bright()
    library = foolbox.attacks.HopSkipJumpAttack(
        init_attack=foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(directions=20, steps=20), steps=1
    )
    with quiet(), pytest.raises(ValueError, match="init_attack failed for 2"):
        library.run(case.model(), case.images, case.labels)


@pytest.mark.parametrize("name", BOTH)
def test_an_image_without_a_start_comes_back_clean_and_the_others_are_attacked(name: str) -> None:
    case = dark_and_bright()
    case = Case(case.network, case.images[[0, 2, 3]], torch.tensor([0, 1, 1]))
    alone = case.part([0])
    request, _ = alone.request(name, "l2", queries=300)
    assert torch.equal(run(name, request), alone.images), "noise is of its own class, and there is no other image"
    bright = case.part([1, 2])
    request, _ = bright.request(name, "l2", queries=300)
    found = run(name, request)
    assert bool(bright.wrong(found).all())
    assert bool((distance(found, bright.images, "l2") < distance(torch.zeros_like(found), found, "l2")).all())


@pytest.mark.parametrize("name", BOTH)
def test_other_images_of_the_batch_are_starts_where_noise_is_none(name: str) -> None:
    case = dark_and_bright()
    request, _ = case.request(name, "l2", queries=1000)
    found = run(name, request)
    assert bool(case.wrong(found).all())
    blended = case.images + 0.5 * (case.images.flip(0) - case.images)
    dark = slice(0, 2)
    bound = distance(blended, case.images, "l2")[dark] * 1.5
    assert bool((distance(found, case.images, "l2")[dark] < bound).all())


@pytest.mark.parametrize("name", BOTH)
def test_an_image_that_is_misclassified_as_it_is_stays_and_costs_one_query(digits: Case, name: str) -> None:
    case = digits.part(slice(6))
    labels = case.labels.clone()
    labels[2] = (labels[2] + 1) % 10
    case = Case(case.network, case.images, labels)
    request, _ = case.request(name, "l2", queries=300)
    found = run(name, request)
    assert torch.equal(found[2], case.images[2])
    assert request.target.log.spent[2] == 1  # type: ignore[attr-defined]
    assert bool(case.wrong(found).all())
    assert bool(found.isfinite().all()), "foolbox divides by the distance, which is zero there"


@pytest.mark.parametrize("name", BOTH)
def test_targets_are_reached(digits: Case, name: str) -> None:
    case = digits.part(slice(30))
    targets = (case.labels + 3) % 10
    request, _ = case.request(name, "l2", targets=targets, queries=400)
    found = run(name, request)
    moved = (found != case.images).flatten(1).any(1)
    assert int(moved.sum()) > 20
    with torch.no_grad():
        assert torch.equal(case.network(found).argmax(1)[moved], targets[moved])


def test_the_boundary_attack_is_foolboxs_own_from_the_same_starts(digits: Case) -> None:
    case = digits.part(slice(12))
    request, _ = case.request("foolbox-boundary", "l2")
    ours = run("foolbox-boundary", request, steps=200)
    with global_seed("test"), quiet():
        starts = find_starts(request, directions=25, steps=50)
        assert len(starts.rows) == len(case.images)
        library = foolbox.attacks.BoundaryAttack(steps=200)
        theirs = library.run(case.model(), case.images, case.labels, starting_points=starts.points)
    assert torch.equal(ours, theirs)
    assert bool((distance(ours, case.images, "l2") < distance(starts.points, case.images, "l2")).all())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_hop_skip_jump_on_a_batch_of_one_is_foolboxs_own(digits: Case, norm: Any) -> None:
    case = digits.part(slice(3, 4))
    request, _ = case.request("foolbox-hop-skip-jump", norm)
    ours = run("foolbox-hop-skip-jump", request, steps=3)
    with global_seed("test"), quiet():
        starts = find_starts(request, directions=25, steps=50)
        library = foolbox.attacks.HopSkipJumpAttack(steps=3, constraint=norm)
        theirs = library.run(case.model(), case.images, case.labels, starting_points=starts.points)
    assert torch.equal(ours, theirs)


def median(case: Case, kind: type, starts: Tensor, size: int) -> float:
    found = []
    with global_seed("median"), quiet():
        for rows in torch.arange(len(case.images)).split(size):
            part = case.part(rows.tolist())
            library = kind(steps=6, initial_gradient_eval_steps=60)
            found.append(library.run(part.model(), part.images, part.labels, starting_points=starts[rows]))
    return float(distance(torch.cat(found), case.images, "l2").median())


def test_hop_skip_jumps_steps_shrink_with_the_batch_in_foolbox_and_not_here(digits: Case) -> None:
    """Where the first assertion fails, foolbox has mended it, and the correction can go."""
    request, _ = digits.request("foolbox-hop-skip-jump", "l2")
    with global_seed("test"), quiet():
        starts = find_starts(request, directions=25, steps=50)
    case = digits.part(starts.rows[:48].tolist())
    points = starts.points[starts.rows[:48]]
    single = median(case, foolbox.attacks.HopSkipJumpAttack, points, 2)
    assert median(case, foolbox.attacks.HopSkipJumpAttack, points, 48) > 1.4 * single
    assert median(case, PerImageHopSkipJump, points, 48) < 1.1 * single


class Flickers(Defense):
    """Noise so strong that a point at the boundary changes its label from one query to the next."""

    def purify(self, x: Tensor, rng: Any) -> Tensor:
        return (x + 0.1 * rng.normal(x.shape[1:], "noise")).clamp(0, 1)


@pytest.mark.parametrize("name", BOTH)
def test_a_randomised_pipeline_does_not_end_the_attack(digits: Case, name: str) -> None:
    case = digits.part(slice(12))
    request, _ = case.request(name, "l2", queries=600)
    stage = FittedStage(component="0:noise", defense=Flickers(), differentiable=True, stochastic=True)
    target = target_for(
        registry().find("attack", name).spec,
        "black-box",
        Pipeline(case.network, (stage,), PassCounter()),
        request.rng,
        classes=10,
        eot=1,
        images=case.images,
        labels=case.labels,
        threat=request.threat,
        queries=600,
    )
    request = replaced(request, target=target)
    with global_seed("test"):
        found = attempt(attack(name), request)  # noise may cost steps more queries than were planned
    assert request.target.log.spent.min() > 200, "it went on beyond the start"  # type: ignore[attr-defined]
    assert int((found != case.images).flatten(1).any(1).sum()) > 8


def test_part_of_a_request_is_the_request_of_the_part(digits: Case) -> None:
    targets = (digits.labels + 1) % 10
    request, _ = digits.request("foolbox-boundary", "l2", targets=targets, queries=10)
    rows = torch.tensor([5, 2])
    part = some(request, rows)
    assert torch.equal(part.images, digits.images[rows])
    assert torch.equal(part.labels, digits.labels[rows])
    assert part.targets is not None
    assert torch.equal(part.targets, targets[rows])
    assert torch.equal(part.target.labels(part.images), part.labels)
    assert request.target.log.spent.nonzero()[:, 0].tolist() == [2, 5]  # type: ignore[attr-defined]
