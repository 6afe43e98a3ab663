"""The adapters against the library called directly, against the built-in attacks, and against closed forms."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from autoshield_bench.balls import distance
from autoshield_bench.builtin.attacks.fgsm import FGSM as BuiltInFGSM
from autoshield_bench.builtin.attacks.pgd import PGD as BuiltInPGD
from autoshield_bench.margins import margins
from autoshield_bench.seeding import global_seed
from autoshield_bench.testing import World
from requests_for import Asked, Counting, LogSoftmax, accuracy, fooled

from aubench_torchattacks.apgd import APGD, APGDT
from aubench_torchattacks.autoattack import AutoAttack
from aubench_torchattacks.cw import CW
from aubench_torchattacks.deepfool import DeepFool
from aubench_torchattacks.fab import FAB
from aubench_torchattacks.fgsm import FGSM
from aubench_torchattacks.library import drawn_seed
from aubench_torchattacks.pgd import EOTPGD, MIFGSM, PGD, SMALLEST_NORM, Jitter
from aubench_torchattacks.square import Square

LINF, L2 = 0.05, 0.35
"""Radii at which some images of the small world fall and some stand."""
ALPHA = LINF * 2.5 / 10


def five_steps(attack):
    """The library's AutoAttack takes its steps from its parts."""
    for part in attack._autoattack.attacks:
        if isinstance(part, torchattacks.Square):
            part.n_queries = 20
        else:
            part.steps = 5
    return attack


FIXED = {
    "fgsm": ("fgsm", "linf", FGSM(), lambda net: torchattacks.FGSM(net, eps=LINF)),
    "pgd": ("pgd", "linf", PGD(), lambda net: torchattacks.PGD(net, eps=LINF, alpha=ALPHA, steps=10)),
    "pgd-from-the-image": (
        "pgd",
        "linf",
        PGD(step_size=0.03, steps=4, random_start=False),
        lambda net: torchattacks.PGD(net, eps=LINF, alpha=0.03, steps=4, random_start=False),
    ),
    "pgd-l2": (
        "pgd",
        "l2",
        PGD(relative_step_size=0.5),
        lambda net: torchattacks.PGDL2(net, eps=L2, alpha=0.5 * L2, steps=10, eps_for_division=SMALLEST_NORM),
    ),
    "eotpgd": (
        "eotpgd",
        "linf",
        EOTPGD(eot_iterations=3),
        lambda net: torchattacks.EOTPGD(net, eps=LINF, alpha=ALPHA, steps=10, eot_iter=3),
    ),
    "mifgsm": (
        "mifgsm",
        "linf",
        MIFGSM(decay=0.5),
        lambda net: torchattacks.MIFGSM(net, eps=LINF, alpha=ALPHA, steps=10, decay=0.5),
    ),
    "jitter": (
        "jitter",
        "linf",
        Jitter(scale=5.0, noise=0.2),
        lambda net: torchattacks.Jitter(net, eps=LINF, alpha=ALPHA, steps=10, scale=5.0, std=0.2),
    ),
}

