"""Whose points a batch holds that a wrapped library has cut down."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoshield_bench.contracts import AttackRequest, ThreatModel
from autoshield_bench.errors import CellError
from autoshield_bench.seeding import ImageRandom
from autoshield_bench.target_module import TargetModule, in_order

IMAGES = 12


class Colourful:
    """A target with a network in channels-last order, as the host places them."""

    classes = 4

    def __init__(self):
        torch.manual_seed(0)
        self.network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last).requires_grad_(False)

    def logits(self, x):
        return self.network(x).mean((2, 3))


class Rows:
    """A target that knows which images it is for."""

    classes = 3

    def __init__(self, rows):
        self.asked = rows

    def logits(self, x):
        return torch.zeros(len(x), 3)

    def select(self, rows):
        return Rows(self.asked[rows])


def module_for(images, *, norm="linf", eps=0.1, roams=False, target=None):
    request = AttackRequest(
        images=images,
        labels=torch.zeros(len(images), dtype=torch.int64),
        threat=ThreatModel(norm=norm, eps=eps),
        target=Rows(torch.arange(len(images))) if target is None else target,
        rng=ImageRandom(0, range(len(images))),
    )
    return TargetModule(request, roams=roams)


def images(seed=0, count=IMAGES):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def moved(clean, eps, seed):
    noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return (clean + eps * noise.sign()).clamp(0, 1)


@pytest.mark.parametrize("eps", [0.1, 0.5, 1.0])
def test_survivors_are_known_however_much_the_balls_overlap(eps):
    clean = images()
    module = module_for(clean, eps=eps)
    alive = torch.arange(IMAGES)
    for dropped in (3, 0, 9, 10, 5):
        alive = alive[alive != dropped]
        # A library asks first about the images themselves, or steps from them by degrees.
        for turn, size in enumerate((0.0, 0.3 * eps, eps)):
            assert module.rows(moved(clean[alive], size, dropped * 10 + turn)).tolist() == alive.tolist()


def test_equal_images_are_told_apart_by_their_place():
    clean = images()
    clean[6:] = clean[:6]
    module = module_for(clean)
    rows = torch.tensor([1, 2, 5, 7, 8, 11])
    assert module.rows(moved(clean[rows], 0.1, 1)).tolist() == rows.tolist()


def test_other_survivors_of_the_same_number_are_noticed():
    clean = images()
    module = module_for(clean)
    for rows in ([0, 4, 7], [1, 4, 7], [9, 10, 11], [0, 4, 7]):
        assert module.rows(moved(clean[rows], 0.1, rows[0])).tolist() == rows


def test_several_points_of_one_image_belong_to_the_nearest():
    clean = images()
    assert module_for(clean).rows(moved(clean[[5, 5, 2]], 0.1, 1)).tolist() == [5, 5, 2]
    many = torch.arange(IMAGES).repeat(2)
    assert module_for(clean).rows(moved(clean[many], 0.1, 1)).tolist() == many.tolist()


def test_survivors_may_walk_out_of_their_balls_where_the_adapter_says_so():
    clean = images()
    rows = torch.tensor([2, 3, 8])
    walker, stayer = module_for(clean, roams=True), module_for(clean)
    for module in (walker, stayer):
        assert module.rows(clean[rows]).tolist() == rows.tolist()
    assert walker.rows(1 - clean[rows]).tolist() == rows.tolist()
    with pytest.raises(CellError, match="lie in no image's ball"):
        stayer.rows(1 - clean[rows])
    with pytest.raises(CellError, match="lie in no image's ball"):
        walker.rows(1 - clean[:2])  # two that were never seen inside


def test_the_target_is_asked_for_the_survivors():
    clean = images()
    module = module_for(clean)
    asked = []
    select = module._target.select
    module._target.select = lambda rows: asked.append(rows.tolist()) or select(rows)
    module(moved(clean[[1, 6]], 0.1, 1))
    module(moved(clean, 0.1, 1))
    assert asked == [[1, 6]]


def test_a_point_that_requires_a_gradient_and_one_in_the_l2_ball():
    clean = images()
    step = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    step *= 0.5 / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    points = (clean + step)[[0, 11]].requires_grad_()
    assert module_for(clean, norm="l2", eps=0.5).rows(points).tolist() == [0, 11]


def test_gradients_of_colour_images_can_be_flattened_by_view():
    target = Colourful()
    x, y = (torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    (expected,) = torch.autograd.grad(target.logits(y).square().sum(), y)
    assert not expected.is_contiguous()
    (gradient,) = torch.autograd.grad(module_for(x, target=target)(x).square().sum(), x)
    assert gradient.is_contiguous()
    assert torch.equal(gradient.view(5, -1), expected.flatten(1))


@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.3, 0.8]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_cheapest_order_is_found(seed, rows, more, infinite, ties):
    draw = np.random.default_rng(seed)
    costs = draw.random((rows, rows + more))
    costs = np.round(costs * 3) if ties else costs
    costs[draw.random(costs.shape) < infinite] = np.inf
    cheapest = min(
        sum(costs[row, column] for row, column in enumerate(columns))
        for columns in itertools.combinations(range(rows + more), rows)
    )
    found = in_order(costs)
    if not np.isfinite(cheapest):
        assert found is None
    else:
        assert (np.diff(found) > 0).all()
        assert costs[np.arange(rows), found].sum() == pytest.approx(cheapest)


def test_more_points_than_columns_have_no_order():
    assert in_order(np.zeros((3, 2))) is None
