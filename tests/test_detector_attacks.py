"""Attacks that want an image misclassified and not flagged, against what linear programming says is possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from exact import Truth, _array, _Problem, small_network
from scipy import sparse
from scipy.optimize import LinearConstraint, linprog
from torch import Tensor, nn

from autoshield_bench import load_suite, run
from autoshield_bench.balls import distance
from autoshield_bench.builtin.attacks.detector import VARIANTS, DetectorPGD
from autoshield_bench.builtin.attacks.joint import without
from autoshield_bench.builtin.attacks.pgd import PGD
from autoshield_bench.builtin.datasets.digits import Digits
from autoshield_bench.builtin.manifest import aubench_attacks
from autoshield_bench.contracts import NORMS, Attack, AttackRequest, Defense, DefenseSpec, FitRequest, Norm, ThreatModel
from autoshield_bench.engine.access import GradientTarget
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline, Threshold
from autoshield_bench.errors import ParameterError
from autoshield_bench.hookspecs import hookimpl
from autoshield_bench.margins import margins
from autoshield_bench.seeding import ImageRandom

PIXELS = 64
IMAGES = 120
EPS: dict[Norm, float] = {"linf": 0.1, "l2": 0.8}
both_norms = pytest.mark.parametrize("norm", NORMS)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Images this small are computed faster by one thread, and many times faster where others use the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TwoClasses(nn.Module):
    """The second class has the logit ``weight @ x - bias`` and the first one none; in float64, so that the size of a
    batch cannot change a bit of it."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.double()), bias

    def forward(self, x: Tensor) -> Tensor:
        second = x.flatten(1).double() @ self.weight - self.bias
        return torch.stack([0 * second, second], 1).float()


@dataclass(kw_only=True)
class Slope(Defense):
    """A linear anomaly score, in float64 as well."""

    direction: Tensor

    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        return (x.flatten(1).double() @ self.direction.double()).float()


@dataclass(kw_only=True)
class CutSlope(Slope):
    """The same, and lets no gradient through."""

    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        return super().anomaly_score(x.detach(), classify, rng)


@dataclass(frozen=True)
class Case:
    """Two classes told apart by ``weight @ x > bias``, and a detector that flags ``direction @ x > threshold``."""

    network: nn.Module
    images: Tensor
    detector: Slope
    threshold: Threshold
    weight: Tensor
    bias: float
    norm: Norm

    @property
    def labels(self) -> Tensor:
        return torch.zeros(len(self.images), dtype=torch.int64)

    def reached(self, x: Tensor) -> Tensor:
        flagged = self.detector.anomaly_score(x, self.network, ImageRandom(0, range(len(x)))) > self.threshold.value
        return (self.network(x).argmax(1) != 0) & ~flagged


@cache
def linear(norm: Norm, alike: float = 0.8, far: float = 0.2, count: int = IMAGES) -> Case:
    """Return a case; ``alike`` is how far the detector looks where the attacker wants to go, ``far`` how far away the
    other class is, in units of what the ball allows."""
    source = torch.Generator().manual_seed(0)
    images = (torch.rand((count, 1, 8, 8), generator=source) * 1.6 - 0.3).clamp(0, 1)
    weight = torch.randn(PIXELS, generator=source)
    direction = alike * weight + (1 - alike**2) ** 0.5 * torch.randn(PIXELS, generator=source)
    dual = float(weight.abs().sum() if norm == "linf" else weight.norm())
    bias = float((images.flatten(1) @ weight).median()) + far * EPS[norm] * dual
    network = TwoClasses(weight, bias).eval().requires_grad_(requires_grad=False)
    right = network(images).argmax(1) == 0
    scores = images.flatten(1) @ direction
    low, threshold, high = scores.quantile(torch.tensor([0.25, 0.7, 0.75])).tolist()
    level = Threshold(value=threshold, scale=high - low)
    return Case(network, images[right], Slope(direction=direction), level, weight, bias, norm)


@cache
def room(norm: Norm, alike: float = 0.8, far: float = 0.2) -> Tensor:
    """Return the largest margin of an unflagged point of each image's ball, in units of eps times the dual norm."""
    case = linear(norm, alike, far)
    weight, direction = (vector.double().numpy() for vector in (case.weight, case.detector.direction))
    images, level = case.images.flatten(1).double().numpy(), case.threshold.value
    unit = EPS[norm] * float(np.abs(weight).sum() if norm == "linf" else np.linalg.norm(weight))
    if norm == "linf":
        best = np.array([_in_linf(image, weight, direction, level) for image in images])
    else:
        best = _in_l2(images, weight, direction, level)
    return torch.from_numpy((best - case.bias) / unit)