ON_STANDING = {
    "apgd": (
        "apgd",
        "linf",
        APGD(steps=10),
        lambda net, seed: torchattacks.APGD(net, eps=LINF, steps=10, seed=seed),
    ),
    "apgd-l2-dlr-restarts": (
        "apgd",
        "l2",
        APGD(steps=7, restarts=3, loss="dlr", eot_iterations=2, rho=0.6),
        lambda net, seed: torchattacks.APGD(
            net, norm="L2", eps=L2, steps=7, n_restarts=3, loss="dlr", eot_iter=2, rho=0.6, seed=seed
        ),
    ),
    "apgdt": (
        "apgdt",
        "linf",
        APGDT(steps=10),
        lambda net, seed: torchattacks.APGDT(net, eps=LINF, steps=10, n_classes=4, seed=seed),
    ),
    "apgdt-l2-restarts": (
        "apgdt",
        "l2",
        APGDT(steps=5, restarts=2),
        lambda net, seed: torchattacks.APGDT(net, norm="L2", eps=L2, steps=5, n_restarts=2, n_classes=4, seed=seed),
    ),
    "square": (
        "square",
        "linf",
        Square(queries=60),
        lambda net, seed: torchattacks.Square(net, eps=LINF, n_queries=60, seed=seed),
    ),
    "square-l2-ce-restarts": (
        "square",
        "l2",
        Square(queries=40, restarts=2, loss="ce", start_size=0.5),
        lambda net, seed: torchattacks.Square(
            net, norm="L2", eps=L2, n_queries=40, n_restarts=2, loss="ce", p_init=0.5, seed=seed
        ),
    ),
    "autoattack": (
        "autoattack",
        "linf",
        AutoAttack(steps=5, queries=20),
        lambda net, seed: five_steps(torchattacks.AutoAttack(net, eps=LINF, n_classes=4, seed=seed)),
    ),
    "autoattack-l2": (
        "autoattack",
        "l2",
        AutoAttack(steps=5, queries=20),
        lambda net, seed: five_steps(torchattacks.AutoAttack(net, norm="L2", eps=L2, n_classes=4, seed=seed)),
    ),
    "autoattack-plus": (
        "autoattack",
        "linf",
        AutoAttack(version="plus", steps=5, queries=20),
        lambda net, seed: five_steps(torchattacks.AutoAttack(net, eps=LINF, version="plus", n_classes=4, seed=seed)),
    ),
    "autoattack-rand": (
        "autoattack",
        "linf",
        AutoAttack(version="rand", steps=5),
        lambda net, seed: five_steps(torchattacks.AutoAttack(net, eps=LINF, version="rand", n_classes=4, seed=seed)),
    ),
}


def eps_of(norm):
    return LINF if norm == "linf" else L2


# The library called directly ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FIXED)
def test_points_and_passes_are_those_of_the_library(case):
    name, norm, attack, library = FIXED[case]
    asked = Asked(name, norm, eps_of(norm))
    network = Counting(World().classifier())
    with global_seed("witness"):
        ours = attack.run(asked.request)
    with global_seed("witness"):
        theirs = library(network)(asked.images, asked.labels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert asked.passes == network.passes
    assert network.backward_passes == len(asked.images) * attack.gradient_steps()


@pytest.mark.parametrize("case", FIXED)
def test_targets_are_those_of_the_library(case):
    name, norm, attack, library = FIXED[case]
    targets = (Asked(name, norm).labels + 1) % 4
    asked = Asked(name, norm, eps_of(norm), targets=targets)
    with global_seed("witness"):
        ours = attack.run(asked.request)
    with global_seed("witness"):
        direct = library(World().classifier())
        direct.set_mode_targeted_by_function(lambda _images, _labels: targets, quiet=True)
        theirs = direct(asked.images, asked.labels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ON_STANDING)
def test_fooled_images_and_passes_are_those_of_the_library(case):
    name, norm, attack, library = ON_STANDING[case]
    asked = Asked(name, norm, eps_of(norm))
    network = Counting(World().classifier())
    with global_seed("witness"):
        ours = attack.run(asked.request)
    with global_seed("witness"):
        theirs = library(network, drawn_seed())(asked.images, asked.labels)
    fell = (theirs != asked.images).flatten(1).any(1)
    assert 0 < int(fell.sum()) < len(fell)
    torch.testing.assert_close(ours[fell], theirs[fell], rtol=0, atol=1e-6)
    assert asked.passes == network.passes
    assert torch.equal(fooled(asked.network, ours, asked.labels), fell)


@pytest.mark.parametrize("case", ON_STANDING)
def test_for_an_image_that_stands_the_point_of_highest_loss_comes_back(case):
    name, norm, attack, _library = ON_STANDING[case]
    asked = Asked(name, norm, eps_of(norm))
    with global_seed("witness"):
        ours = attack.run(asked.request)
    stands = ~fooled(asked.network, ours, asked.labels)
    assert (ours != asked.images).flatten(1).any(1).all()
    with torch.no_grad():
        before, after = (margins(asked.network(x).double(), asked.labels)[stands] for x in (asked.images, ours))
    assert (after > before).all()


def test_square_drives_images_to_its_targets_as_the_library_does():
    targets = (Asked("square").labels + 1) % 4
    asked = Asked("square", targets=targets, eps=0.3, queries=500)
    with global_seed("witness"):
        ours = Square().run(asked.request)
    with global_seed("witness"):
        direct = torchattacks.Square(World().classifier(), eps=0.3, n_queries=497, seed=drawn_seed())
        direct.set_mode_targeted_by_function(lambda _images, _labels: targets, quiet=True)
        theirs = direct(asked.images, asked.labels)
    hit = ~fooled(asked.network, ours, targets)
    assert hit.any()
    torch.testing.assert_close(ours[hit], theirs[hit], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "library_norm"), [("linf", "Linf"), ("l2", "L2")])
