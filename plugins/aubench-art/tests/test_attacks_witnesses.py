"""ART called directly on the same network, the built-in attacks, and counts by hand: what the adapters are held to."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from art.attacks import evasion
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from autoshield_bench.balls import distance
from autoshield_bench.builtin.attacks import fgsm, pgd
from autoshield_bench.contracts import AttackRequest, ThreatModel
from autoshield_bench.engine.access import attempt, searched, target_for
from autoshield_bench.engine.pipeline import PassCounter, Pipeline
from autoshield_bench.errors import CellError, ParameterError
from autoshield_bench.seeding import global_seed
from autoshield_bench.testing.world import World
from torch import nn

from aubench_art.attack_specs import attack_specs
from aubench_art.attacks.black_box import Square
from aubench_art.attacks.classifier import GradientClassifier, Questions, QuestionsOfOne, query_classifier, quiet
from aubench_art.attacks.decision_based import Boundary, HopSkipJump, seeded
from aubench_art.attacks.gradient import APGD, FGSM, PGD
from aubench_art.attacks.minimum_norm import CarliniWagner, DeepFool
from aubench_art.attacks.requests import one_by_one

SPECS = {spec.name: spec for spec in attack_specs()}
EPS = {"linf": 0.1, "l2": 0.8}
ORDER = {"linf": np.inf, "l2": 2}
WORLD = World()


def request_for(
    name,
    norm="l2",
    *,
    model=None,
    labels=None,
    targets=None,
    queries=None,
    access="white-box",
    rows=None,
    eps=None,
    images=None,
):
    """Return a request as the host makes it, and the counter of its passes."""
    spec, counter, model = SPECS[name], PassCounter(), model or WORLD.classifier()
    chosen = list(range(len(WORLD.images))) if rows is None else rows
    images = (WORLD.images if images is None else images)[chosen]
    labels = (WORLD.labels if labels is None else labels)[chosen]
    threat = searched(spec, ThreatModel(norm=norm, eps=EPS[norm] if eps is None else eps), images.shape[1:])
    rng = WORLD.rng(indices=chosen)
    with torch.no_grad():
        classes = model(images).shape[1]
    target = target_for(
        spec,
        access,
        Pipeline(model, (), counter),
        rng.child("target"),
        classes=classes,
        eot=1,
        images=images,
        labels=labels,
        threat=threat,
        targets=targets,
        queries=queries,
    )
    rng = rng.child("attack")
    request = AttackRequest(
        images=images, labels=labels, threat=threat, target=target, rng=rng, targets=targets, queries=queries
    )
    return request, counter


class Recorder(PyTorchClassifier):
    """ART's own classifier, which remembers what it was asked."""

    def predict(self, x, *args, **kwargs):
        self.asked.append(np.array(x, dtype=np.float32))
        return super().predict(x, *args, **kwargs)


def stock(model=None):
    """Return ART's own classifier around the bare network."""
    model = model or WORLD.classifier()
    made = Recorder(
        model, loss=nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=WORLD.classes, clip_values=(0, 1)
    )
    made.asked = []
    return made


def one_hot(labels):
    return np.eye(WORLD.classes, dtype=np.float32)[labels.numpy()]


def direct(kind, request, *, seed=None, classes=None, **params):
    """Return what ART itself makes of the images."""
    attack = kind(stock(), **params)
    with quiet(), global_seed(seed or "direct"):
        return torch.from_numpy(attack.generate(request.images.numpy().copy(), one_hot(classes)))


def accuracy(images, labels):
    with torch.no_grad():
        return float((WORLD.classifier()(images).argmax(1) == labels).float().mean())