def _in_linf(image: Any, weight: Any, direction: Any, threshold: float) -> float:
    bounds = np.stack([np.clip(image - EPS["linf"], 0, 1), np.clip(image + EPS["linf"], 0, 1)], 1)
    solved = linprog(-weight, A_ub=direction[None], b_ub=[threshold], bounds=bounds)
    return -solved.fun if solved.status == 0 else -np.inf


def _in_l2(images: Any, weight: Any, direction: Any, threshold: float) -> Any:
    """By duality: the least, over prices of the threshold, of the largest priced value over ball and box alone."""

    def priced(price: Any) -> Any:
        slope = weight - price[:, None] * direction
        low, high = np.zeros(len(images)), np.full(len(images), 1e6)
        for _ in range(60):  # how far along the slope the ball ends, where the box cuts steps short
            middle = (low + high) / 2
            step = np.clip(images + middle[:, None] * slope, 0, 1) - images
            inside = (step**2).sum(1) < EPS["l2"] ** 2
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        return (slope * np.clip(images + low[:, None] * slope, 0, 1)).sum(1) + price * threshold

    low, high = np.zeros(len(images)), np.full(len(images), 50.0)
    for _ in range(80):  # convex in the price
        left, right = low + (high - low) / 3, high - (high - low) / 3
        below = priced(left) < priced(right)
        low, high = np.where(below, low, left), np.where(below, right, high)
    return priced((low + high) / 2)


def request_for(
    case: Case,
    *,
    aware: bool = True,
    stop: bool = True,
    rows: list[int] | None = None,
    detector: Slope | None = None,
    eps: float | None = None,
) -> AttackRequest:
    chosen = list(range(len(case.images))) if rows is None else rows
    stage = FittedStage(component="1:slope", defense=detector or case.detector, differentiable=True, stochastic=False)
    pipeline = Pipeline(case.network, (stage,), PassCounter(), thresholds={"1:slope": case.threshold})
    rng = ImageRandom(1, chosen)
    return AttackRequest(
        images=case.images[chosen],
        labels=case.labels[chosen],
        threat=ThreatModel(norm=case.norm, eps=EPS[case.norm] if eps is None else eps),
        target=GradientTarget(pipeline, rng.child("target"), classes=2, eot=1, detector_aware=aware),
        rng=rng.child("attack"),
        stop_on_success=stop,
    )


# What is possible, and what is found ------------------------------------------------------------------------------

NARROW = 0.01
"""Room below which an image may be missed, in units of what the ball allows the margin."""
LEAST: dict[tuple[Norm, str], float] = {
    ("linf", "selective"): 1.0,
    # With signs alone a step cannot weigh one pixel against another, as the programme does.
    ("linf", "lagrangian"): 0.8,
    # Both gradients nearly alike leave little that is orthogonal.
    ("linf", "orthogonal"): 0.6,
    ("linf", "all"): 1.0,
    ("l2", "selective"): 1.0,
    ("l2", "lagrangian"): 1.0,
    ("l2", "orthogonal"): 0.5,
    ("l2", "all"): 1.0,
}
"""Share of the feasible images that a variant must break."""


@both_norms
def test_the_witness_has_images_of_every_kind(norm: Norm) -> None:
    possible = room(norm)
    assert int((possible > NARROW).sum()) >= 30
    assert int((possible < 0).sum()) >= 5
    # A margin attack breaks most of them and is caught at it.
    case = linear(norm)
    plain = PGD(loss="margin").run(request_for(case))
    assert float((case.network(plain).argmax(1) != 0).float().mean()) > 0.75
    assert float(case.reached(plain).float().mean()) < 0.5


@both_norms
@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("variant", [*VARIANTS, "all"])
def test_what_is_feasible_is_broken_and_what_is_not_is_not(
    variant: Literal["all", "lagrangian", "selective", "orthogonal"], norm: Norm, stop: bool
) -> None:
    case, possible = linear(norm), room(norm)
    found = DetectorPGD(variant=variant).run(request_for(case, stop=stop))
    assert float(distance(found, case.images, norm).max()) <= EPS[norm]
    reached = case.reached(found)
    assert not bool((reached & (possible < -1e-5)).any())
    feasible = possible > NARROW
    assert float(reached[feasible].float().mean()) >= LEAST[norm, variant]


