"""Access levels: what an attack is handed, what gradients it gets, and the count of what it spent."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench import load_suite, run
from autoshield_bench.builtin.attacks.fgsm import FGSM
from autoshield_bench.builtin.datasets.digits import Digits
from autoshield_bench.contracts import (
    Attack,
    AttackRequest,
    AttackSpec,
    Defense,
    DefenseSpec,
    FitRequest,
    Model,
    ModelSpec,
    ThreatModel,
)
from autoshield_bench.engine.access import GradientTarget
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline, Threshold
from autoshield_bench.hookspecs import hookimpl
from autoshield_bench.results import CellRecord, ResultSet
from autoshield_bench.seeding import ImageRandom

SHAPE = (1, 8, 8)
CLASSES = 10


pytestmark = pytest.mark.usefixtures("one_thread")


# The plugins ------------------------------------------------------------------------------------------------------


class NearestMean(nn.Sequential):
    """A linear classifier, left in training mode and with dropout, so that one not put in order shows."""


@dataclass(frozen=True, kw_only=True)
class NearestMeanModel(Model):
    """Comes trained: weights from the class means, so that tests spend no time on training."""

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        split = Digits().load("train", Path())
        images, labels = torch.from_numpy(split.images).flatten(1), torch.from_numpy(split.labels)
        means = torch.stack([images[labels == label].mean(0) for label in range(classes)])
        linear = nn.Linear(means.shape[1], classes)
        with torch.no_grad():
            linear.weight.copy_(means)
            linear.bias.copy_(-means.square().sum(1) / 2)
        return NearestMean(nn.Flatten(), nn.Dropout(0.5), linear).train()

    def fingerprint(self) -> str:
        return "class means of the digits"


class Softener(nn.Module):
    """A small network that pulls images towards grey, in a way that is differentiable and not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.4))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x * (1 - self.strength * (1 - x) * x))


@dataclass(kw_only=True)
class Soften(Defense):
    """A differentiable purifier that holds a network, handed over in training mode."""

    network: Softener = field(default_factory=lambda: Softener().train(), init=False)

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return self.network(x)

    def modules(self) -> Sequence[nn.Module]:
        return (self.network,)


@dataclass(kw_only=True)
class Dark(Defense):
    """Flags dark images."""

    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        return -x.flatten(1).mean(1)


@dataclass(kw_only=True)
class Quantise(Defense):
    """A step function: its true gradient is zero wherever it exists."""

    levels: int = 4

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return (x * self.levels).round() / self.levels


@dataclass(kw_only=True)
class QuantiseInPlace(Quantise):
    """The same, written by somebody who likes to save memory."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return x.mul_(self.levels).round_().div_(self.levels)


@dataclass(kw_only=True)
class QuantiseSurrogate(Quantise):
    """The same, with a stand-in for the backward pass that is not the identity."""

    def surrogate(self, x: Tensor) -> Tensor:
        return x.square() / 2


@dataclass(kw_only=True)
class Noise(Defense):
    """Adds normal noise and keeps a record of what it drew."""

    level: float = 0.2
    drawn: list[Tensor] = field(default_factory=list, init=False)

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        noise = self.level * rng.normal(SHAPE, "noise")
        self.drawn.append(noise)
        return (x + noise).clamp(0, 1)


class Robustified(nn.Module):
    """What ``Wrap`` puts in place of the classifier."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * 0.9)


@dataclass(kw_only=True)
class Wrap(Defense):
    """Changes the classifier and not the images."""

    def defend(self, classifier: nn.Module) -> nn.Module:
        return Robustified(classifier)


@dataclass(kw_only=True)
class Prune(Defense):
    """Sets half of the classifier's weights to zero: writes into what it was handed."""

    def defend(self, classifier: nn.Module) -> nn.Module:
        with torch.no_grad():
            for module in classifier.modules():
                if isinstance(module, nn.Linear):
                    module.weight[:5] = 0
                    module.bias[:5] = -1000
        return classifier


@dataclass(kw_only=True)
class TuneClassifier(Defense):
    """Fits itself by writing into the classifier that it was handed."""

    def fit(self, request: FitRequest) -> None:
        assert request.classifier is not None
        Prune().defend(request.classifier)

    def load(self, state: Any) -> None: ...

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return x.clone()


