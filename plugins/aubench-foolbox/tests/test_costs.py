"""What attacks ask of their target: counted by hand, and as much as foolbox itself asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autoshield_bench.engine.access import QueryTarget
from autoshield_bench.errors import AccessError, BudgetSpent
from autoshield_bench.seeding import global_seed
from cases import Case, Counting, attack, foolbox, linear_case, replaced, run
from test_witnesses import FIXED, NEAREST, RADII, names
from torch import Tensor

IMAGES = 20


@pytest.mark.parametrize(
    ("name", "params", "forwards", "backwards"),
    [
        ("foolbox-fgsm", {}, 1, 1),
        ("foolbox-pgd", {"steps": 7}, 7, 7),
        ("foolbox-mim", {"steps": 3}, 3, 3),
    ],
)
def test_a_descent_costs_its_gradient_steps_and_nothing_else(
    digits: Case, name: str, params: dict[str, Any], forwards: int, backwards: int
) -> None:
    request, counter = digits.part(slice(IMAGES)).request(name, "linf", 0.1)
    run(name, request, **params)
    assert counter.to_json() == {"classifier": {"forward": forwards * IMAGES, "backward": backwards * IMAGES}}
    assert attack(name, **params).gradient_steps() == backwards


def test_deepfool_on_a_linear_model_of_two_classes_costs_two_gradients() -> None:
    """Logits for the order of the classes; a gradient and a step; a gradient that shows that the step was enough."""
    case = linear_case()
    request, counter = case.request("foolbox-deepfool", "l2")
    assert bool(case.wrong(run("foolbox-deepfool", request)).all())
    images = len(case.images)
    assert counter.to_json() == {"classifier": {"forward": 3 * images, "backward": 2 * images}}


def test_deepfool_asks_once_more_where_its_steps_run_out() -> None:
    case = linear_case()
    request, counter = case.request("foolbox-deepfool", "l2")
    assert bool(case.wrong(run("foolbox-deepfool", request, steps=1)).all()), "the last step is not thrown away"
    images = len(case.images)
    assert counter.to_json() == {"classifier": {"forward": 3 * images, "backward": images}}


@pytest.mark.parametrize(("name", "norm", "params", "outside"), FIXED + NEAREST, ids=names(FIXED + NEAREST))
def test_the_passes_counted_are_those_that_foolbox_makes(
    digits: Case, name: str, norm: Any, params: dict[str, Any], outside: Any
) -> None:
    case, eps = digits.part(slice(IMAGES)), RADII[norm] if not hasattr(outside, "_get_loss_fn") else None
    minimum_norm = isinstance(outside, foolbox.attacks.base.MinimizationAttack)
    request, counter = case.request(name, norm, None if minimum_norm else eps)
    run(name, request, **params)
    counting = Counting(case.network)
    model = foolbox.PyTorchModel(counting, bounds=(0, 1), device="cpu")
    with global_seed("test"):
        outside.run(model, case.images, case.labels, **({} if minimum_norm else {"epsilon": eps}))
    (counted,) = counter.to_json().values()
    once_more = IMAGES if params == {"steps": 2, "candidates": 4} else 0  # DeepFool's last step, which foolbox leaves
    assert counted == {"forward": counting.forwards + once_more, "backward": counting.backwards}


class LabelsOnly:
    """A target that can do nothing but tell labels; it counts per image."""

    def __init__(self, case: Case, rows: Tensor | None = None, spent: Tensor | None = None) -> None:
        self._case = case
        self._rows = torch.arange(len(case.images)) if rows is None else rows
        self.spent = torch.zeros(len(case.images), dtype=torch.int64) if spent is None else spent
        self.classes = 10

    def labels(self, x: Tensor) -> Tensor:
        assert len(x) == len(self._rows)
        assert not x.requires_grad
        self.spent += torch.bincount(self._rows, minlength=len(self.spent))
        with torch.no_grad():
            return self._case.network(x).argmax(1)

    def select(self, rows: Tensor) -> LabelsOnly:
        return LabelsOnly(self._case, self._rows[rows], self.spent)

    def logits(self, x: Tensor) -> Tensor:
        raise AccessError("asked for logits")

    loss_gradient = logits


@pytest.mark.parametrize(
    ("name", "norm"), [("foolbox-boundary", "l2"), ("foolbox-hop-skip-jump", "l2"), ("foolbox-hop-skip-jump", "linf")]
)
def test_an_attack_on_labels_sees_labels_alone_and_the_host_counts_them_all(digits: Case, name: str, norm: Any) -> None:
    case = digits.part(slice(10))
    request, counter = case.request(name, norm, queries=300)
    alone = LabelsOnly(case)
    found = run(name, replaced(request, target=alone))
    assert torch.equal(found, run(name, request))
    assert isinstance(request.target, QueryTarget)
    assert torch.equal(request.target.log.spent, alone.spent)
    assert counter.to_json() == {"classifier": {"forward": int(alone.spent.sum()), "backward": 0}}


@pytest.mark.parametrize(
    ("name", "norm", "least"),
    [("foolbox-boundary", "l2", 0.9), ("foolbox-hop-skip-jump", "l2", 0.8), ("foolbox-hop-skip-jump", "linf", 0.8)],
)
@pytest.mark.parametrize("queries", [100, 1000])
def test_steps_are_planned_so_that_the_budget_is_used_and_never_cuts_the_attack_off(
    digits: Case, name: str, norm: Any, least: float, queries: int
) -> None:
    request, _ = digits.part(slice(IMAGES)).request(name, norm, queries=queries)
    run(name, request)  # raises BudgetSpent where it is cut off
    assert isinstance(request.target, QueryTarget)
    spent = request.target.log.spent
    assert int(spent.max()) <= queries
    assert float(spent.double().median()) >= least * queries


@pytest.mark.parametrize("name", ["foolbox-boundary", "foolbox-hop-skip-jump"])
def test_where_the_budget_does_not_hold_the_start_it_passes_through(digits: Case, name: str) -> None:
    request, _ = digits.part(slice(IMAGES)).request(name, "l2", queries=3)
    with pytest.raises(BudgetSpent):
        run(name, request)
    assert isinstance(request.target, QueryTarget)
    assert request.target.log.asked_again == 0


@pytest.mark.parametrize(("name", "steps"), [("foolbox-boundary", 30), ("foolbox-hop-skip-jump", 2)])
def test_a_given_number_of_steps_is_the_largest_one(digits: Case, name: str, steps: int) -> None:
    few, _ = digits.part(slice(5)).request(name, "l2", queries=5000)
    run(name, few, steps=steps)
    assert isinstance(few.target, QueryTarget)
    assert int(few.target.log.spent.max()) < 500