# ART itself -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_is_arts(norm, targeted):
    targets = (WORLD.labels + 1) % WORLD.classes if targeted else None
    request, _ = request_for("art-fgsm", norm, targets=targets)
    ours = FGSM().run(request)
    classes = targets if targeted else WORLD.labels
    params = {"norm": ORDER[norm], "eps": EPS[norm], "targeted": targeted}
    theirs = direct(evasion.FastGradientMethod, request, classes=classes, **params)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert float((ours - request.images).abs().max()) > 0.05


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("restarts", [0, 2])
def test_pgd_is_arts(norm, restarts):
    request, _ = request_for("art-pgd", norm)
    with global_seed("pgd"):
        ours = PGD(steps=5, restarts=restarts).run(request)
    theirs = direct(
        ProjectedGradientDescentPyTorch,
        request,
        seed="pgd",
        classes=request.labels,
        norm=ORDER[norm],
        eps=EPS[norm],
        eps_step=EPS[norm] * 0.5,
        max_iter=5,
        num_random_init=restarts,
        verbose=False,
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_is_arts_where_images_fall_and_its_best_point_where_they_stand(norm):
    eps = EPS[norm] / 3
    request, _ = request_for("art-apgd", norm, eps=eps)
    with global_seed("apgd"):
        ours = APGD(steps=10, restarts=2).run(request)
    theirs = direct(
        evasion.AutoProjectedGradientDescent,
        request,
        seed="apgd",
        classes=request.labels,
        norm=ORDER[norm],
        eps=eps,
        eps_step=eps * 2,
        max_iter=10,
        nb_random_init=2,
        verbose=False,
    )
    with torch.no_grad():
        fallen = WORLD.classifier()(theirs).argmax(1) != request.labels
        losses = [
            nn.functional.cross_entropy(WORLD.classifier()(x), request.labels, reduction="none") for x in (ours, theirs)
        ]
    assert 0 < int(fallen.sum()) < len(fallen)
    assert torch.allclose(ours[fallen], theirs[fallen], atol=1e-5)
    assert bool((losses[0][~fallen] > 2 * losses[1][~fallen]).all()), losses


def test_deepfool_is_arts():
    request, _ = request_for("art-deepfool")
    ours = DeepFool().run(request)
    theirs = direct(
        evasion.DeepFool,
        request,
        classes=request.labels,
        max_iter=50,
        epsilon=0.02,
        nb_grads=10,
        batch_size=12,
        verbose=False,
    )
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_carlini_wagner_is_arts():
    request, _ = request_for("art-cw", rows=[0, 1, 2])
    ours = CarliniWagner(initial_weight=1.0, search_steps=3, steps=4).run(request)
    theirs = direct(
        evasion.CarliniL2Method,
        request,
        classes=request.labels,
        initial_const=1.0,
        binary_search_steps=3,
        max_iter=4,
        verbose=False,
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_is_arts(norm):
    request, _ = request_for("art-square", norm)
    with global_seed("square"):
        ours = Square(iterations=30).run(request)
    theirs = direct(
        evasion.SquareAttack,
        request,
        seed="square",
        classes=request.labels,
        norm=ORDER[norm],
        eps=EPS[norm],
        max_iter=30,
        verbose=False,
    )
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert accuracy(ours, request.labels) < 1


@pytest.mark.parametrize(
    ("ours", "kind", "norm", "params"),
    [
        (HopSkipJump(iterations=3), evasion.HopSkipJump, "l2", {"max_iter": 3, "norm": 2}),
        (HopSkipJump(iterations=3), evasion.HopSkipJump, "linf", {"max_iter": 3, "norm": np.inf}),
        (Boundary(iterations=20), evasion.BoundaryAttack, "l2", {"max_iter": 20, "targeted": False}),
    ],
)
def test_attacks_from_labels_are_arts_nearest_points(ours, kind, norm, params):
    name = "art-boundary" if kind is evasion.BoundaryAttack else "art-hop-skip-jump"
    for one in one_by_one(request_for(name, norm, rows=[0, 1])[0]):
        classifier = stock()
        attack = kind(classifier, verbose=False, **params)
        with quiet(), seeded(one.rng, kind):
            theirs = torch.from_numpy(attack.generate(one.images.numpy(), one_hot(one.labels)))
        asked = torch.from_numpy(np.concatenate(classifier.asked))
        with torch.no_grad():
            away = distance(asked, one.images.expand_as(asked), norm)
            away[WORLD.classifier()(asked).argmax(1) == one.labels] = torch.inf
        found = ours.run(one)
        assert torch.allclose(found[0], asked[away.argmin()], atol=1e-6)
        assert distance(found, one.images, norm) <= distance(theirs, one.images, norm) + 1e-6
        assert accuracy(found, one.labels) == 0


# The built-in attacks and closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_the_built_in_one(norm):
    ours, theirs = (attack.run(request_for("art-fgsm", norm)[0]) for attack in (FGSM(), fgsm.FGSM()))
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.7])
def test_pgd_breaks_what_the_built_in_one_breaks(norm, share):
    eps = EPS[norm] * share
    with global_seed("pgd"):
        ours = PGD(steps=20).run(request_for("art-pgd", norm, eps=eps)[0])
    theirs = pgd.PGD(steps=20).run(request_for("art-pgd", norm, eps=eps)[0])
    assert abs(accuracy(ours, WORLD.labels) - accuracy(theirs, WORLD.labels)) <= 1 / len(WORLD.images)


def test_deepfool_takes_the_shortest_way_on_a_linear_model():
    model, images = WORLD.linear(), WORLD.inner_images
    with torch.no_grad():
        logits = model(images)
    gap = model.weight[1] - model.weight[0]
    shortest = (logits[:, 1] - logits[:, 0]).abs().double() / gap.double().norm()
    request, _ = request_for("art-deepfool", model=model, labels=logits.argmax(1), images=images)
    for overshoot in (0.0, 0.05):
        found = DeepFool(overshoot=overshoot, classes=2).run(request)
        assert torch.allclose(distance(found, images, "l2"), shortest * (1 + overshoot), rtol=1e-3)