@dataclass(frozen=True, kw_only=True)
class Snoop(Attack):
    """Writes down everything that can be reached from its target, then steps once as FGSM does."""

    tag: str

    FOUND: ClassVar[dict[str, list[object]]] = {}

    def run(self, request: AttackRequest) -> Tensor:
        result = FGSM().run(request)
        self.FOUND.setdefault(self.tag, []).extend(reachable(request.target))
        return result


def reachable(start: object) -> list[object]:
    """Return every object that can be reached from ``start``; not through modules, classes or a function's globals,
    from which all of Python can be reached."""
    found: dict[int, object] = {}
    waiting = [start]
    while waiting:
        item = waiting.pop()
        if id(item) in found or isinstance(item, types.ModuleType | type | types.CodeType | types.FrameType):
            continue
        found[id(item)] = item
        if isinstance(item, types.FunctionType):
            waiting += [item.__closure__, item.__defaults__, item.__kwdefaults__, item.__dict__]
        elif isinstance(item, weakref.ref):
            waiting.append(item())
        else:
            waiting += gc.get_referents(item)
    return list(found.values())


class Plugins:
    """The manifest."""

    CONTRACT = 1

    @hookimpl
    def aubench_models(self) -> Iterator[ModelSpec]:
        yield ModelSpec(
            name="nearest-mean", factory=f"{__name__}:NearestMeanModel", summary="Class means.", trained=True
        )

    @hookimpl
    def aubench_attacks(self) -> Iterator[AttackSpec]:
        yield AttackSpec(name="snoop", factory=f"{__name__}:Snoop", summary="Looks around.", norms=("linf", "l2"))

    @hookimpl
    def aubench_defenses(self) -> Iterator[DefenseSpec]:
        yield DefenseSpec(name="soften", factory=f"{__name__}:Soften", summary="Differentiable.")
        yield DefenseSpec(
            name="quantise", factory=f"{__name__}:Quantise", summary="A step function.", differentiable=False
        )
        yield DefenseSpec(name="noise", factory=f"{__name__}:Noise", summary="Random.", stochastic=True)
        yield DefenseSpec(name="wrap", factory=f"{__name__}:Wrap", summary="Changes the classifier.")
        yield DefenseSpec(name="prune", factory=f"{__name__}:Prune", summary="Writes into the classifier.")
        yield DefenseSpec(
            name="tune",
            factory=f"{__name__}:TuneClassifier",
            summary="Fits by writing into the classifier.",
            needs_classifier=True,
        )


Runner = Callable[..., ResultSet]


@pytest.fixture
def run_suite(tmp_path: Path) -> Runner:
    def run_it(defenses: Sequence[str], attacks: Sequence[str], **options: Any) -> ResultSet:
        lines = ["schema = 1", 'name = "access"', "seeds = [0]", '[dataset]\nuse = "digits"']
        lines += ['[model]\nuse = "nearest-mean"', '[[threats]]\nnorm = "linf"\neps = [0.15]']
        lines += [f"[[defenses]]\n{entry}" for entry in defenses] + [f"[[attacks]]\n{entry}" for entry in attacks]
        file = tmp_path / "access.toml"
        file.write_text("\n".join(lines), encoding="utf-8")
        suite = load_suite(file, plugins=[Plugins()])
        options = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", **options}
        return run(suite, data_dir=tmp_path / "data", device="cpu", **options)

    return run_it


def record(results: ResultSet, **place: Any) -> CellRecord:
    (found,) = [
        own for own in results.records if all(getattr(own.cell, name) == value for name, value in place.items())
    ]
    assert found.status == "ok", found.error
    return found


# What an attack is handed -----------------------------------------------------------------------------------------

SNOOPS = [
    f'use = "snoop"\naccess = "{access}"\nlabel = "{access}"\nimages = 20\nparams = {{ tag = "{access}" }}'
    for access in ("gray-box", "white-box")
]
DEFENDED = [
    ('use = "soften"', (Soften, Softener)),
    ('use = "chain"\nstages = [{ use = "wrap" }, { use = "soften" }]', (Soften, Softener, Robustified)),
    ('use = "chain"\nstages = [{ use = "quantise" }, { use = "noise" }]', (Quantise, Noise)),
]


