"""Outside witnesses: foolbox and torchattacks run the same attack on the same model and find the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import foolbox
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench.builtin.attacks.fgsm import FGSM
from autoshield_bench.builtin.attacks.pgd import PGD
from autoshield_bench.builtin.models.networks import small_cnn
from autoshield_bench.contracts import Attack, AttackRequest, LossGradient, Norm, Recipe, ThreatModel
from autoshield_bench.engine.access import GradientTarget
from autoshield_bench.engine.pipeline import PassCounter, Pipeline, frozen
from autoshield_bench.engine.training import train_classifier
from autoshield_bench.seeding import ImageRandom, generator, global_seed

EPS = 0.12
RADII: dict[Norm, float] = {"linf": EPS, "l2": 0.7}
"""Both leave the classifier with roughly half of its accuracy: a comparison at 0 or at 1 would say little."""


@dataclass(frozen=True)
class Case:
    """A trained classifier and all 1,797 digits, so that 0.5 percentage points are 9 images."""

    network: nn.Module
    images: Tensor
    labels: Tensor

    def robust_accuracy(self, adversarial: Tensor) -> float:
        with torch.no_grad():
            predictions = self.network(adversarial).argmax(1)
        return float((predictions == self.labels).double().mean())


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    with global_seed("witnesses"):
        network = small_cnn(1, 8, 8, 10, features=8)
        recipe = Recipe(epochs=12, batch_size=64, learning_rate=5e-3)
        train_classifier(network, images, labels, recipe, generator("witnesses"), "cpu", lambda _done, _total: None)
    made = Case(frozen(network), images, labels)
    assert made.robust_accuracy(images) > 0.95
    yield made
    torch.set_num_threads(before)


class LastPoint:
    """A target that remembers the point that was looked at last: outside attacks return that one, ours the worst."""

    def __init__(self, inner: GradientTarget) -> None:
        self.inner = inner
        self.classes = inner.classes
        self.point = torch.empty(0)

    def logits(self, x: Tensor) -> Tensor:
        self.point = x.detach().clone()
        return self.inner.logits(x)

    def loss_gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> LossGradient:
        self.point = x.detach().clone()
        return self.inner.loss_gradient(x, loss)


def ours(case: Case, attack: Attack, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return what the attack returned and the last point that it looked at."""
    rng = ImageRandom(0, range(len(case.images)))
    target = LastPoint(GradientTarget(Pipeline(case.network, (), PassCounter()), rng, classes=10, eot=1))
    request = AttackRequest(
        images=case.images,
        labels=case.labels,
        threat=ThreatModel(norm=norm, eps=RADII[norm]),
        target=target,  # type: ignore[arg-type]
        rng=rng,
    )
    return attack.run(request), target.point


def foolbox_finds(case: Case, attack: Any, norm: Norm) -> Tensor:
    model = foolbox.PyTorchModel(case.network, bounds=(0, 1), device="cpu")
    criterion = foolbox.criteria.Misclassification(case.labels)
    _, clipped, _ = attack(model, case.images, criterion, epsilons=RADII[norm])
    return clipped.detach()


@pytest.fixture(scope="module")
def torchattacks() -> Any:
    # No part of the test extra, since it pins an old `requests`; a second witness where it is installed.
    return pytest.importorskip("torchattacks", exc_type=ImportError)


def where_gradients_are(case: Case) -> Tensor:
    point = case.images.clone().requires_grad_()
    functional.cross_entropy(case.network(point), case.labels, reduction="sum").backward()
    assert point.grad is not None
    # A mean over the images, as torchattacks takes it, makes gradients below this underflow to zero.
    return point.grad.abs() > 1e-30


def assert_same_images(case: Case, found: Tensor, witness: Tensor) -> None:
    mask = where_gradients_are(case)
    assert float(mask.double().mean()) > 0.9
    assert float((found - witness).abs()[mask].max()) <= 1e-6


# FGSM -------------------------------------------------------------------------------------------------------------


