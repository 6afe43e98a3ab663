"""Deliberately broken plugins: for every check of the contract kit, toys that fail exactly that one; and sound ones."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench.balls import Ball
from autoshield_bench.builtin.attacks.steps import steepest
from autoshield_bench.builtin.datasets.digits import Digits
from autoshield_bench.contracts import (
    Attack,
    AttackRequest,
    AttackSpec,
    Dataset,
    DatasetInfo,
    DatasetSpec,
    Defense,
    DefenseSpec,
    FitRequest,
    MetricSpec,
    MetricValues,
    Model,
    ModelSpec,
    PairMetric,
    PredictionMetric,
    Recipe,
    Split,
)
from autoshield_bench.errors import BudgetSpent, CellError
from autoshield_bench.seeding import ImageRandom
from autoshield_bench.testing import KnownAnswer, Subject

SOUND: list[Subject] = []
BROKEN: list[tuple[str, Subject]] = []


def attack(check: str | None = None, **declared: Any) -> Callable[[type], type]:
    return _registering(check, AttackSpec, {"norms": ("linf", "l2"), **declared})


def defense(check: str | None = None, **declared: Any) -> Callable[[type], type]:
    return _registering(check, DefenseSpec, declared)


def metric(check: str | None = None, **declared: Any) -> Callable[[type], type]:
    return _registering(check, MetricSpec, {"looks_at": "pair", "direction": "lower", "range": (0, None), **declared})


def dataset(check: str | None = None) -> Callable[[type], type]:
    return _registering(check, DatasetSpec, {})


def model(check: str | None = None, **declared: Any) -> Callable[[type], type]:
    return _registering(check, ModelSpec, declared)


def _registering(check: str | None, spec: type, declared: dict[str, Any]) -> Callable[[type], type]:
    def register(kind: type) -> type:
        made = dataclasses.dataclass(kw_only=True)(kind)
        name = kind.__name__.lower()
        answers = declared.pop("answers", ())
        what = spec(name=name, factory=f"{kind.__module__}:{kind.__name__}", summary="A toy.", **declared)
        parts = ((what, made),) if spec is DefenseSpec else ()
        subject = Subject(spec=what, make=made, parts=parts, answers=answers)
        if check is None:
            SOUND.append(subject)
        else:
            BROKEN.append((check, subject))
        return made

    return register


# -- attacks ----------------------------------------------------------------------------------------------------------


def _loss(labels: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: functional.cross_entropy(logits, labels, reduction="none")


def _gradient(request: AttackRequest) -> Tensor:
    return request.target.loss_gradient(request.images, _loss(request.labels)).gradient


def _step(request: AttackRequest, length: Tensor | float = 1.0) -> Tensor:
    """One step of ``length`` times eps, projected."""
    ball = Ball(request.images, request.threat)
    return ball.project(
        request.images + length * request.threat.eps * steepest(_gradient(request), request.threat.norm)
    )


def _network(request: AttackRequest) -> nn.Module | None:
    pipeline = getattr(request.target, "_pipeline", None)
    return None if pipeline is None else pipeline.classifier


@attack()
class OneStep(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        return _step(request)


@attack("like-images")
class Float64(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        return _step(request).double()


@attack("finite")
class DividesByZero(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        largest = _gradient(request).flatten(1).abs().amax(1) if len(request.images) else torch.zeros(0)
        return _step(request) * (largest / largest).view(-1, 1, 1, 1)


@attack("unit-range")
class NeverClips(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        return request.images + request.threat.eps * steepest(_gradient(request), request.threat.norm)


@attack("inside-ball")
class TooFar(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        step = 1.5 * request.threat.eps * steepest(_gradient(request), request.threat.norm)
        return (request.images + step).clamp(0, 1)


@attack("zero-eps")
class SmallestStep(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        threat = dataclasses.replace(request.threat, eps=max(request.threat.eps, 1e-3))
        return _step(dataclasses.replace(request, threat=threat))


@attack("empty-batch")
class LargestOfNone(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        request.images.max()
        return _step(request)


@attack("batch-of-one")
class Squeezes(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        return _step(request).squeeze(0)


@attack("inputs-untouched")
class InPlace(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        result = _step(request)
        return request.images.copy_(result).clone()


@attack("inputs-untouched")
class Relabels(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        result = _step(request)
        request.labels.zero_()
        return result


class Touches(Attack):
    def touch(self, network: nn.Module) -> None:
        raise NotImplementedError

    def run(self, request: AttackRequest) -> Tensor:
        result, network = _step(request), _network(request)
        if network is not None:
            self.touch(network)
        return result


@attack("model-untouched")
class TrainMode(Touches):
    def touch(self, network: nn.Module) -> None:
        network.train()


@attack("model-untouched")
class LeavesGradients(Touches):
    def touch(self, network: nn.Module) -> None:
        for weight in network.parameters():
            weight.grad = torch.zeros_like(weight)


@attack("model-untouched")
class LeavesHook(Touches):
    def touch(self, network: nn.Module) -> None:
        network.register_forward_hook(lambda *_: None)


@attack("model-untouched")
class MovesWeights(Touches):
    def touch(self, network: nn.Module) -> None:
        next(network.parameters()).data.mul_(1.001)


@attack("model-untouched")
class MovesBuffers(Touches):
    def touch(self, network: nn.Module) -> None:
        for buffer in network.buffers():
            buffer.add_(1)


@attack("model-untouched")
class Unfreezes(Touches):
    def touch(self, network: nn.Module) -> None:
        network.requires_grad_(requires_grad=True)


@attack("random-state-untouched")
class SeedsEverybody(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        torch.manual_seed(0)
        return _step(request)


@attack("random-state-untouched")
class DrawsFromNumpy(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        np.random.rand()
        return _step(request)


@attack("grad-mode-untouched")
class SwitchesGradientsOff(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        result = _step(request)
        torch.set_grad_enabled(False)
        return result


@attack("same-seed")
class Counts(Attack):
    runs: int = 0

    def run(self, request: AttackRequest) -> Tensor:
        self.runs += 1
        return _step(request, 1 - 0.01 * self.runs)


@attack("batch-invariant")
class ScaledByBatch(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        return _step(request, 1 - 0.01 * float(request.images.mean()))


@attack("batch-invariant")
class EveryOther(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        position = torch.arange(len(request.images)) % 2
        return _step(request, (1 - 0.01 * position).view(-1, 1, 1, 1))


@attack("public-target")
class ReachesInside(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        network = request.target._pipeline.classifier  # type: ignore[attr-defined]
        point = request.images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_loss(request.labels)(network(point)).sum(), point)
        step = request.threat.eps * steepest(gradient, request.threat.norm)
        return Ball(request.images, request.threat).project(request.images + step)


@attack("randomised-target")
class ForgetsSelect(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        request.target.logits(request.images[: len(request.images) // 2])
        return _step(request)


@attack("stronger-than-noise")
class IgnoresSmallGradients(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        gradient = _gradient(request)
        kept = gradient * (gradient.abs() > 1e-2)
        step = request.threat.eps * steepest(kept, request.threat.norm)
        return Ball(request.images, request.threat).project(request.images + step)


@attack("linear-optimum")
class HalfAStep(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        return _step(request, 0.5)


def _margin(request: AttackRequest, logits: Tensor) -> Tensor:
    own = logits.gather(1, request.labels[:, None])[:, 0]
    return logits.scatter(1, request.labels[:, None], -torch.inf).amax(1) - own


def _where(kept: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(kept.view(-1, 1, 1, 1), one, other)


@attack(needs="scores", linear_optimum=False)
class ClimbsScores(Attack):
    """Tries random steps and keeps those that raise the margin, until the budget ends."""

    tries: ClassVar[int] = 10_000

    def run(self, request: AttackRequest) -> Tensor:
        ball, best = Ball(request.images, request.threat), request.images
        value = _margin(request, request.target.logits(best))
        for turn in range(self.tries if len(best) else 0):
            direction = request.rng.normal(best.shape[1:], turn).to(best)
            x = ball.project(best + request.threat.eps * steepest(direction, request.threat.norm))
            now = _margin(request, request.target.logits(x))
            best, value = _where(now > value, x, best), torch.maximum(now, value)
        return best


@attack(needs="labels", search="minimum-norm", linear_optimum=False)
class NearestOfMany(Attack):
    """Walks along random directions, and bisects where the label changes."""

    def run(self, request: AttackRequest) -> Tensor:
        best, nearest = request.images, torch.full((len(request.images),), request.threat.eps)
        for turn in range(10_000 if len(best) else 0):
            direction = steepest(request.rng.normal(best.shape[1:], turn).to(best), request.threat.norm)
            low, high = torch.zeros(len(best)), nearest.clone()
            for _ in range(8):
                middle = (low + high) / 2
                x = (request.images + middle.view(-1, 1, 1, 1) * direction).clamp(0, 1)
                fallen = request.target.labels(x) != request.labels
                best, nearest = _where(fallen & (middle < nearest), x, best), torch.where(fallen, middle, nearest)
                low, high = torch.where(fallen, low, middle), torch.where(fallen, middle, high)
        return best


class _Linearised(Attack):
    overshoot: ClassVar[float] = 1.02

    def run(self, request: AttackRequest) -> Tensor:
        x = request.images
        for _ in range(20):
            here = request.target.loss_gradient(x, lambda logits: _margin(request, logits))
            flat = here.gradient.flatten(1)
            dual = flat.abs().sum(1) if request.threat.norm == "linf" else flat.norm(dim=1)
            length = self.overshoot * (-here.loss / dual.clamp_min(1e-12) + 1e-5)
            step = length.view(-1, 1, 1, 1) * steepest(here.gradient, request.threat.norm)
            x = _where(here.loss > 0, x, (x + step).clamp(0, 1))
        return x


@attack(search="minimum-norm")
class Linearised(_Linearised):
    pass


@attack("linear-optimum", search="minimum-norm")
class Overshoots(_Linearised):
    overshoot = 1.2


@attack("stronger-than-noise", search="minimum-norm", linear_optimum=False)
class StaysAtHome(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        _gradient(request)
        return request.images.clone()


@attack("declared-access", needs="labels", linear_optimum=False)
class LooksAtScores(ClimbsScores):
    pass


@attack("query-budget", needs="scores", linear_optimum=False)
class AsksOn(ClimbsScores):
    def run(self, request: AttackRequest) -> Tensor:
        for _ in range(3):
            try:
                best = super().run(request)
            except BudgetSpent as spent:
                best = spent.best
        return best


@attack(needs="scores", linear_optimum=False)
class ImageByImage(ClimbsScores):
    tries = 30

    def run(self, request: AttackRequest) -> Tensor:
        best = request.images.clone()
        for row in range(len(best)):
            one = torch.tensor([row])
            part = dataclasses.replace(
                request,
                images=request.images[one],
                labels=request.labels[one],
                target=request.target.select(one),
                rng=request.rng.select(one),
            )
            try:
                best[row] = super().run(part)[0]
            except BudgetSpent as spent:
                best[row] = spent.best[row]
        return best


@attack(targeted=True)
class TakesTargets(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        if request.targets is None:
            return _step(request)
        wanted = _loss(request.targets)
        gradient = -request.target.loss_gradient(request.images, wanted).gradient
        step = request.threat.eps * steepest(gradient, request.threat.norm)
        return Ball(request.images, request.threat).project(request.images + step)


@attack("targeted-goal", targeted=True)
class ForgetsTargets(OneStep):
    pass


@attack(linear_optimum=False)
class NeedsFourClasses(OneStep):
    """As the targeted DLR loss does."""

    def run(self, request: AttackRequest) -> Tensor:
        if request.target.classes < 4:
            raise CellError(f"needs at least 4 classes, and there are {request.target.classes}")
        return super().run(request)


def _noisy_step(request: AttackRequest) -> Tensor:
    noise = 1e-3 * torch.randn_like(request.images)
    return Ball(request.images, request.threat).project(_step(request, 0.99) + noise)


@attack(randomness="global")
class DrawsFromGlobalState(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        return _noisy_step(request)


@attack("same-seed", randomness="global")
class SeedsFromTheClock(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        torch.manual_seed(time.perf_counter_ns() % 2**31)
        return _noisy_step(request)


@attack(randomness="irreproducible")
class SaysThatItSeedsFromTheClock(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        torch.manual_seed(time.perf_counter_ns() % 2**31)
        return _noisy_step(request)


@attack(depends_on_batch=True)
class SaysThatItDependsOnTheBatch(Attack):
    def run(self, request: AttackRequest) -> Tensor:
        position = torch.arange(len(request.images)) % 2
        return _step(request, (1 - 0.01 * position).view(-1, 1, 1, 1))


# -- defenses ---------------------------------------------------------------------------------------------------------


def _soften(x: Tensor) -> Tensor:
    return 0.9 * x + 0.05


@defense()
class Softens(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return _soften(x)


@defense(stochastic=True)
class AddsNoise(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return (x + 0.1 * rng.normal(x.shape[1:], "noise").to(x)).clamp(0, 1)


@defense(differentiable=False)
class Quantises(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return (4 * x).round() / 4


@defense(needs_classifier=True, trained_on="clean")
class Learns(Defense):
    network: nn.Module | None = field(default=None, init=False)

    def fit(self, request: FitRequest) -> None:
        shift = torch.randn((), generator=request.generator) + torch.randn(())
        self._set(0.1 * torch.sigmoid(shift + request.upstream(request.images).mean()))
        request.classifier(request.images)  # type: ignore[misc]

    def _set(self, bias: Tensor) -> None:
        self.network = nn.Conv2d(1, 1, 1)
        self.network.load_state_dict({"weight": torch.full((1, 1, 1, 1), 0.8), "bias": bias.reshape(1)})

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return self.network(x)

    def state(self) -> dict[str, Tensor]:
        return {"bias": self.network.bias}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._set(state["bias"])

    def modules(self) -> Sequence[nn.Module]:
        return () if self.network is None else (self.network,)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.then = inner, then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.inner(x))


@defense()
class Halves(Defense):
    def defend(self, classifier: nn.Module) -> nn.Module:
        return Wrapped(classifier, lambda logits: logits / 2)


@defense("like-images")
class DefenseFloat64(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return _soften(x).double()


@defense("unit-range")
class LeavesTheRange(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return 1.2 * x - 0.1


@defense("logits")
class OneTooMany(Defense):
    def defend(self, classifier: nn.Module) -> nn.Module:
        return Wrapped(classifier, lambda logits: torch.cat([logits, logits[:, :1]], 1))


@defense("not-probabilities")
class Probabilities(Defense):
    def defend(self, classifier: nn.Module) -> nn.Module:
        return Wrapped(classifier, lambda logits: logits.softmax(1))


@defense("empty-batch")
class DefenseLargestOfNone(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        x.max()
        return _soften(x)


@defense("batch-of-one")
class DefenseSqueezes(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return _soften(x).squeeze(0)


@defense("inputs-untouched")
class DefenseInPlace(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return x.mul_(0.9).add_(0.05)


@defense("classifier-untouched", needs_classifier=True)
class FineTunes(Learns):
    def fit(self, request: FitRequest) -> None:
        super().fit(request)
        next(request.classifier.parameters()).data.mul_(1.01)  # type: ignore[union-attr]


@defense("modules-listed")
class HidesItsNetwork(Defense):
    network: nn.Module | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.network = nn.Conv2d(1, 1, 1)
        self.network.load_state_dict({"weight": torch.full((1, 1, 1, 1), 0.9), "bias": torch.zeros(1)})
        self.network.eval().requires_grad_(requires_grad=False)

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return self.network(x)


@defense()
class Detector(Defense):
    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        return functional.softmax(classify(x), 1).amax(1).neg() + (x - x.flatten(1).mean(1).view(-1, 1, 1, 1)).std()


@defense("anomaly-scores")
class OneScoreForAll(Defense):
    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        return x.mean().expand(len(x))


@defense("anomaly-scores")
class ScoresPerPixel(Defense):
    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        return x.flatten(1)


@defense("anomaly-scores")
class LogOfNothing(Defense):
    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        return (x - x).flatten(1).mean(1).log()


@defense("deterministic")
class UndeclaredNoise(AddsNoise):
    pass


@defense("seeded", stochastic=True)
class FreshEntropy(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        noise = np.random.default_rng().normal(size=tuple(x.shape)).astype(np.float32)
        return (x + 0.1 * torch.from_numpy(noise)).clamp(0, 1)


@defense("randomness-from-rng", stochastic=True)
class GlobalNoise(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


@defense("randomness-from-rng")
class SeedsTheGlobal(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        torch.manual_seed(0)
        return (x + 0.1 * torch.randn(x.shape[1:])).clamp(0, 1)


@defense("batch-invariant")
class BatchMean(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return 0.5 * x + 0.5 * x.mean()


@defense("differentiable")
class UndeclaredSteps(Quantises):
    pass


@defense("differentiable")
class Detaches(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return _soften(x).detach()


@defense("differentiable")
class StraightThrough(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return x + ((4 * x).round() / 4 - x).detach()


@defense("differentiable")
class BrokenGradient(Defense):
    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return _soften(x) + 0.0 * torch.sqrt((x - x).abs())


@defense("differentiable")
class DetachingNetwork(Defense):
    def defend(self, classifier: nn.Module) -> nn.Module:
        return Wrapped(classifier, lambda logits: logits.detach())


@defense("surrogate", differentiable=False)
class CutSurrogate(Quantises):
    def surrogate(self, x: Tensor) -> Tensor:
        return _soften(x.detach())


@defense("state-round-trip")
class ForgetsState(Learns):
    def fit(self, request: FitRequest) -> None:
        self._set(request.images.mean() / 10)

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._set(torch.zeros(()))


@defense("state-round-trip")
class DrawsAtBirth(Defense):
    gain: float = field(default_factory=lambda: float(np.random.default_rng().uniform(0.5, 0.9)), init=False)

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return self.gain * x


@defense("fit-seeded")
class FitsByTheClock(Learns):
    def fit(self, request: FitRequest) -> None:
        self._set(torch.tensor(0.1 * np.random.default_rng().random()))


@defense("fit-reads-no-data")
class ReadsTheTest(Learns):
    def fit(self, request: FitRequest) -> None:
        images = Digits().load("test", Path()).images
        self._set(torch.tensor(images.mean() / 10))


# -- metrics ----------------------------------------------------------------------------------------------------------


def _difference(reference: Tensor, other: Tensor) -> Tensor:
    return (reference - other).double().flatten(1).abs().mean(1)


@metric(range=(0, 1))
class MeanDifference(PairMetric):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        return MetricValues(values=_difference(reference, other))


@metric(looks_at="predictions", direction="higher", range=(0, 1))
class Right(PredictionMetric):
    def per_image(self, labels: Tensor, clean_logits: Tensor, logits: Tensor) -> MetricValues:
        return MetricValues(values=(logits.argmax(1) == labels).float())


@metric("declaration", unit="decibels\nof loss")
class LongUnit(MeanDifference):
    pass


@metric("declaration", range=(1, 0))
class BackwardRange(MeanDifference):
    pass


@metric("range", range=(0, 0.5))
class TooNarrow(MeanDifference):
    pass


@metric("direction", direction="higher")
class WrongWay(MeanDifference):
    pass


@metric("direction", looks_at="predictions", direction="lower", range=(0, 1))
class WrongWayPredictions(Right):
    pass


@metric("one-value-per-image")
class OneForAll(PairMetric):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        return MetricValues(values=_difference(reference, other).mean())


@metric("finite", direction="higher")
class Decibels(PairMetric):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        return MetricValues(values=-10 * (reference - other).double().flatten(1).square().mean(1).log10())


GREY, BLACK = torch.full((2, 1, 8, 8), 0.5), torch.zeros(2, 1, 8, 8)
ANSWER = KnownAnswer(inputs=(GREY, BLACK), values=[0.5, 0.5], source="by hand")
UNDEFINED = KnownAnswer(inputs=(GREY, GREY), values=[None, None], source="by hand")


@metric(answers=(ANSWER,))
class WithAnAnswer(MeanDifference):
    pass


@metric("known-answers", answers=(ANSWER,))
class InOtherUnits(MeanDifference):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        return MetricValues(values=1.1 * _difference(reference, other))


@metric("known-answers", answers=(UNDEFINED,))
class DefinedEverywhere(MeanDifference):
    pass


@metric(monotone=False)
class ComesBack(MeanDifference):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        return MetricValues(values=(20 * _difference(reference, other)).sin().abs())


@metric("json-safe")
class TensorAggregate(MeanDifference):
    def aggregate(self, values: Sequence[float], undefined: int) -> Any:
        return torch.tensor(values).mean() if values else None


@metric("empty-input")
class DividesByNone(MeanDifference):
    def aggregate(self, values: Sequence[float], undefined: int) -> float | None:
        return sum(values) / len(values)


@metric("empty-input")
class NanOfNone(MeanDifference):
    def aggregate(self, values: Sequence[float], undefined: int) -> float | None:
        return float(np.mean(values)) if values else float("nan")


@metric("empty-input")
class NeedsAnImage(MeanDifference):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        reference.max()
        return super().per_image(reference, other)


@metric("inputs-untouched")
class SubtractsInPlace(PairMetric):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        return MetricValues(values=other.sub_(reference).double().flatten(1).abs().mean(1))


@metric("deterministic")
class DrawsAnew(PairMetric):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        weight = 1 + 1e-3 * np.random.default_rng().random()
        return MetricValues(values=weight * _difference(reference, other))


@metric("deterministic")
class MovesTheGlobal(PairMetric):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        torch.rand(1)
        return MetricValues(values=_difference(reference, other))


@metric("permutation")
class EveryOtherValue(PairMetric):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        return MetricValues(values=_difference(reference, other) + 1e-3 * (torch.arange(len(other)) % 2))


@metric("chunked")
class BatchOffset(PairMetric):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        return MetricValues(values=_difference(reference, other) + 0.01 * reference.double().mean())


@metric("dtype")
class Float32Only(PairMetric):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        window = torch.ones(64, 1) / 64
        return MetricValues(values=((reference - other).flatten(1).abs() @ window)[:, 0])


@metric("identical-best")
class OffCentre(PairMetric):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        return MetricValues(values=(reference - other + 0.05).double().flatten(1).abs().mean(1))


@metric("monotone", range=(0, 1))
class WrapsAround(PairMetric):
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        return MetricValues(values=(6 * _difference(reference, other)).remainder(1))


# -- data sets --------------------------------------------------------------------------------------------------------


@dataset()
class Noise(Dataset):
    shape: ClassVar[tuple[int, ...]] = (1, 4, 4)

    def info(self) -> DatasetInfo:
        return DatasetInfo(image_shape=self.shape, classes=3, train_size=30, test_size=12)  # type: ignore[arg-type]

    def fetch(self, data_dir: Path) -> Path:
        return data_dir

    def fingerprint(self, data_dir: Path) -> str:
        return "noise"

    def load(self, split: str, data_dir: Path) -> Split:
        size = 30 if split == "train" else 12
        images = np.random.default_rng(size).random((size, *self.shape), dtype=np.float32)
        return Split(images=images, labels=np.arange(size, dtype=np.int64) % 3)


@dataset("info")
class NoChannels(Noise):
    shape: ClassVar[tuple[int, ...]] = (4, 4)


@dataset("splits")
class DatasetFloat64(Noise):
    def load(self, split: str, data_dir: Path) -> Split:
        loaded = super().load(split, data_dir)
        return Split(images=loaded.images.astype(np.float64), labels=loaded.labels)


@dataset("labels")
class FromOne(Noise):
    def load(self, split: str, data_dir: Path) -> Split:
        loaded = super().load(split, data_dir)
        return Split(images=loaded.images, labels=loaded.labels + 1)


@dataset("repeatable")
class HandsOutItsCache(Noise):
    kept: dict[str, Split] = field(default_factory=dict, init=False)

    def load(self, split: str, data_dir: Path) -> Split:
        return self.kept.setdefault(split, super().load(split, data_dir))


@dataset("disjoint")
class OneFile(Noise):
    def load(self, split: str, data_dir: Path) -> Split:
        loaded = super().load("train", data_dir)
        size = 30 if split == "train" else 12
        return Split(images=loaded.images[:size], labels=loaded.labels[:size])


@dataset("fingerprint")
class HashOfTheTime(Noise):
    def fingerprint(self, data_dir: Path) -> str:
        return str(time.monotonic_ns())


# -- models -----------------------------------------------------------------------------------------------------------


@model()
class Perceptron(Model):
    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        channels, height, width = image_shape
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 16), nn.ReLU(), nn.Linear(16, classes))


@model("logits")
class FixedSize(Model):
    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes))


@model("not-probabilities")
class Softmax(Perceptron):
    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(super().build(image_shape, classes), nn.Softmax(1))


@model("batch-invariant")
class BatchStatistics(Perceptron):
    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        normalise = nn.BatchNorm2d(image_shape[0], track_running_stats=False)
        return nn.Sequential(normalise, super().build(image_shape, classes))


@model("build-seeded")
class UnseededWeights(Perceptron):
    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        network = super().build(image_shape, classes)
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(1e-3 * float(np.random.default_rng().random()))
        return network


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


@model("input-gradient")
class CutsItsInput(Perceptron):
    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(Detached(), super().build(image_shape, classes))


@model("trainable")
class BornFrozen(Perceptron):
    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        return super().build(image_shape, classes).requires_grad_(requires_grad=False)


@model("trainable")
class NeverLearns(Perceptron):
    def recipe(self) -> Recipe:
        return Recipe(learning_rate=0.0, weight_decay=0.0)


class Offset(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.offset = torch.randn(classes)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


@model("state-round-trip")
class ForgottenTensor(Perceptron):
    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(super().build(image_shape, classes), Offset(classes))