@both_norms
@pytest.mark.parametrize("alike", [-0.5, 0.3, 0.95])
def test_the_cascade_breaks_what_is_feasible_however_alike_the_goals_are(norm: Norm, alike: float) -> None:
    case, possible = linear(norm, alike, 0.5), room(norm, alike, 0.5)
    reached = case.reached(DetectorPGD().run(request_for(case)))
    assert not bool((reached & (possible < -1e-5)).any())
    feasible = possible > NARROW
    assert int(feasible.sum()) >= 10
    assert int((feasible & ~reached).sum()) <= 1


@dataclass(frozen=True)
class Curved:
    """A network with a hidden layer and a linear detector that looks where most attacks go."""

    network: nn.Sequential
    images: Tensor
    labels: Tensor
    detector: Slope
    threshold: Threshold
    fallen: Tensor
    """Where the truth is that some point within 0.12 is misclassified and not flagged."""
    robust: Tensor


@pytest.fixture(scope="module")
def curved() -> Curved:
    train, test = (Digits().load(split, Path()) for split in ("train", "test"))
    network = small_network(torch.from_numpy(train.images), torch.from_numpy(train.labels))
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    right = (network(images).argmax(1) == labels).nonzero()[:40, 0]
    images, labels = images[right], labels[right]
    point = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margins(network(point), labels).sum(), point)
    mean = gradient.flatten(1).mean(0)
    noise = torch.randn(PIXELS, generator=torch.Generator().manual_seed(0))
    direction = mean / mean.norm() + 0.3 * noise / PIXELS**0.5
    low, level, high = (images.flatten(1) @ direction).quantile(torch.tensor([0.25, 0.6, 0.75])).tolist()
    truth = [
        _joint_truth(network, image, int(label), direction, level) for image, label in zip(images, labels, strict=True)
    ]
    return Curved(
        network,
        images,
        labels,
        Slope(direction=direction),
        Threshold(value=level, scale=high - low),
        torch.tensor([one == "fallen" for one in truth]),
        torch.tensor([one == "robust" for one in truth]),
    )


def _joint_truth(network: nn.Sequential, image: Tensor, label: int, direction: Tensor, level: float) -> Truth:
    """Return what ``exact.truth_in_linf`` does, with one row more: the score stays under the threshold."""
    first, second = ((_array(layer.weight), _array(layer.bias)) for layer in (network[1], network[3]))
    x = _array(image.flatten())
    problem = _Problem(*first, np.clip(x - 0.12, 0, 1), np.clip(x + 0.12, 0, 1))
    row = np.concatenate([_array(direction), np.zeros(2 * problem.hidden)])
    bounds, known = problem.constraint, problem.constraint.A
    problem.constraint = LinearConstraint(
        sparse.vstack([known, sparse.csr_matrix(row)]), -np.inf, np.concatenate([bounds.ub, [level - 1e-5]])
    )
    verdicts = [
        problem.above_zero(second[0][other] - second[0][label], second[1][other] - second[1][label], 10)
        for other in range(10)
        if other != label
    ]
    return "fallen" if "fallen" in verdicts else "unknown" if "unknown" in verdicts else "robust"


def broken(case: Curved, attack: Attack, seed: int) -> Tensor:
    stage = FittedStage(component="1:slope", defense=case.detector, differentiable=True, stochastic=False)
    pipeline = Pipeline(case.network, (stage,), PassCounter(), thresholds={"1:slope": case.threshold})
    rng = ImageRandom(seed, range(len(case.images)))
    found = attack.run(
        AttackRequest(
            images=case.images,
            labels=case.labels,
            threat=ThreatModel(norm="linf", eps=0.12),
            target=GradientTarget(pipeline, rng.child("target"), classes=10, eot=1, detector_aware=True),
            rng=rng.child("attack"),
            stop_on_success=True,
        )
    )
    assert float(distance(found, case.images, "linf").max()) <= 0.12
    flagged = case.detector.anomaly_score(found, case.network, rng) > case.threshold.value
    return (case.network(found).argmax(1) != case.labels) & ~flagged