@pytest.mark.parametrize(("defense", "parts"), DEFENDED, ids=["one-stage", "changed-classifier", "chain"])
def test_a_gray_box_attack_cannot_reach_the_defense_and_a_white_box_attack_can(
    run_suite: Runner, defense: str, parts: tuple[type, ...]
) -> None:
    Snoop.FOUND.clear()
    results = run_suite([defense], SNOOPS)
    assert all(own.status == "ok" for own in results.records), [own.error for own in results.records]
    gray, white = Snoop.FOUND["gray-box"], Snoop.FOUND["white-box"]
    assert not [item for item in gray if isinstance(item, (Defense, FittedStage, *parts))]
    for part in parts:
        assert [item for item in white if isinstance(item, part)], part
    for seen in (gray, white):
        assert [item for item in seen if isinstance(item, NearestMean)], "both see the classifier"


def test_what_an_attack_sees_is_frozen_and_in_evaluation_mode(run_suite: Runner) -> None:
    Snoop.FOUND.clear()
    run_suite(['use = "chain"\nstages = [{ use = "wrap" }, { use = "soften" }]'], SNOOPS)
    for access, expected in (("gray-box", {NearestMean}), ("white-box", {NearestMean, Softener, Robustified})):
        modules = [item for item in Snoop.FOUND[access] if isinstance(item, nn.Module)]
        assert expected <= {type(module) for module in modules}
        assert not [module for module in modules if module.training]
        weights = [weight for module in modules for weight in module.parameters()]
        assert weights
        assert not [weight for weight in weights if weight.requires_grad or weight.grad is not None]


def test_a_gray_box_example_is_crafted_once_and_scored_against_every_defense(run_suite: Runner) -> None:
    Snoop.FOUND.clear()
    results = run_suite(['use = "none"', 'use = "soften"', 'use = "quantise"'], SNOOPS[:1], batch_size=20)
    assert len([item for item in Snoop.FOUND["gray-box"] if isinstance(item, GradientTarget)]) == 1
    gray = [own for own in results.records if own.cell.access == "gray-box"]
    assert len({own.facts["attack"]["key"] for own in gray}) == 1
    assert len({str(own.passes["attack"]) for own in gray}) == 1


@pytest.mark.parametrize("spoiler", ["prune", "tune"])
def test_a_defense_that_writes_into_the_classifier_changes_no_other_row(
    run_suite: Runner, spoiler: str, tmp_path: Path
) -> None:
    others = ['use = "none"', 'use = "soften"']
    alone = run_suite(others, SNOOPS[:1], results_dir=tmp_path / "alone", cache_dir=tmp_path / "cache-alone")
    expected = {str(own.cell): own.outcomes for own in alone.records}
    beside = run_suite([f'use = "{spoiler}"', *others], SNOOPS[:1])
    found = {str(own.cell): own.outcomes for own in beside.records if own.cell.defense != spoiler}
    assert found == expected


# White-box gradients ----------------------------------------------------------------------------------------------


def digits(count: int) -> tuple[Tensor, Tensor]:
    split = Digits().load("test", Path())
    return torch.from_numpy(split.images[:count]), torch.from_numpy(split.labels[:count])


def curved() -> nn.Module:
    """A classifier whose gradient changes with the point at which it is taken."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, CLASSES)).eval()


def stage(defense: Defense, name: str = "stage", **declared: bool) -> FittedStage:
    return FittedStage(component=name, defense=defense, **{"differentiable": True, "stochastic": False, **declared})


def target_of(
    classifier: nn.Module,
    *stages: FittedStage,
    indices: Sequence[int] = range(6),
    eot: int = 1,
    counter: PassCounter | None = None,
) -> GradientTarget:
    rng = ImageRandom(3, indices).child("target")
    return GradientTarget(Pipeline(classifier, stages, counter or PassCounter()), rng, classes=CLASSES, eot=eot)


def loss_of(labels: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: functional.cross_entropy(logits, labels, reduction="none")


def by_autograd(whole: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, gradient and logits of a plain function."""
    point = x.clone().requires_grad_()
    logits = whole(point)
    losses = loss_of(labels)(logits)
    (gradient,) = torch.autograd.grad(losses.sum(), point)
    return losses.detach(), gradient, logits.detach()


def assert_same(found: Any, expected: tuple[Tensor, Tensor, Tensor], tolerance: float = 1e-6) -> None:
    for own, other in zip((found.loss, found.gradient, found.logits), expected, strict=True):
        assert not own.requires_grad
        torch.testing.assert_close(own, other, rtol=0, atol=tolerance)