# Counts -----------------------------------------------------------------------------------------------------------


def test_passes_are_those_that_art_makes():
    images = len(WORLD.images)
    request, counter = request_for("art-fgsm", "linf")
    FGSM().run(request)
    assert counter.to_json() == {"classifier": {"forward": images, "backward": images}}
    request, counter = request_for("art-pgd", "linf")
    PGD(steps=7).run(request)  # and two forward passes for a success rate that ART puts into its log
    assert counter.to_json() == {"classifier": {"forward": (7 + 2) * images, "backward": 7 * images}}
    request, counter = request_for("art-deepfool")
    DeepFool(steps=1).run(request)  # predict, gradients, step, predict, gradients; a backward pass per class
    expected = {"forward": 4 * images, "backward": 2 * WORLD.classes * images}
    assert counter.to_json() == {"classifier": expected}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_spends_its_budget_on_the_images_that_stand(norm):
    eps = EPS[norm] / 2
    request, _ = request_for("art-square", norm, access="black-box", queries=100, eps=eps)
    with global_seed("square"):
        result = Square().run(request)
    with torch.no_grad():
        stand = WORLD.classifier()(result).argmax(1) == request.labels
    log = request.target.log
    assert 0 < int(stand.sum()) < len(stand)
    assert log.refused == 0
    # ART's first guess for L2 divides by zero on images of less than ten pixels: it is not asked about.
    assert bool((log.spent[stand] == (3 if norm == "linf" else 2) + 3 * 32).all())
    assert bool((log.spent[~stand] < 3 + 3 * 32).all())


@pytest.mark.parametrize(("name", "attack"), [("art-hop-skip-jump", HopSkipJump()), ("art-boundary", Boundary())])
@pytest.mark.parametrize("queries", [60, 400])
def test_a_spent_budget_ends_the_search_of_one_image_alone(name, attack, queries):
    request, _ = request_for(name, access="black-box", queries=queries)
    result = attempt(attack, request)
    log = request.target.log
    assert log.refused == 0
    assert int(log.spent.max()) <= queries
    assert accuracy(result, request.labels) <= 2 / len(result)  # a random image starts the others
    assert int(log.spent[-1]) > queries // 3


def test_schedule_of_hop_skip_jump_fits_the_budget():
    for queries in (7, 100, 1000, 5000, 50_000):
        iterations, first = HopSkipJump().schedule(queries)
        assert 1 <= first <= 100
        assert iterations == 1 or sum(first * (step + 1) ** 0.5 for step in range(iterations)) < queries
    assert HopSkipJump(iterations=2).schedule(5000)[0] == 2
    assert HopSkipJump().schedule(None) == (50, 100)


# What it may see and touch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needs", ["scores", "labels"])
def test_black_box_classifiers_have_no_gradients(needs):
    name = "art-square" if needs == "scores" else "art-boundary"
    request, counter = request_for(name)
    classifier = query_classifier(Questions(request, needs), request)
    assert not [each for each in dir(classifier) if "gradient" in each.lower() and "clip" not in each.lower()]
    answers = classifier.predict(request.images.numpy(), batch_size=12)
    if needs == "labels":
        assert np.array_equal(answers, one_hot(request.labels))
    assert counter.to_json()["classifier"]["backward"] == 0


def test_art_sees_neither_network_nor_weights():
    model = WORLD.classifier()
    request, _ = request_for("art-fgsm", "linf", model=model)
    classifier = GradientClassifier(request)
    weights = {id(weight) for weight in model.parameters()}
    assert weights
    assert not weights & {id(weight) for weight in classifier.model.parameters()}
    assert not any(isinstance(module, type(model)) for module in classifier.model.modules())


def test_images_that_are_misclassified_from_the_start_stay_as_they_are():
    labels = WORLD.labels.clone()
    labels[::2] = (labels[::2] + 1) % WORLD.classes
    attacks = {
        "art-deepfool": DeepFool(),
        "art-cw": CarliniWagner(search_steps=1, steps=1),
        "art-hop-skip-jump": HopSkipJump(iterations=1),
        "art-boundary": Boundary(iterations=1),
    }
    for name, attack in attacks.items():
        request, _ = request_for(name, labels=labels)
        assert torch.equal(attack.run(request)[::2], request.images[::2]), name