def test_fgsm_gives_foolbox_images(case: Case) -> None:
    found, _ = ours(case, FGSM(), "linf")
    witness = foolbox_finds(case, foolbox.attacks.LinfFastGradientAttack(), "linf")
    assert_same_images(case, found, witness)
    assert 0.2 < case.robust_accuracy(found) < 0.9
    assert abs(case.robust_accuracy(found) - case.robust_accuracy(witness)) <= 0.005


def test_fgsm_gives_torchattacks_images(case: Case, torchattacks: Any) -> None:
    found, _ = ours(case, FGSM(), "linf")
    witness = torchattacks.FGSM(case.network, eps=EPS)(case.images, case.labels)
    assert_same_images(case, found, witness)
    assert abs(case.robust_accuracy(found) - case.robust_accuracy(witness)) <= 0.005


def test_fast_gradient_in_l2_gives_foolbox_images(case: Case) -> None:
    found, _ = ours(case, FGSM(), "l2")
    witness = foolbox_finds(case, foolbox.attacks.L2FastGradientAttack(), "l2")
    # foolbox divides by a length of at least 1e-12, so it takes a shorter step where the gradient is shorter still.
    point = case.images.clone().requires_grad_()
    functional.cross_entropy(case.network(point), case.labels, reduction="sum").backward()
    assert point.grad is not None
    long_enough = point.grad.flatten(1).norm(dim=1) > 1e-9
    assert float(long_enough.double().mean()) > 0.9
    assert float((found - witness).abs()[long_enough].max()) <= 2e-6
    assert abs(case.robust_accuracy(found) - case.robust_accuracy(witness)) <= 0.005


# PGD --------------------------------------------------------------------------------------------------------------

SCHEDULES = pytest.mark.parametrize(("steps", "step_size"), [(10, 0.03), (40, 0.01)])


def pgd(steps: int, step_size: float) -> PGD:
    return PGD(steps=steps, step_size=step_size, random_start=False)


def assert_as_strong(case: Case, found: tuple[Tensor, Tensor], witness: Tensor) -> None:
    """The same last point to 0.5 percentage points; and the worst of all points is, if anything, a stronger one."""
    best, last = (case.robust_accuracy(points) for points in found)
    outside = case.robust_accuracy(witness)
    assert 0.05 < outside < 0.9
    assert abs(last - outside) <= 0.005
    assert outside - 0.02 <= best <= outside + 0.005
    assert best <= last


@SCHEDULES
def test_pgd_is_as_strong_as_foolbox(case: Case, steps: int, step_size: float) -> None:
    attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=step_size, random_start=False)
    found = ours(case, pgd(steps, step_size), "linf")
    witness = foolbox_finds(case, attack, "linf")
    assert_as_strong(case, found, witness)
    # The very same points, too: only where a gradient's sign hangs on its last bit may a value differ.
    assert float(((found[1] - witness).abs() <= 1e-5).double().mean()) >= 0.99


@SCHEDULES
def test_pgd_is_as_strong_as_torchattacks(case: Case, torchattacks: Any, steps: int, step_size: float) -> None:
    attack = torchattacks.PGD(case.network, eps=EPS, alpha=step_size, steps=steps, random_start=False)
    assert_as_strong(case, ours(case, pgd(steps, step_size), "linf"), attack(case.images, case.labels))


@pytest.mark.parametrize(("steps", "step_size"), [(10, 0.2), (40, 0.05)])
def test_pgd_in_l2_is_as_strong_as_foolbox(case: Case, steps: int, step_size: float) -> None:
    attack = foolbox.attacks.L2PGD(steps=steps, abs_stepsize=step_size, random_start=False)
    found = ours(case, pgd(steps, step_size), "l2")
    witness = foolbox_finds(case, attack, "l2")
    assert_as_strong(case, found, witness)
    assert float(((found[1] - witness).abs() <= 1e-3).double().mean()) >= 0.95