def test_gradients_go_through_every_differentiable_stage() -> None:
    (x, labels), classifier, first, second = digits(6), curved(), Soften(), Soften()
    second.network.strength.data.fill_(0.9)
    found = target_of(classifier, stage(first), stage(second)).loss_gradient(x, loss_of(labels))
    expected = by_autograd(lambda x: classifier(second.network(first.network(x))), x, labels)
    assert_same(found, expected)
    bare = target_of(classifier).loss_gradient(x, loss_of(labels))
    assert_same(bare, by_autograd(classifier, x, labels))
    assert not torch.allclose(found.gradient, bare.gradient, atol=1e-4)


def test_gradients_go_through_a_changed_classifier() -> None:
    (x, labels), classifier = digits(6), curved()
    found = target_of(classifier, stage(Wrap())).loss_gradient(x, loss_of(labels))
    assert_same(found, by_autograd(lambda x: classifier(x * 0.9), x, labels))


def test_logits_are_differentiable_and_the_same_as_those_beside_the_gradient() -> None:
    (x, labels), classifier, defense = digits(6), curved(), Soften()
    target = target_of(classifier, stage(defense))
    point = x.clone().requires_grad_()
    logits = target.logits(point)
    (gradient,) = torch.autograd.grad(loss_of(labels)(logits).sum(), point)
    beside = target.loss_gradient(x, loss_of(labels))
    assert torch.equal(logits.detach(), beside.logits)
    assert torch.equal(gradient, beside.gradient)
    assert target.classes == CLASSES


# BPDA -------------------------------------------------------------------------------------------------------------


def test_bpda_runs_the_true_stage_forward_and_the_identity_backward() -> None:
    (x, labels), classifier, defense = digits(6), curved(), Quantise()
    x = (x + 0.03).clamp(0, 1)
    found = target_of(classifier, stage(defense, differentiable=False)).loss_gradient(x, loss_of(labels))
    purified = (x * 4).round() / 4
    assert not torch.equal(purified, x)
    at_purified = by_autograd(classifier, purified, labels)
    assert torch.equal(found.logits, at_purified[2])
    assert_same(found, at_purified)
    assert bool((found.gradient.flatten(1).abs().amax(1) > 0).all())


def test_bpda_goes_backward_through_the_surrogate_of_the_stage() -> None:
    (x, labels), classifier, defense = digits(6), curved(), QuantiseSurrogate()
    x = (x + 0.03).clamp(0, 1)
    found = target_of(classifier, stage(defense, differentiable=False)).loss_gradient(x, loss_of(labels))
    losses, gradient, logits = by_autograd(classifier, (x * 4).round() / 4, labels)
    assert torch.equal(found.logits, logits)
    assert_same(found, (losses, gradient * x, logits))  # d(x^2 / 2) = x dx


def test_bpda_and_exact_stages_compose() -> None:
    (x, labels), classifier, soften = digits(6), curved(), Soften()
    stages = stage(soften), stage(Quantise(), differentiable=False), stage(Soften())
    found = target_of(classifier, *stages).loss_gradient(x, loss_of(labels))
    after = soften.network(x).detach()
    shift = (after * 4).round() / 4 - after
    expected = by_autograd(lambda x: classifier(soften.network(soften.network(x) + shift)), x, labels)
    assert_same(found, expected)


def test_without_bpda_a_quantiser_would_hide_every_gradient() -> None:
    # The control: what the declaration changes.
    x, labels = digits(6)
    honest, naive = (
        target_of(curved(), stage(Quantise(), differentiable=declared)).loss_gradient(x, loss_of(labels)).gradient
        for declared in (False, True)
    )
    assert float(naive.abs().max()) == 0
    assert float(honest.abs().max()) > 0


def test_a_stage_that_writes_into_its_input_does_not_move_the_attacks_point() -> None:
    (x, labels), classifier = digits(6), curved()
    x = (x + 0.03).clamp(0, 1)
    before = x.clone()
    for with_gradient in (False, True):
        in_place, plain = (
            target_of(classifier, stage(kind(), differentiable=False)) for kind in (QuantiseInPlace, Quantise)
        )
        if with_gradient:
            found, expected = (each.loss_gradient(x, loss_of(labels)).loss for each in (in_place, plain))
        else:
            with torch.no_grad():
                found, expected = in_place.logits(x), plain.logits(x)
        assert torch.equal(x, before)
        assert torch.equal(found, expected)