def test_fab_returns_the_librarys_points_wherever_they_lie(norm, library_norm):
    asked = Asked("fab", norm)
    ours = FAB().run(asked.request)
    network = Counting(World().classifier())
    theirs = torchattacks.FAB(network, norm=library_norm, eps=100.0, n_classes=4)(asked.images, asked.labels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert fooled(asked.network, ours, asked.labels).all()
    # The library asks once more about the points that it found.
    count = len(asked.images)
    assert asked.passes == {**network.passes, "forward": network.forward_passes - count}


def test_further_restarts_and_classes_of_fab_bring_nearer_points_and_no_farther_ones():
    def lengths(**parameters):
        asked = Asked("fab", "l2")
        with global_seed("witness"):
            return distance(FAB(steps=2, start_radius=0.3, **parameters).run(asked.request), asked.images, "l2")

    once, often, classes = lengths(), lengths(restarts=10), lengths(multi_targeted=True, restarts=2)
    assert (often <= once).all()
    assert (often < once).any()
    assert (classes <= lengths(multi_targeted=True)).all()
    assert (classes < once).any()


def test_cw_is_the_librarys_on_images_off_the_border():
    images = World().inner_images
    asked = Asked("cw", "l2", images=images)
    attack = CW(constants=(2.0,), steps=60, learning_rate=0.05, confidence=0.1)

    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = World().classifier()
            self.device_of = torch.nn.Parameter(torch.zeros(0), requires_grad=False)

        def forward(self, x):
            logits = self.network(x)
            return logits - logits.detach().amin(1, keepdim=True)

    theirs = torchattacks.CW(Shifted().eval(), c=2.0, kappa=0.1, steps=60, lr=0.05)(images, asked.labels)
    assert fooled(asked.network, theirs, asked.labels).any()
    torch.testing.assert_close(attack.run(asked.request), theirs, rtol=0, atol=1e-6)


def test_deepfool_is_the_librarys_where_that_crosses_the_boundary():
    asked = Asked("deepfool", "l2")
    theirs = torchattacks.DeepFool(World().classifier())(asked.images, asked.labels)
    across = fooled(asked.network, theirs, asked.labels)
    assert 0 < int(across.sum()) < len(across), "the library stops short of the boundary for some"
    ours = DeepFool().run(asked.request)
    torch.testing.assert_close(ours[across], theirs[across], rtol=0, atol=1e-6)
    assert fooled(asked.network, ours, asked.labels).all()
    stretched = distance(ours, asked.images, "l2") / distance(theirs, asked.images, "l2")
    assert (stretched <= 1.02 + 1e-6).all()
    alone = DeepFool(stretches=()).run(Asked("deepfool", "l2").request)
    torch.testing.assert_close(alone[across], theirs[across], rtol=0, atol=1e-6)
    assert torch.equal(alone[~across], asked.images[~across])


def test_deepfool_pays_for_one_gradient_per_class_and_step():
    model, images = World().linear(), World().inner_images
    asked = Asked("deepfool", "l2", model=model, images=images)
    DeepFool().run(asked.request)
    # A linear model takes one step of two gradients, a look at where it led, and one at the end by the adapter.
    assert asked.passes == {"forward": 3 * len(images), "backward": 2 * len(images)}


# What the built-in attacks say --------------------------------------------------------------------------------------


def test_fgsm_gives_the_images_of_the_built_in_one():
    asked = Asked("fgsm")
    ours = FGSM().run(asked.request)
    assert fooled(asked.network, ours, asked.labels).any()
    torch.testing.assert_close(ours, BuiltInFGSM().run(Asked("fgsm").request), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [PGD(steps=40), APGD(steps=40)], ids=["pgd", "apgd"])
def test_pgd_is_as_strong_as_the_built_in_one(norm, attack):
    images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    name = type(attack).__name__.lower()
    asked = Asked(name, norm, 0.4 * eps_of(norm), images=images)
    with global_seed("witness"):
        ours = attack.run(asked.request)
    theirs = BuiltInPGD(steps=40).run(Asked(name, norm, 0.4 * eps_of(norm), images=images).request)
    kept = [accuracy(asked.network, points, asked.labels) for points in (ours, theirs)]
    assert 0.05 < kept[1] < 0.95
    assert abs(kept[0] - kept[1]) <= 0.03


def test_autoattack_leaves_no_more_than_pgd_does():
    images = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    asked = Asked("autoattack", eps=0.02, images=images)
    with global_seed("witness"):
        ours = AutoAttack(steps=10, queries=20).run(asked.request)
    theirs = BuiltInPGD(steps=40).run(Asked("pgd", eps=0.02, images=images).request)
    assert accuracy(asked.network, ours, asked.labels) <= accuracy(asked.network, theirs, asked.labels)


# Closed forms and known defects of the library ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "norm", "attack", "ratio"),
    [
        ("deepfool", "l2", DeepFool(), 1.03),
        ("cw", "l2", CW(), 1.05),
        ("fab", "l2", FAB(), 1.02),
        ("fab", "linf", FAB(), 1.02),
    ],
)
def test_distances_on_a_linear_model_are_those_of_the_closed_form(name, norm, attack, ratio):
    model, images = World().linear(), World().inner_images
    asked = Asked(name, norm, model=model, images=images)
    found = attack.run(asked.request)
    assert fooled(model, found, asked.labels).all()
    gap = (model.weight[1] - model.weight[0]).detach()
    dual = gap.abs().sum() if norm == "linf" else gap.norm()
    with torch.no_grad():
        shortest = -margins(model(images).double(), asked.labels) / dual
    lengths = distance(found, images, norm)
    assert (lengths >= shortest - 1e-6).all()
    assert float((lengths / shortest).median()) <= ratio