def test_the_cascade_finds_the_truth_of_a_network_with_a_hidden_layer(curved: Curved) -> None:
    assert int(curved.fallen.sum()) >= 10
    assert int(curved.robust.sum()) >= 10
    assert int((curved.fallen | curved.robust).sum()) >= len(curved.images) - 2
    missed = 0
    for seed in range(3):
        reached = broken(curved, DetectorPGD(), seed)
        assert not bool((reached & curved.robust).any())
        missed += int((curved.fallen & ~reached).sum())
    assert missed <= 0.02 * 3 * int(curved.fallen.sum())


# How it goes about it ---------------------------------------------------------------------------------------------


def test_orthogonal_gradients_are_rid_of_their_part_along_the_other() -> None:
    source = torch.Generator().manual_seed(2)
    one, other = (torch.randn((5, 1, 4, 4), generator=source) for _ in range(2))
    other[3] = 0
    rest = without(one, other)
    assert float((rest * other).flatten(1).sum(1).abs().max()) < 1e-5
    parallel = one - rest
    assert float((parallel * rest).flatten(1).sum(1).abs().max()) < 1e-5
    assert torch.equal(rest[3], one[3])
    assert float(without(one, 3 * one).abs().max()) < 1e-5


@both_norms
def test_what_may_stop_costs_less_and_what_stands_is_treated_alike(norm: Norm) -> None:
    case = linear(norm)
    stopping, going = request_for(case), request_for(case, stop=False)
    stopped, full = (DetectorPGD().run(request) for request in (stopping, going))
    reached = case.reached(full)
    assert torch.equal(case.reached(stopped), reached)
    torch.testing.assert_close(stopped[~reached], full[~reached], rtol=0, atol=1e-6)
    assert int(stopping.target.spent.sum()) < 0.8 * int(going.target.spent.sum())  # type: ignore[attr-defined]


@both_norms
@pytest.mark.parametrize("variant", [*VARIANTS, "all"])
def test_an_image_does_not_depend_on_those_beside_it(
    variant: Literal["all", "lagrangian", "selective", "orthogonal"], norm: Norm
) -> None:
    case, attack = linear(norm), DetectorPGD(variant=variant, steps=10, rounds=4)
    whole = attack.run(request_for(case))
    for rows in ([5], [7, 3, 11], list(reversed(range(20)))):
        torch.testing.assert_close(attack.run(request_for(case, rows=rows)), whole[rows], rtol=0, atol=1e-5)


@both_norms
def test_of_points_that_fail_the_one_nearest_to_the_goal_is_returned(norm: Norm) -> None:
    case, possible = linear(norm), room(norm)
    lost = (possible < -0.05).nonzero()[:, 0].tolist()
    assert lost
    found = DetectorPGD(variant="selective").run(request_for(case, rows=lost))

    def short(x: Tensor) -> Tensor:
        logits = case.network(x)
        unit = case.network(case.images[lost])
        margin = (logits[:, 1] - logits[:, 0]) / (unit[:, 1] - unit[:, 0]).abs()
        excess = (x.flatten(1) @ case.detector.direction - case.threshold.value) / case.threshold.scale
        return torch.maximum(-margin, excess)

    plain = PGD(loss="margin").run(request_for(case, rows=lost))
    assert bool((short(found) <= short(plain) + 1e-5).all())
    assert bool((short(found) <= short(case.images[lost]) + 1e-5).all())


@both_norms
def test_without_a_detector_in_sight_it_is_pgd_on_the_margin(norm: Norm) -> None:
    case, attack = linear(norm), DetectorPGD(steps=12, restarts=2)
    found = attack.run(request_for(case, aware=False))
    assert torch.equal(found, PGD(loss="margin", steps=12, restarts=2).run(request_for(case, aware=False)))


def test_a_detector_that_cuts_the_gradient_stops_no_variant() -> None:
    case = linear("linf", 0.3, 0.2)
    cut = CutSlope(direction=case.detector.direction)
    possible = room("linf", 0.3, 0.2)
    attackable = int((possible > 0).sum())

    def reached(attack: DetectorPGD) -> int:
        return int((case.reached(attack.run(request_for(case, detector=cut))) & (possible > 0)).sum())

    blind = reached(DetectorPGD(refinements=0))
    for variant in VARIANTS:
        assert 0 < reached(DetectorPGD(variant=variant)) <= blind < attackable
    # The random search asks for no gradient.
    assert blind + 10 < reached(DetectorPGD())
    assert reached(DetectorPGD()) > 0.85 * attackable