def test_a_quantiser_falls_to_a_white_box_attack_in_a_whole_run(run_suite: Runner) -> None:
    attack = 'use = "fgsm"\naccess = "white-box"\nimages = 100'
    results = run_suite(['use = "quantise"'], [attack])
    clean, white = record(results, attack=None), record(results, attack="fgsm")
    assert white.facts["attack"]["gradient_path"] == ["bpda"]
    assert clean.outcomes is not None
    assert white.outcomes is not None
    assert white.outcomes.hits / white.outcomes.n < clean.outcomes.hits / clean.outcomes.n - 0.2


# EOT --------------------------------------------------------------------------------------------------------------


def test_eot_is_the_mean_over_as_many_draws_as_asked_for() -> None:
    (x, labels), classifier, defense = digits(6), curved(), Noise()
    found = target_of(classifier, stage(defense, stochastic=True), eot=5).loss_gradient(x, loss_of(labels))
    assert len(defense.drawn) == 5
    assert len(torch.unique(torch.cat(defense.drawn).flatten(1), dim=0)) == 5 * len(x)
    single = [by_autograd(lambda x, n=noise: classifier((x + n).clamp(0, 1)), x, labels) for noise in defense.drawn]
    means = [torch.stack(parts).mean(0) for parts in zip(*single, strict=True)]
    assert_same(found, (means[0], means[1], means[2]))


def test_eot_averages_logits_too_and_they_stay_differentiable() -> None:
    (x, _), classifier, defense = digits(6), curved(), Noise()
    point = x.clone().requires_grad_()
    logits = target_of(classifier, stage(defense, stochastic=True), eot=3).logits(point)
    assert len(defense.drawn) == 3
    expected = torch.stack([classifier((x + noise).clamp(0, 1)) for noise in defense.drawn]).mean(0)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(logits.sum(), point)
    assert bool(gradient.abs().amax() > 0)


def test_a_deterministic_pipeline_is_run_once_whatever_eot_says() -> None:
    (x, labels), counter = digits(6), PassCounter()
    target_of(curved(), stage(Soften()), eot=7, counter=counter).loss_gradient(x, loss_of(labels))
    assert counter.to_json()["classifier"] == {"forward": 6, "backward": 6}


