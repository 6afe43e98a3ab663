"""What the attacks may see and spend, counted by hand, and the rules of the adapter."""

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
from attack_requests import EPS, SPECS, WORLD, accuracy, one_hot, request_for
from autoshield_bench.errors import CellError, ParameterError
from autoshield_bench.seeding import global_seed

from aubench_art.attacks.black_box import Square
from aubench_art.attacks.classifier import GradientClassifier, Questions, QuestionsOfOne, query_classifier
from aubench_art.attacks.decision_based import Boundary, HopSkipJump, seeded
from aubench_art.attacks.gradient import APGD, FGSM, PGD
from aubench_art.attacks.minimum_norm import CarliniWagner, DeepFool

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
    # ART's first guess for L2 divides by zero on images of less than ten pixels: it is not asked about.
    assert bool((log.spent[stand] == (3 if norm == "linf" else 2) + 3 * 32).all())
    assert bool((log.spent[~stand] < 3 + 3 * 32).all())


@pytest.mark.parametrize(("name", "attack"), [("art-hop-skip-jump", HopSkipJump()), ("art-boundary", Boundary())])
@pytest.mark.parametrize("queries", [60, 400])
def test_a_spent_budget_ends_the_search_of_one_image_alone(name, attack, queries):
    request, _ = request_for(name, access="black-box", queries=queries)
    result = attack.run(request)  # and never asks for what would be refused
    log = request.target.log
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