def test_gradient_steps_announces_what_is_spent_on_an_image_that_stands() -> None:
    case = linear("linf")
    for variant in (*VARIANTS, "all"):
        attack = DetectorPGD(variant=variant, steps=6, restarts=2, rounds=3)
        request = request_for(case, eps=0.0, rows=[0, 1, 2])
        assert torch.equal(attack.run(request), request.images)
        counter = request.target._pipeline.counter.to_json()["classifier"]  # type: ignore[attr-defined]
        assert counter["forward"] > 2 * attack.gradient_steps() + attack.forward_passes() > 0
        spent = request.target.spent  # type: ignore[attr-defined]
        looks = {"selective": 2, "orthogonal": 2, "lagrangian": 3, "all": 7}[variant]
        assert spent.tolist() == [2 * attack.gradient_steps() + attack.forward_passes() + 1 + looks] * 3


def test_no_images_give_no_images() -> None:
    for norm in NORMS:
        assert DetectorPGD().run(request_for(linear(norm), rows=[])).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("key", "params"),
    [("steps", {"steps": 0}), ("restarts", {"restarts": 0}), ("rounds", {"rounds": 0})]
    + [("relative_step_size", {"relative_step_size": bad}) for bad in (0.0, -1.0, float("nan"))],
)
def test_bad_parameters_are_named(key: str, params: dict[str, Any]) -> None:
    with pytest.raises(ParameterError) as raised:
        DetectorPGD(**params)
    assert raised.value.key == key


# In a suite -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class FarFromMeans(Defense):
    """Flags what lies far from the mean of every class."""

    means: Tensor = field(default_factory=lambda: torch.zeros(0), init=False)

    def fit(self, request: FitRequest) -> None:
        self.means = torch.stack([request.images[request.labels == label].mean(0) for label in range(10)])

    def state(self) -> dict[str, Tensor]:
        return {"means": self.means}

    def load(self, state: Any) -> None:
        self.means = state["means"]

    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        return (x.flatten(1)[:, None] - self.means.flatten(1)).square().sum(2).amin(1)


class Plugins:
    CONTRACT = 1

    @hookimpl
    def aubench_defenses(self) -> Iterator[DefenseSpec]:
        yield DefenseSpec(
            name="far-from-means", factory=f"{__name__}:FarFromMeans", summary="Distances.", trained_on="clean"
        )


SUITE = """
schema = 1
name = "detector"
seeds = [0]
[dataset]
use = "digits"
[model]
use = "small-cnn"
params = { epochs = 4 }
[[threats]]
norm = "linf"
eps = [0.15]
[[defenses]]
use = "none"
[[defenses]]
use = "far-from-means"
[[attacks]]
use = "pgd"
access = ["white-box"]
images = 24
params = { loss = "margin" }
[[attacks]]
use = "detector-pgd"
access = ["white-box"]
images = 24
params = { steps = 20, restarts = 1, rounds = 4 }
"""


def test_a_suite_runs_it_once_per_false_positive_rate_against_what_detects(tmp_path: Path) -> None:
    file = tmp_path / "detector.toml"
    file.write_text(SUITE, encoding="utf-8")
    results = run(
        load_suite(file, plugins=[Plugins()]),
        data_dir=tmp_path / "data",
        results_dir=tmp_path / "results",
        cache_dir=tmp_path / "cache",
        device="cpu",
    )
    assert [own.status for own in results.records] == ["ok"] * len(results.records), [
        own.error for own in results.records
    ]
    plain = next(own for own in results.records if own.cell.attack == "pgd" and own.cell.defense == "far-from-means")
    aware = [own for own in results.records if own.cell.attack == "detector-pgd"]
    rates = sorted(own.cell.fpr for own in aware if own.cell.fpr is not None)
    assert rates == [float(rate) for rate in sorted(plain.detection.thresholds)]
    assert rates
    assert {own.cell.defense for own in aware} == {"far-from-means"}

    def joint(own: Any, rate: float) -> int:
        arrays = results.arrays(own)
        threshold = own.detection.thresholds[str(rate)]["1:far-from-means"]
        flagged = arrays["anomaly/1:far-from-means"] > threshold
        return int((~arrays["correct"] & ~flagged).sum())

    for own in aware:
        assert own.strong
        assert joint(own, own.cell.fpr) > joint(plain, own.cell.fpr)


def test_it_is_declared_as_what_it_is() -> None:
    (spec,) = [own for own in aubench_attacks() if own.name == "detector-pgd"]
    assert spec.detector_aware
    assert DetectorPGD().variant == "all"
    assert spec.strong
    assert spec.cascade