def test_numpy_is_given_back_after_an_error():
    kind = evasion.BoundaryAttack
    module, before = sys.modules[kind.__module__], np.random.get_state(legacy=False)
    draws = []

    def draw_and_fail():
        with seeded(WORLD.rng(indices=[3]), kind):
            draws.append(module.np.random.RandomState().uniform(size=3))
            draws.append(module.np.random.RandomState(5).uniform(size=3))
            assert np.random.RandomState is not module.np.random.RandomState  # nobody else is concerned
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            draw_and_fail()
    assert np.array_equal(draws[0], draws[2])
    assert np.array_equal(draws[1], np.random.RandomState(5).uniform(size=3))
    assert module.np is np
    assert repr(np.random.get_state(legacy=False)) == repr(before)


def test_nothing_is_printed_logged_or_warned(capfd, caplog):
    level = logging.getLogger("art").level
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("error")
        Square(iterations=5).run(request_for("art-square")[0])  # on 8 x 8 pixels, ART divides by zero
        PGD(steps=2, restarts=2).run(request_for("art-pgd")[0])
        HopSkipJump(iterations=1, starts=1).run(request_for("art-hop-skip-jump")[0])  # and complains of bad starts
        Boundary(iterations=2, starts=1).run(request_for("art-boundary")[0])
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("art")]
    assert logging.getLogger("art").level == level


# Rules of its own -------------------------------------------------------------------------------------------------


def test_points_that_are_not_finite_are_never_taken():
    request, counter = request_for("art-square")
    questions = Questions(request, "scores")
    points = request.images.numpy().copy()
    points[3] = np.nan
    answers = questions(points)
    assert np.isfinite(answers).all()
    assert answers[3].argmax() == int(request.labels[3])
    assert answers[3].max() > 1e29
    before = counter.total()
    assert (questions(np.full_like(points, np.inf)).argmax(1) == request.labels.numpy()).all()
    assert counter.total() == before


def test_a_search_that_asks_the_same_for_ever_ends():
    class Trap:
        """Misclassifies until asked about several points, and nothing after that: no step can succeed."""

        classes, sprung = WORLD.classes, False

        def labels(self, x):
            self.sprung = self.sprung or len(x) > 1
            clean = bool(torch.equal(x, request.images))
            return torch.zeros(len(x), dtype=torch.int64) + (0 if self.sprung or clean else 1)

        def select(self, rows):
            return self

    request, _ = request_for("art-hop-skip-jump", rows=[0])
    request = dataclasses.replace(request, target=Trap(), labels=torch.tensor([0]))
    found = HopSkipJump(starts=3).run(request)
    assert request.target.sprung
    assert not torch.equal(found, request.images)


def test_questions_stop_before_the_target_refuses():
    request, _ = request_for("art-boundary", rows=[0], access="black-box", queries=5)
    questions = QuestionsOfOne(request, "labels", patience=100)
    questions(request.images.expand(3, -1, -1, -1).numpy())
    from aubench_art.attacks.classifier import Enough

    with pytest.raises(Enough):
        questions(request.images.expand(3, -1, -1, -1).numpy())
    questions(request.images.expand(2, -1, -1, -1).numpy())
    assert request.target.log.spent.tolist() == [5]
    assert request.target.log.refused == 0


def test_a_square_that_does_not_fit_is_an_error():
    request, _ = request_for("art-square", "linf")
    with pytest.raises(CellError, match=r"initial_share 0\.99"):
        Square(initial_share=0.99).run(request)


@pytest.mark.parametrize(
    ("kind", "params", "key"),
    [
        (PGD, {"steps": 0}, "steps"),
        (PGD, {"restarts": -1}, "restarts"),
        (PGD, {"relative_step_size": 0.0}, "relative_step_size"),
        (APGD, {"restarts": 0}, "restarts"),
        (APGD, {"relative_step_size": float("inf")}, "relative_step_size"),
        (DeepFool, {"classes": 1}, "classes"),
        (DeepFool, {"overshoot": -0.1}, "overshoot"),
        (CarliniWagner, {"search_steps": 0}, "search_steps"),
        (CarliniWagner, {"learning_rate": 0.0}, "learning_rate"),
        (CarliniWagner, {"confidence": -1.0}, "confidence"),
        (Square, {"iterations": 0}, "iterations"),
        (Square, {"initial_share": 1.0}, "initial_share"),
        (HopSkipJump, {"most_evaluations": 99}, "most_evaluations"),
        (HopSkipJump, {"starts": 0}, "starts"),
        (Boundary, {"adaptation": 1.0}, "adaptation"),
        (Boundary, {"inward_step": 0.0}, "inward_step"),
    ],
)
def test_parameters_that_cannot_be_used_are_named(kind, params, key):
    with pytest.raises(ParameterError) as caught:
        kind(**params)
    assert caught.value.key == key


def test_listing_imports_nothing_heavy():
    code = (
        "import sys, aubench_art.manifest as manifest; names = [spec.name for spec in manifest.aubench_attacks()]; "
        "print(len(names), sorted({'torch', 'numpy', 'art'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == f"{len(SPECS)} []"
    assert all(name.startswith("art-") for name in SPECS)