def two_steps(indices: list[int], eot: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Return what two evaluations in a row find for these images."""
    images, labels = digits(8)
    target = target_of(curved(), stage(Noise(), stochastic=True), indices=indices, eot=eot)
    x, y = images[indices], labels[indices]
    return [(found.loss, found.gradient) for found in (target.loss_gradient(x, loss_of(y)) for _ in range(2))]


def test_eot_is_reproducible_and_every_evaluation_draws_afresh() -> None:
    first, again = two_steps([0, 1, 2]), two_steps([0, 1, 2])
    for step in range(2):
        assert torch.equal(first[step][1], again[step][1])
    assert not torch.equal(first[0][1], first[1][1])


def test_eot_does_not_depend_on_batch_split_or_order() -> None:
    whole = two_steps(list(range(8)))
    for batches in ([[0, 1, 2], [3, 4, 5, 6, 7]], [[5, 1, 7, 0, 2, 6, 4, 3]], [[row] for row in range(8)]):
        for rows in batches:
            for step, (loss, gradient) in enumerate(two_steps(rows)):
                torch.testing.assert_close(loss, whole[step][0][rows], rtol=0, atol=1e-6)
                torch.testing.assert_close(gradient, whole[step][1][rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mask", [False, True])
def test_select_keeps_each_images_draws(mask: bool) -> None:
    images, labels = digits(8)
    chosen = torch.tensor([1, 4, 5])
    rows = torch.isin(torch.arange(8), chosen) if mask else chosen
    whole, part = (target_of(curved(), stage(Noise(), stochastic=True), indices=range(8), eot=2) for _ in range(2))
    expected = whole.loss_gradient(images, loss_of(labels)).gradient[chosen]
    found = part.select(rows).loss_gradient(images[chosen], loss_of(labels[chosen])).gradient
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_an_attack_that_selects_in_every_step_still_gets_fresh_draws() -> None:
    # Otherwise an attack that drops fallen images could learn one draw by heart, and call a defense broken or sound by
    # the accident of that draw.
    images, labels = digits(8)
    target = target_of(curved(), stage(Noise(), stochastic=True), indices=range(8), eot=2)
    rows = torch.tensor([1, 4, 5])
    found = [target.select(rows).loss_gradient(images[rows], loss_of(labels[rows])).gradient for _step in range(3)]
    found.append(target.loss_gradient(images, loss_of(labels)).gradient[rows])
    assert len(torch.unique(torch.stack(found).flatten(1), dim=0)) == 4


# The count --------------------------------------------------------------------------------------------------------

N, STEPS = 23, 3


def pgd(access: str, eot: int = 1, restarts: int = 1) -> str:
    params = f"params = {{ steps = {STEPS}, restarts = {restarts} }}"
    return f'use = "pgd"\naccess = "{access}"\nimages = {N}\neot = {eot}\n{params}'


def passes(times: int = 1) -> dict[str, int]:
    return {"forward": times * N * (STEPS + 1), "backward": times * N * STEPS}


def test_a_gray_box_attack_spends_on_the_classifier_alone(run_suite: Runner) -> None:
    results = run_suite(['use = "soften"'], [pgd("gray-box")], batch_size=10)
    assert record(results, attack="pgd").passes["attack"] == {"classifier": passes()}


def test_a_white_box_attack_spends_on_every_stage(run_suite: Runner) -> None:
    chain = 'use = "chain"\nstages = [{ use = "soften" }, { use = "quantise" }, { use = "soften" }]'
    own = record(run_suite([chain], [pgd("white-box", eot=4)], batch_size=10), attack="pgd")
    components = ("1:soften", "2:quantise", "3:soften", "classifier")
    assert own.passes["attack"] == {component: passes() for component in components}
    assert own.passes["score"] == {component: {"forward": N, "backward": 0} for component in components}
    assert own.facts["attack"]["gradient_path"] == ["exact", "bpda", "exact"]
    assert own.facts["attack"]["eot"] == 1


def test_eot_and_restarts_multiply_what_is_spent(run_suite: Runner) -> None:
    chain = 'use = "chain"\nstages = [{ use = "soften" }, { use = "noise" }]'
    own = record(run_suite([chain], [pgd("white-box", eot=4, restarts=2)], batch_size=10), attack="pgd")
    assert own.passes["attack"] == {component: passes(8) for component in ("1:soften", "2:noise", "classifier")}
    assert own.facts["attack"]["eot"] == 4


def test_a_forward_pass_alone_is_no_backward_pass() -> None:
    (x, labels), counter = digits(6), PassCounter()
    target = target_of(curved(), stage(Soften(), "1:soften"), counter=counter)
    with torch.no_grad():
        target.logits(x)
    target.logits(x.clone().requires_grad_())
    assert counter.to_json()["classifier"] == {"forward": 12, "backward": 0}
    target.select(torch.tensor([0, 2])).loss_gradient(x[[0, 2]], loss_of(labels[[0, 2]]))
    assert counter.to_json() == {
        "1:soften": {"forward": 14, "backward": 2},
        "classifier": {"forward": 14, "backward": 2},
    }
    assert counter.total() == 32


@pytest.mark.parametrize("part", ["logits", "purified", "excess"])
def test_a_loss_of_any_part_of_the_output_is_paid_for(part: str) -> None:
    (x, _labels), counter = digits(6), PassCounter()
    stages = [stage(Soften(), "1:soften"), stage(Dark(), "2:dark")]
    known = {"2:dark": Threshold(value=0.0, scale=1.0)}
    pipeline = Pipeline(curved(), stages, counter, thresholds=known)
    rng = ImageRandom(0, range(len(x)))
    target = GradientTarget(pipeline, rng, classes=CLASSES, eot=1, detector_aware=True)
    getattr(target.output(x.clone().requires_grad_()), part).sum().backward()
    assert target.spent.tolist() == [2] * 6


def test_a_stochastic_run_does_not_depend_on_the_batch_size(run_suite: Runner, tmp_path: Path) -> None:
    found = []
    for batch_size in (7, 23):
        folder = {"results_dir": tmp_path / str(batch_size), "cache_dir": tmp_path / f"cache-{batch_size}"}
        results = run_suite(['use = "noise"'], [pgd("white-box", eot=3)], batch_size=batch_size, **folder)
        found.append(results.arrays(record(results, attack="pgd")))
    for name in ("index", "prediction", "clean_prediction"):
        assert np.array_equal(found[0][name], found[1][name])


def test_threats_of_radius_zero_leave_predictions_as_they_are() -> None:
    x, labels = digits(6)
    request = AttackRequest(
        images=x,
        labels=labels,
        threat=ThreatModel(norm="linf", eps=0.0),
        target=target_of(curved(), stage(Noise(), stochastic=True), eot=2),
        rng=ImageRandom(0, range(6)),
    )
    assert torch.equal(FGSM().run(request), x)