def test_cw_moves_pixels_that_are_black_or_white():
    images = World().images.round()
    found = CW(steps=200, learning_rate=0.05).run(Asked("cw", "l2", images=images).request)
    asked = Asked("cw", "l2", images=images)
    assert fooled(asked.network, found, asked.labels).all()
    frozen = CW(steps=200, learning_rate=0.05, squeeze=0.0).run(asked.request)
    assert torch.equal(frozen, images)


def test_cw_does_not_mind_logits_that_are_all_negative():
    model = LogSoftmax(World().classifier())
    images = World().inner_images
    asked = Asked("cw", "l2", model=model, images=images)
    assert fooled(model, CW(steps=100).run(asked.request), asked.labels).all()
    direct = torchattacks.CW(Counting(model), c=10, steps=100, lr=0.05)(images, asked.labels)
    assert not fooled(model, direct, asked.labels).any()


def test_constants_of_cw_bring_nearer_points():
    lengths = []
    for constants in ((10.0,), (0.1, 1.0, 10.0)):
        asked = Asked("cw", "l2")
        found = CW(constants=constants, steps=60, learning_rate=0.05).run(asked.request)
        assert fooled(asked.network, found, asked.labels).all()
        lengths.append(distance(found, asked.images, "l2"))
    assert (lengths[1] <= lengths[0]).all()
    assert float(lengths[1].mean()) < 0.9 * float(lengths[0].mean())


def test_cw_drives_images_to_its_targets():
    targets = (Asked("cw", "l2").labels + 2) % 4
    asked = Asked("cw", "l2", targets=targets)
    found = CW(learning_rate=0.05).run(asked.request)
    assert not fooled(asked.network, found, targets).any()
