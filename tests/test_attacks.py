"""The built-in attacks: what they return is allowed, reproducible, and the worst point that they saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench.balls import Ball, distance
from autoshield_bench.builtin.attacks.apgd import APGD
from autoshield_bench.builtin.attacks.fgsm import FGSM
from autoshield_bench.builtin.attacks.pgd import PGD
from autoshield_bench.contracts import (
    NORMS,
    Attack,
    AttackRequest,
    Defense,
    LossGradient,
    Norm,
    TargetOutput,
    ThreatModel,
)
from autoshield_bench.engine.access import GradientTarget
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline
from autoshield_bench.errors import CellError, ParameterError
from autoshield_bench.seeding import ImageRandom

CLASSES = 4
ATTACKS = {
    "fgsm": FGSM(),
    "pgd": PGD(steps=6),
    "pgd-from-image": PGD(steps=6, random_start=False),
    "pgd-restarts": PGD(steps=3, restarts=3),
    "pgd-absolute": PGD(steps=4, step_size=0.05),
    "pgd-relative": PGD(steps=4, relative_step_size=0.9),
}
both_norms = pytest.mark.parametrize("norm", NORMS)
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


class Curved(nn.Module):
    """A small network that computes in float64, so that a batch's size cannot change a bit of what it returns."""

    def __init__(self, inputs: int = 64, classes: int = CLASSES, sharpness: float = 6.0) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(11)
        self.first = nn.Parameter(torch.randn(inputs, 16, generator=source).double() / inputs**0.5)
        self.second = nn.Parameter(sharpness * torch.randn(16, classes, generator=source).double() / 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(4 * (x.flatten(1).double() - 0.5) @ self.first)
        return (hidden @ self.second).float()


class Linear(nn.Module):
    """``logits = W x + b``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.flatten(1), self.weight, self.bias)


@dataclass
class Spy:
    """A target that writes down every point an attack looks at."""

    inner: GradientTarget
    points: list[Tensor] = field(default_factory=list)

    @property
    def classes(self) -> int:
        return self.inner.classes

    def logits(self, x: Tensor) -> Tensor:
        self.points.append(x.detach().clone())
        return self.inner.logits(x)

    def loss_gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> LossGradient:
        self.points.append(x.detach().clone())
        return self.inner.loss_gradient(x, loss)

    def output(self, x: Tensor) -> TargetOutput:
        return self.inner.output(x)

    def output_gradient(self, x: Tensor, loss: Callable[[TargetOutput], Tensor]) -> LossGradient:
        self.points.append(x.detach().clone())
        return self.inner.output_gradient(x, loss)


def images_of(count: int, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> Tensor:
    """Return images with a good part of their values exactly 0 or 1, as in real ones."""
    return (torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.3).clamp(0, 1)


def request_for(
    model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float, *, indices: list[int] | None = None
) -> AttackRequest:
    rng = ImageRandom(7, range(len(images)) if indices is None else indices)
    target = GradientTarget(Pipeline(model, (), PassCounter()), rng.child("target"), classes=CLASSES, eot=1)
    threat = ThreatModel(norm=norm, eps=eps)
    return AttackRequest(images=images, labels=labels, threat=threat, target=target, rng=rng.child("attack"))


def spied(request: AttackRequest) -> tuple[AttackRequest, Spy]:
    spy = Spy(request.target)  # type: ignore[arg-type]
    threat, rng = request.threat, request.rng
    return AttackRequest(images=request.images, labels=request.labels, threat=threat, target=spy, rng=rng), spy  # type: ignore[arg-type]


def attacked(
    attack: Attack, norm: Norm, eps: float, count: int = 12, shape: tuple[int, int, int] = (1, 8, 8)
) -> tuple[Tensor, Tensor]:
    model, images = Curved(math.prod(shape)), images_of(count, shape)
    return images, attack.run(request_for(model, images, model(images).argmax(1), norm, eps))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Images this small are computed faster by one thread, and many times faster where others use the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# What is returned is allowed --------------------------------------------------------------------------------------


@every_attack
@both_norms
@pytest.mark.parametrize("eps", [1e-3, 8 / 255, 0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
def test_results_lie_in_the_ball_and_in_the_unit_box(
    attack: Attack, norm: Norm, eps: float, shape: tuple[int, int, int]
) -> None:
    images, adversarial = attacked(attack, norm, eps, shape=shape)
    assert adversarial.shape == images.shape
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert bool(((adversarial >= 0) & (adversarial <= 1)).all())
    assert bool((distance(adversarial, images, norm) <= eps).all())  # in float64 and without any slack
    assert int((distance(adversarial, images, norm) > 0).sum()) >= len(images) - 2  # a loss may saturate at 0


@every_attack
@both_norms
def test_radius_zero_gives_the_images_back(attack: Attack, norm: Norm) -> None:
    images, adversarial = attacked(attack, norm, 0.0)
    assert torch.equal(adversarial, images)


@every_attack
@both_norms
def test_images_labels_weights_and_global_randomness_are_left_alone(attack: Attack, norm: Norm) -> None:
    model, images = Curved(), images_of(6)
    labels = model(images).argmax(1)
    kept = images.clone(), labels.clone(), [weight.detach().clone() for weight in model.parameters()]
    state = torch.get_rng_state()
    adversarial = attack.run(request_for(model, images, labels, norm, 0.2))
    adversarial.add_(1.0)  # what is handed back shares no memory with what was handed in
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])
    for weight, before in zip(model.parameters(), kept[2], strict=True):
        assert torch.equal(weight, before)
        assert weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


@every_attack
@both_norms
def test_an_image_without_a_gradient_is_left_standing_not_broken(attack: Attack, norm: Norm) -> None:
    images = images_of(3)
    flat = Linear(torch.zeros(CLASSES, 64), torch.zeros(CLASSES))
    adversarial = attack.run(request_for(flat, images, torch.zeros(3, dtype=torch.long), norm, 0.2))
    assert bool(((adversarial >= 0) & (adversarial <= 1)).all())
    assert bool((distance(adversarial, images, norm) <= 0.2).all())


@both_norms
def test_a_tiny_gradient_is_followed_as_far_as_a_large_one(norm: Norm) -> None:
    # Scaling logits down is a known way of hiding gradients; squares of 1e-25 underflow in float32.
    images, labels = images_of(4), torch.zeros(4, dtype=torch.long)
    weight = torch.randn(CLASSES, 64, generator=torch.Generator().manual_seed(0))
    large, tiny = (
        FGSM().run(request_for(Linear(weight * scale, torch.zeros(CLASSES)), images, labels, norm, 0.1))
        for scale in (1e-4, 1e-25)
    )
    assert torch.allclose(large, tiny, rtol=0, atol=1e-4)


# Reproducible per image -------------------------------------------------------------------------------------------


@every_attack
@both_norms
def test_the_same_request_gives_the_same_images_whatever_the_global_seed(attack: Attack, norm: Norm) -> None:
    torch.manual_seed(1)
    _, first = attacked(attack, norm, 0.2)
    torch.manual_seed(2)
    _, second = attacked(attack, norm, 0.2)
    assert torch.equal(first, second)


@every_attack
@both_norms
def test_results_do_not_depend_on_batch_split_or_order(attack: Attack, norm: Norm) -> None:
    model, images = Curved(), images_of(9)
    labels = model(images).argmax(1)
    _, whole = attacked(attack, norm, 0.2, count=9)
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    for batches in ([[row] for row in range(9)], [[0, 1, 2, 3], [4, 5, 6, 7, 8]], [order], [order[:2], order[2:]]):
        for rows in batches:
            one = attack.run(request_for(model, images[rows], labels[rows], norm, 0.2, indices=rows))
            assert torch.equal(one, whole[rows]), rows


@pytest.mark.parametrize("restarts", [1, 2])
@both_norms
def test_random_starts_differ_between_images_and_restarts(norm: Norm, restarts: int) -> None:
    model, images = Curved(), torch.full((3, 1, 8, 8), 0.5)
    request, spy = spied(request_for(model, images, model(images).argmax(1), norm, 0.2))
    PGD(steps=1, restarts=restarts).run(request)
    starts = torch.cat(spy.points[::2]).flatten(1)
    assert len(torch.unique(starts, dim=0)) == 3 * restarts
    assert bool((distance(spy.points[0], images, norm) > 0).all())


@both_norms
def test_without_a_random_start_the_first_point_is_the_image(norm: Norm) -> None:
    model, images = Curved(), images_of(5)
    request, spy = spied(request_for(model, images, model(images).argmax(1), norm, 0.2))
    PGD(steps=1, restarts=2, random_start=False).run(request)
    assert torch.equal(spy.points[0], images)
    assert not torch.equal(spy.points[2], images)


@every_attack
@both_norms
def test_an_empty_batch_stays_empty(attack: Attack, norm: Norm) -> None:
    images, adversarial = attacked(attack, norm, 0.2, count=0)
    assert adversarial.shape == images.shape


@every_attack
def test_gradient_steps_announces_the_backward_passes_that_are_made(attack: Attack) -> None:
    model, images = Curved(), images_of(5)
    counter, rng = PassCounter(), ImageRandom(0, range(5))
    attack.run(
        AttackRequest(
            images=images,
            labels=model(images).argmax(1),
            threat=ThreatModel(norm="linf", eps=0.1),
            target=GradientTarget(Pipeline(model, (), counter), rng, classes=CLASSES, eot=1),
            rng=rng,
        )
    )
    assert counter.to_json()["classifier"]["backward"] == 5 * (attack.gradient_steps() or 0)


# The worst point seen ---------------------------------------------------------------------------------------------


def judged(model: nn.Module, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits = model(points)
    return logits.argmax(1) != labels, functional.cross_entropy(logits, labels, reduction="none")


@both_norms
@pytest.mark.parametrize("eps", [0.03, 0.1, 0.3, 0.8])
def test_pgd_returns_a_misclassified_point_wherever_it_saw_one(norm: Norm, eps: float) -> None:
    model, images = Curved(), images_of(60)
    labels = model(images).argmax(1)
    request, spy = spied(request_for(model, images, labels, norm, eps))
    adversarial = PGD(steps=5, restarts=2, relative_step_size=1.5).run(request)
    fell = torch.stack([judged(model, points, labels)[0] for points in spy.points]).any(0)
    assert torch.equal(judged(model, adversarial, labels)[0], fell)


class Ridge(nn.Module):
    """At 0.5 all four classes nearly tie and class 0 wins, with a loss of log 4; at 0.6 class 1 narrowly beats class 0
    and the others are far off, with a loss of log 2."""

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1)
        others = -0.001 - 100 * functional.relu(value - 0.51)
        return torch.cat([0 * value, 0.1 * torch.tanh(1000 * (value - 0.5)) - 0.01, others, others], 1)


def test_pgd_prefers_a_misclassified_point_to_a_correct_one_of_higher_loss() -> None:
    images, labels = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.long)
    request, spy = spied(request_for(Ridge(), images, labels, "linf", 0.1))
    adversarial = PGD(steps=1, random_start=False, step_size=0.1).run(request)
    wrong, losses = judged(Ridge(), torch.cat(spy.points), labels.expand(2))
    assert wrong.tolist() == [False, True]
    assert float(losses[0]) > float(losses[1])
    assert torch.equal(adversarial, spy.points[1])


@both_norms
def test_pgd_returns_the_highest_loss_among_points_that_are_equally_wrong(norm: Norm) -> None:
    # Gray-box examples are scored on other pipelines than they were crafted on, and only the loss carries over.
    model, images = Curved(), images_of(60)
    labels = model(images).argmax(1)
    eps = 0.1 if norm == "linf" else 0.6
    request, spy = spied(request_for(model, images, labels, norm, eps))
    adversarial = PGD(steps=10, restarts=2).run(request)
    seen = [judged(model, points, labels) for points in spy.points]
    wrong, losses = torch.stack([one for one, _ in seen]), torch.stack([loss for _, loss in seen])
    fell = wrong.any(0)
    assert 0 < int(fell.sum()) < len(images), "the test wants images of both kinds"
    highest = torch.where(wrong | ~fell, losses, -torch.inf).amax(0)
    torch.testing.assert_close(judged(model, adversarial, labels)[1], highest, rtol=0, atol=1e-4)


@both_norms
@pytest.mark.parametrize("random_start", [True, False])
def test_more_restarts_are_never_weaker_on_any_image(norm: Norm, random_start: bool) -> None:
    model, images = Curved(), images_of(60)
    labels = model(images).argmax(1)
    eps = 0.06 if norm == "linf" else 0.4
    wrong, losses = zip(
        *(
            judged(
                model,
                PGD(steps=3, restarts=restarts, random_start=random_start).run(
                    request_for(model, images, labels, norm, eps)
                ),
                labels,
            )
            for restarts in (1, 2, 5)
        ),
        strict=True,
    )
    for fewer, more in ((0, 1), (1, 2)):
        assert not bool((wrong[fewer] & ~wrong[more]).any())
        alike = wrong[fewer] == wrong[more]
        assert bool((losses[more][alike] >= losses[fewer][alike] - 1e-5).all())
    assert bool((losses[2] > losses[0] + 1e-3).any()), "restarts that find nothing at all prove nothing"


# Step sizes and parameters ----------------------------------------------------------------------------------------


def step_lengths(attack: PGD, norm: Norm, eps: float) -> Tensor:
    """Return the length of the first step, from the middle of the box, where nothing but the ball can stop it."""
    model, images = Curved(), torch.full((4, 1, 8, 8), 0.5) + 0.01 * images_of(4)
    request, spy = spied(request_for(model, images, model(images).argmax(1), norm, eps))
    attack.run(request)
    return distance(spy.points[1], spy.points[0], norm)


@both_norms
@pytest.mark.parametrize("eps", [0.1, 0.3])
def test_step_sizes_are_absolute_or_relative_to_eps(norm: Norm, eps: float) -> None:
    def first(**params: float) -> list[float]:
        return step_lengths(PGD(random_start=False, **params), norm, eps).tolist()  # type: ignore[arg-type]

    close = {"rel": 1e-4, "abs": 1e-6}
    assert first(step_size=0.02) == pytest.approx([0.02] * 4, **close)
    assert first(relative_step_size=0.2) == pytest.approx([0.2 * eps] * 4, **close)
    assert first(steps=50) == pytest.approx([2.5 * eps / 50] * 4, **close)
    assert first(step_size=5.0) == pytest.approx([eps] * 4, **close)


@both_norms
def test_an_absolute_and_the_same_relative_step_size_are_one_attack(norm: Norm) -> None:
    _, absolute = attacked(PGD(steps=4, step_size=0.25 * 0.2), norm, 0.2)
    _, relative = attacked(PGD(steps=4, relative_step_size=0.25), norm, 0.2)
    assert torch.equal(absolute, relative)


@pytest.mark.parametrize(
    ("key", "params"),
    [
        ("steps", {"steps": 0}),
        ("steps", {"steps": -1}),
        ("restarts", {"restarts": 0}),
        ("step_size", {"step_size": 0.0}),
        ("step_size", {"step_size": -0.1}),
        ("step_size", {"step_size": math.nan}),
        ("relative_step_size", {"relative_step_size": 0.0}),
        ("relative_step_size", {"relative_step_size": -1.0}),
        ("relative_step_size", {"relative_step_size": math.nan}),
        ("step_size", {"step_size": 0.1, "relative_step_size": 0.1}),
    ],
)
def test_bad_parameters_are_named(key: str, params: dict[str, float]) -> None:
    with pytest.raises(ParameterError) as raised:
        PGD(**params)  # type: ignore[arg-type]
    assert raised.value.key == key
    assert str(raised.value).startswith(f"{key}: ")


# The closed form on a linear model --------------------------------------------------------------------------------

TO_THE_OPTIMUM = {
    "fgsm": FGSM(),
    "pgd": PGD(steps=25, relative_step_size=1.0),
    "pgd-from-image": PGD(steps=25, random_start=False),
    "pgd-restarts": PGD(steps=25, relative_step_size=1.0, restarts=2),
}


def linear_case(images: Tensor) -> tuple[Linear, Tensor, Tensor]:
    """Return a model of two classes, labels, and per image the direction ``w`` in which its margin shrinks."""
    source = torch.Generator().manual_seed(5)
    weight = 0.3 * torch.randn(2, images[0].numel(), generator=source)
    model = Linear(weight, torch.tensor([0.1, -0.2]))
    labels = torch.arange(len(images)) % 2
    return model, labels, weight[1 - labels] - weight[labels]


def margin(model: Linear, x: Tensor, labels: Tensor) -> Tensor:
    logits = functional.linear(x.flatten(1).double(), model.weight.detach().double(), model.bias.detach().double())
    rows = torch.arange(len(x))
    return logits[rows, labels] - logits[rows, 1 - labels]


@pytest.mark.parametrize("attack", TO_THE_OPTIMUM.values(), ids=TO_THE_OPTIMUM.keys())
@both_norms
@pytest.mark.parametrize("eps", [8 / 255, 0.1])
def test_attacks_reach_the_closed_form_optimum_of_a_linear_model(attack: Attack, norm: Norm, eps: float) -> None:
    images = 0.4 + 0.2 * torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    model, labels, direction = linear_case(images)
    adversarial = attack.run(request_for(model, images, labels, norm, eps))
    change = margin(model, images, labels) - margin(model, adversarial, labels)
    dual = direction.double().abs().sum(1) if norm == "linf" else direction.double().norm(dim=1)
    torch.testing.assert_close(change, eps * dual, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attack", TO_THE_OPTIMUM.values(), ids=TO_THE_OPTIMUM.keys())
@pytest.mark.parametrize("eps", [0.1, 0.3])
def test_at_the_edge_of_the_box_linf_attacks_reach_the_vertex_of_box_and_ball(attack: Attack, eps: float) -> None:
    images = images_of(6)
    model, labels, direction = linear_case(images)
    adversarial = attack.run(request_for(model, images, labels, "linf", eps))
    vertex = (images + eps * direction.sign().view_as(images)).clamp(0, 1)
    torch.testing.assert_close(adversarial, vertex, rtol=0, atol=1e-6)


# Driving a purifier to an image of another class ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Smooth(Defense):
    """A purifier that mixes every value with its neighbours; in float64, as the network behind it."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]).double() / 16
        return functional.conv2d(x.double(), kernel[None, None], padding=1).float()


def towards_decoys(
    norm: Norm, eps: float, *, stages: tuple[Defense, ...] = (), decoys: bool = True
) -> tuple[AttackRequest, Spy, Pipeline]:
    """Return a request whose decoy is the next image but one, on a pipeline with these purifiers."""
    fitted = [
        FittedStage(component=f"{position}:smooth", defense=own, differentiable=True, stochastic=False)
        for position, own in enumerate(stages, start=1)
    ]
    pipeline, rng = Pipeline(Curved(), fitted, PassCounter()), ImageRandom(7, range(20))
    images = images_of(20)
    with torch.no_grad():
        labels = pipeline(images, rng).logits.argmax(1)
    spy = Spy(GradientTarget(pipeline, rng.child("target"), classes=CLASSES, eot=1))
    request = AttackRequest(
        images=images,
        labels=labels,
        threat=ThreatModel(norm=norm, eps=eps),
        target=spy,  # type: ignore[arg-type]
        rng=rng.child("attack"),
        decoys=(lambda: images.roll(2, 0)) if decoys else None,
    )
    return request, spy, pipeline


TOWARDS_DECOYS = {"pgd": PGD(loss="reconstruction", steps=40), "apgd": APGD(loss="reconstruction", steps=40)}
to_decoys = pytest.mark.parametrize("attack", TOWARDS_DECOYS.values(), ids=TOWARDS_DECOYS.keys())


@to_decoys
@both_norms
def test_without_a_purifier_it_walks_to_the_nearest_point_to_the_decoy(attack: Attack, norm: Norm) -> None:
    eps = 0.2 if norm == "linf" else 1.5
    request, spy, _ = towards_decoys(norm, eps)
    attack.run(request)
    decoys = request.images.roll(2, 0)
    least = distance(Ball(request.images, request.threat).project(decoys), decoys, "l2")
    reached = torch.stack([distance(points, decoys, "l2") for points in spy.points]).amin(0)
    assert bool((reached >= least - 1e-5).all())
    assert bool((reached <= 1.02 * least + 0.02).all())


@to_decoys
@both_norms
def test_what_is_purified_comes_nearer_to_the_purified_decoy_than_any_other_loss_brings_it(
    attack: Attack, norm: Norm
) -> None:
    eps = 0.2 if norm == "linf" else 1.5

    def nearest(of: Attack) -> Tensor:
        request, spy, pipeline = towards_decoys(norm, eps, stages=(Smooth(),))
        of.run(request)
        with torch.no_grad():
            wanted = pipeline(request.images.roll(2, 0), request.rng).purified
            seen = [pipeline(points, request.rng).purified for points in spy.points]
        return torch.stack([distance(one, wanted, "l2") for one in seen]).amin(0)

    assert bool((nearest(attack) < 0.9 * nearest(PGD(loss="margin"))).all())


@to_decoys
@both_norms
def test_points_near_a_decoy_are_ranked_by_their_margin(attack: Attack, norm: Norm) -> None:
    request, spy, pipeline = towards_decoys(norm, 0.15 if norm == "linf" else 1.2, stages=(Smooth(),))
    adversarial = attack.run(request)

    def margins_of(points: Tensor) -> Tensor:
        with torch.no_grad():
            logits = pipeline(points, request.rng).logits
        others = logits.scatter(1, request.labels[:, None], -torch.inf).amax(1)
        return others - logits.gather(1, request.labels[:, None])[:, 0]

    best = torch.stack([margins_of(points) for points in spy.points]).amax(0)
    assert 0 < int((best > 0).sum()) < len(best), "the test wants images of both kinds"
    torch.testing.assert_close(margins_of(adversarial), best, rtol=0, atol=1e-5)


@to_decoys
def test_a_request_without_decoys_is_refused_in_one_line(attack: Attack) -> None:
    request, _, _ = towards_decoys("linf", 0.1, decoys=False)
    with pytest.raises(CellError, match="needs decoys and this request has none; choose another loss") as raised:
        attack.run(request)
    assert "\n" not in str(raised.value)
