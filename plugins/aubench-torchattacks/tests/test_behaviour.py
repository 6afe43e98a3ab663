"""Access, budgets, seeds, silence, and what the library does not survive."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings

import pytest
import torch
import torchattacks
from autoshield_bench.balls import distance
from autoshield_bench.contracts import Defense
from autoshield_bench.engine.access import attempt
from autoshield_bench.engine.pipeline import FittedStage
from autoshield_bench.errors import AccessError, BudgetSpent, CellError, ParameterError
from autoshield_bench.seeding import global_seed
from autoshield_bench.target_module import TargetModule
from autoshield_bench.testing import World
from requests_for import SPECS, Asked, Flat, fooled

from aubench_torchattacks import library
from aubench_torchattacks.apgd import APGD, APGDT
from aubench_torchattacks.autoattack import AutoAttack
from aubench_torchattacks.cw import CW
from aubench_torchattacks.deepfool import DeepFool
from aubench_torchattacks.fab import FAB
from aubench_torchattacks.fgsm import FGSM
from aubench_torchattacks.pgd import EOTPGD, MIFGSM, PGD, Jitter
from aubench_torchattacks.square import Square

EVERY = {
    "fgsm": FGSM(),
    "pgd": PGD(steps=3),
    "eotpgd": EOTPGD(steps=3),
    "mifgsm": MIFGSM(steps=3),
    "jitter": Jitter(steps=3),
    "apgd": APGD(steps=4),
    "apgdt": APGDT(steps=4),
    "square": Square(queries=20),
    "autoattack": AutoAttack(steps=3, queries=10),
    "cw": CW(steps=5),
    "deepfool": DeepFool(steps=5),
    "fab": FAB(steps=3, restarts=2),
}


def on(name, **kwargs):
    return Asked(name, SPECS[name].norms[-1], **kwargs)


def test_every_attack_of_the_manifest_is_tried_here():
    assert set(EVERY) == set(SPECS)
    for name, spec in SPECS.items():
        module, _, factory = spec.factory.partition(":")
        assert type(EVERY[name]).__module__ == module
        assert type(EVERY[name]).__name__ == factory
        assert spec.libraries == ("torchattacks",)


# Access and budgets -------------------------------------------------------------------------------------------------


def test_square_sees_scores_and_never_a_gradient():
    asked = Asked("square", queries=50)
    with pytest.raises(AccessError):
        asked.target.loss_gradient(asked.images, lambda logits: logits.sum(1))
    seen = []
    forward = TargetModule.forward

    def watched(module, x):
        seen.append(forward(module, x))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TargetModule, "forward", watched)
        Square().run(asked.request)
    assert seen
    assert not any(logits.requires_grad for logits in seen)
    assert asked.passes["backward"] == 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("twins", [False, True], ids=["all-different", "each-twice"])
def test_queries_are_charged_to_the_images_that_the_library_asks_about(norm, twins):
    images = World().images
    if twins:
        images = torch.cat([images, images])
    asked = Asked("square", norm, {"linf": 0.05, "l2": 0.35}[norm], images=images, queries=10_000)
    counts = []
    run = torchattacks.Square.attack_single_run

    def counted(attack, x, y):
        returned = run(attack, x, y)
        counts.append(returned[0].long())
        return returned

    with pytest.MonkeyPatch.context() as patch, global_seed("queries"):
        patch.setattr(torchattacks.Square, "attack_single_run", counted)
        Square(queries=200).run(asked.request)
    (own,) = counts
    # Besides, the library asks about the clean image at the beginning and about its point at the end.
    assert asked.target.log.spent.tolist() == (own + 2).tolist()
    assert len(set(own.tolist())) > 3


@pytest.mark.parametrize(("granted", "restarts"), [(30, 1), (31, 2), (100, 3)])
def test_square_plans_with_the_budget_that_it_is_granted(granted, restarts):
    asked = Asked("square", eps=0.01, queries=granted)
    Square(restarts=restarts).run(asked.request)  # and never raises BudgetSpent
    assert granted - restarts < int(asked.target.log.spent.max()) <= granted


def test_square_lets_the_end_of_a_budget_pass():
    asked = Asked("square", eps=0.3, queries=2)
    with pytest.raises(BudgetSpent):
        Square().run(asked.request)
    again = Asked("square", eps=0.3, queries=2)
    best = attempt(Square(), again.request)
    assert int(again.target.log.spent.max()) == 2
    assert fooled(again.network, best, again.labels).any(), "the start of the search is good for some images"


def test_without_a_budget_the_parameter_counts():
    asked = Asked("square", eps=0.01)
    Square(queries=11).run(asked.request)
    assert int(asked.target.log.spent.max()) == 14


# Randomised defenses ------------------------------------------------------------------------------------------------


class Noise(Defense):
    def purify(self, x, rng):
        return (x + 0.1 * rng.normal(x.shape[1:], "noise")).clamp(0, 1)


@pytest.mark.parametrize("name", EVERY)
def test_a_randomised_defense_is_attacked_and_twice_alike(name):
    results = []
    for _ in range(2):
        stage = FittedStage(component="1:noise", defense=Noise(), differentiable=True, stochastic=True)
        asked = on(name, eps=0.2, stages=(stage,))
        with global_seed("twice"):
            results.append(EVERY[name].run(asked.request))
    assert torch.equal(*results)


def test_survivors_walk_out_of_the_ball_in_autoattack():
    asked = Asked("autoattack", eps=0.02)
    with global_seed("walk"):
        points = AutoAttack(steps=5, queries=10).run(asked.request)
    fell = int(fooled(asked.network, points, asked.labels).sum())
    assert 0 < fell < len(asked.images)


@pytest.mark.parametrize("name", EVERY)
def test_colour_images_and_a_network_in_channels_last_order(name):
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4)
    network = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
    images = torch.rand(5, 3, 8, 8)
    for norm in SPECS[name].norms:
        asked = Asked(name, norm, 0.05, model=network, images=images)
        with global_seed("colour"):
            assert EVERY[name].run(asked.request).shape == images.shape


# Seeds, silence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["apgd", "apgdt", "square", "autoattack"])
def test_no_seed_comes_from_the_clock_and_every_one_from_the_host(name, monkeypatch):
    def points(seed):
        asked = on(name, eps=0.05)
        with global_seed(seed):
            return EVERY[name].run(asked.request)

    first = points("a")
    monkeypatch.setattr(time, "time", lambda: 12345.0)
    assert torch.equal(first, points("a"))
    assert not torch.equal(first, points("b"))


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_printed_and_nothing_warned(name, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EVERY[name].run(on(name).request)
    assert capfd.readouterr() == ("", "")


# What the library does not survive ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("name", "attack", "classes", "message"),
    [
        ("apgd", APGD(loss="dlr"), 2, "the DLR loss of torchattacks.APGD needs at least 3 classes, and there are 2"),
        ("apgdt", APGDT(), 3, "the targeted DLR loss of torchattacks.APGDT needs at least 4 classes, and there are 3"),
        ("autoattack", AutoAttack(), 3, "of torchattacks.AutoAttack 'standard' needs at least 4 classes"),
        ("autoattack", AutoAttack(version="rand"), 2, "of torchattacks.AutoAttack 'rand' needs at least 3 classes"),
    ],
)
def test_too_few_classes_are_refused_in_one_line(name, norm, attack, classes, message):
    asked = Asked(name, norm, model=Flat(classes), labels=torch.zeros(12, dtype=torch.int64))
    with pytest.raises(CellError, match=message) as caught:
        attack.run(asked.request)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "attack", "classes"),
    [
        ("apgd", APGD(loss="dlr", steps=3), 3),
        ("apgdt", APGDT(steps=3), 4),
        ("autoattack", AutoAttack(steps=3, queries=5), 4),
        ("fab", FAB(steps=3, multi_targeted=True), 2),
    ],
)
def test_the_fewest_classes_that_are_enough(name, attack, classes):
    asked = Asked(name, "l2", model=Flat(classes), labels=torch.zeros(12, dtype=torch.int64))
    assert attack.run(asked.request).shape == asked.images.shape


@pytest.mark.parametrize(
    ("norm", "shape", "attack", "message"),
    [
        ("l2", (1, 4, 8), Square(), "cuts images into 5 rows, and these have 4"),
        ("linf", (1, 28, 8), Square(), "begins with squares of 13 pixels, which do not fit into images of 28x8"),
        ("l2", (3, 8, 8), Square(start_size=1.0), "begins with squares of 9 pixels, which do not fit"),
        ("l2", (1, 28, 8), AutoAttack(), "begins with squares of 13 pixels"),
    ],
)
def test_squares_that_do_not_fit_are_refused_in_one_line(norm, shape, attack, message):
    name = "square" if isinstance(attack, Square) else "autoattack"
    labels = torch.zeros(3, dtype=torch.int64)
    asked = Asked(name, norm, model=Flat(), images=torch.rand(3, *shape), labels=labels)
    with pytest.raises(CellError, match=message):
        attack.run(asked.request)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 9, 12), (1, 28, 28), (3, 32, 32)])
def test_squares_that_are_let_pass_fit(norm, shape):
    labels = torch.zeros(2, dtype=torch.int64)
    asked = Asked("square", norm, model=Flat(), images=torch.rand(2, *shape), labels=labels)
    attack = Square(queries=30, start_size=0.6)
    assert attack.run(asked.request).shape == (2, *shape)


@pytest.mark.parametrize("name", ["mifgsm", "deepfool"])
def test_an_image_whose_gradient_is_zero_stands_where_the_library_divides_by_it(name):
    asked = on(name, model=Flat(), labels=torch.zeros(12, dtype=torch.int64))
    assert torch.equal(EVERY[name].run(asked.request), asked.images)


def test_zero_eps_in_l2_is_zero_divided_by_zero_to_the_library():
    asked = Asked("pgd", "l2", 0.0)
    direct = torchattacks.PGDL2(World().classifier(), eps=0.0, alpha=0.0, random_start=False)
    assert direct(asked.images, asked.labels).isnan().any()
    assert torch.equal(PGD(random_start=False).run(asked.request), asked.images)


def test_confident_images_move_in_l2_although_their_gradients_are_tiny():
    model = World().classifier(20.0)
    asked = Asked("pgd", "l2", 0.35, model=model)
    direct = torchattacks.PGDL2(model, eps=0.35, alpha=0.0875, steps=10, random_start=False)
    ours = PGD(random_start=False).run(asked.request)
    assert (distance(ours, asked.images, "l2") > 0.3).all()
    assert float(distance(direct(asked.images, asked.labels), asked.images, "l2").min()) < 1e-6


@pytest.mark.parametrize(
    ("far", "message"),
    [
        (lambda x: (x + 0.12).clamp(0, 1), "torchattacks.FGSM returned 12 of 12 images outside linf eps 0.1"),
        (lambda x: x + 0.09, r"torchattacks.FGSM returned values from 0.09[0-9]* to 1.09[0-9]*, outside \[0, 1\]"),
    ],
)
def test_what_the_library_returns_is_verified_and_not_repaired(far, message, monkeypatch):
    monkeypatch.setattr(torchattacks.FGSM, "forward", lambda self, images, labels: far(images))
    with pytest.raises(CellError, match=message):
        FGSM().run(Asked("fgsm").request)


def test_rounding_of_the_library_is_taken_off():
    asked = Asked("fgsm")
    points = library.verified((asked.images + 0.1 + 5e-6).clamp(0, 1), asked.request, "a library")
    assert float((points.double() - asked.images.double()).abs().max()) <= 0.1


# Parameters and manifest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "parameters", "key"),
    [
        (PGD, {"steps": 0}, "steps"),
        (PGD, {"step_size": 0.1, "relative_step_size": 0.1}, "step_size"),
        (PGD, {"relative_step_size": -1.0}, "relative_step_size"),
        (EOTPGD, {"eot_iterations": 0}, "eot_iterations"),
        (MIFGSM, {"decay": 0.0}, "decay"),
        (Jitter, {"scale": 0.0}, "scale"),
        (Jitter, {"noise": -0.1}, "noise"),
        (APGD, {"loss": "hinge"}, "loss"),
        (APGD, {"restarts": 0}, "restarts"),
        (APGDT, {"rho": 1.5}, "rho"),
        (Square, {"queries": 0}, "queries"),
        (Square, {"start_size": 1.1}, "start_size"),
        (Square, {"loss": "dlr"}, "loss"),
        (AutoAttack, {"version": "fast"}, "version"),
        (AutoAttack, {"steps": 0}, "steps"),
        (CW, {"constants": ()}, "constants"),
        (CW, {"constants": (1.0, -1.0)}, "constants"),
        (CW, {"confidence": -1.0}, "confidence"),
        (CW, {"squeeze": 0.5}, "squeeze"),
        (CW, {"learning_rate": float("nan")}, "learning_rate"),
        (DeepFool, {"overshoot": -0.1}, "overshoot"),
        (DeepFool, {"stretches": (float("inf"),)}, "stretches"),
        (FAB, {"eta": 0.9}, "eta"),
        (FAB, {"start_radius": 0.0}, "start_radius"),
        (FAB, {"beta": 2.0}, "beta"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(factory, parameters, key):
    with pytest.raises(ParameterError) as caught:
        factory(**parameters)
    assert caught.value.key == key


def test_costs_are_known_before_a_run_where_the_library_has_a_fixed_number_of_steps():
    known = {name: attack.gradient_steps() for name, attack in EVERY.items()}
    assert known == {
        "fgsm": 1,
        "pgd": 3,
        "eotpgd": 6,
        "mifgsm": 3,
        "jitter": 3,
        "apgd": 5,
        "apgdt": None,
        "square": None,
        "autoattack": None,
        "cw": 15,
        "deepfool": None,
        "fab": None,
    }


def test_the_manifest_is_light():
    code = (
        "import sys; from aubench_torchattacks.manifest import aubench_attacks; list(aubench_attacks());"
        "print([name for name in ('torch', 'torchattacks', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_parameters_are_read_without_torch():
    factories = sorted({spec.factory for spec in SPECS.values()})
    code = (
        "import importlib, sys\n"
        f"for factory in {factories}:\n"
        "    module, _, name = factory.partition(':')\n"
        "    getattr(importlib.import_module(module), name)()\n"
        "print([name for name in ('torch', 'torchattacks') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
