"""ART called directly on the same network, the built-in attacks and closed forms: what the adapters are held to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.attacks import evasion
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from attack_requests import EPS, WORLD, accuracy, one_hot, request_for
from autoshield_bench.balls import distance
from autoshield_bench.builtin.attacks import fgsm, pgd
from autoshield_bench.seeding import global_seed
from torch import nn

from aubench_art.attacks.black_box import Square
from aubench_art.attacks.classifier import quiet
from aubench_art.attacks.decision_based import Boundary, HopSkipJump, seeded
from aubench_art.attacks.gradient import APGD, FGSM, PGD
from aubench_art.attacks.minimum_norm import CarliniWagner, DeepFool
from aubench_art.attacks.requests import one_by_one

ORDER = {"linf": np.inf, "l2": 2}


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


def direct(kind, request, *, seed=None, classes=None, **params):
    """Return what ART itself makes of the images."""
    attack = kind(stock(), **params)
    with quiet(), global_seed(seed or "direct"):
        return torch.from_numpy(attack.generate(request.images.numpy().copy(), one_hot(classes)))


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
