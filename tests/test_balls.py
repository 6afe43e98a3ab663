"""The ball: no rounding ever buys an attack a little more room than the threat model gives it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoshield_bench.balls import Ball, distance
from autoshield_bench.contracts import NORMS, Norm, ThreatModel
from autoshield_bench.seeding import ImageRandom

AWKWARD = [0.0, 1e-8, 1e-3, 1 / 255, 8 / 255, 0.1, 0.2, 0.3, 1 / 3, 0.7, 1.0, 2.5]
RADII = st.one_of(st.sampled_from(AWKWARD), st.floats(0.0, 4.0, allow_subnormal=False))
SHAPES = st.sampled_from([(1, 1, 1), (1, 8, 8), (3, 5, 4)])
both_norms = pytest.mark.parametrize("norm", NORMS)


def ball(centre: torch.Tensor, norm: Norm, eps: float) -> Ball:
    return Ball(centre, ThreatModel(norm=norm, eps=eps))


def random_points(shape: tuple[int, ...], seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return centres, some values of them exactly 0 or 1 as in real images, and points around them."""
    source = torch.Generator().manual_seed(seed)
    centre = (torch.rand(shape, generator=source) * 1.4 - 0.2).clamp(0, 1)
    return centre, centre + spread * torch.randn(shape, generator=source)


def exact_distance(a: torch.Tensor, b: torch.Tensor, norm: Norm) -> list[float]:
    """Return the distances with Python's own correctly rounded sums, as an outside witness."""
    found = []
    for one, other in zip(a.flatten(1).tolist(), b.flatten(1).tolist(), strict=True):
        steps = [x - y for x, y in zip(one, other, strict=True)]
        found.append(max(map(abs, steps)) if norm == "linf" else math.sqrt(math.fsum(step * step for step in steps)))
    return found


def assert_inside(points: torch.Tensor, centre: torch.Tensor, norm: Norm, eps: float) -> None:
    assert points.shape == centre.shape
    assert points.dtype == torch.float32
    assert bool(((points >= 0) & (points <= 1)).all())  # NaN would fail here as well
    assert bool((distance(points, centre, norm) <= eps).all())


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Images this small are computed faster by one thread, and many times faster where others use the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@both_norms
def test_distance_agrees_with_correctly_rounded_sums(norm: Norm) -> None:
    centre, points = random_points((6, 3, 8, 8), seed=0)
    measured = distance(points, centre, norm)
    assert measured.dtype == torch.float64
    assert measured.tolist() == pytest.approx(exact_distance(points, centre, norm), rel=1e-14)


@both_norms
@settings(max_examples=150, deadline=None)
@given(eps=RADII, shape=SHAPES, seed=st.integers(0, 2**31), spread=st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 1e3, 1e25]))
def test_projection_lies_in_the_ball_exactly_and_in_the_unit_box(
    norm: Norm, eps: float, shape: tuple[int, ...], seed: int, spread: float
) -> None:
    centre, points = random_points((4, *shape), seed, spread)
    own = ball(centre, norm, eps)
    before = points.clone()
    projected = own.project(points)
    assert_inside(projected, centre, norm, eps)
    assert torch.equal(points, before), "project must not write into its argument"
    again = own.project(projected)
    assert_inside(again, centre, norm, eps)
    if norm == "linf":
        assert torch.equal(again, projected)
    else:
        assert torch.allclose(again, projected, rtol=0, atol=2e-7)


@settings(max_examples=60, deadline=None)
@given(eps=st.sampled_from([0.1, 8 / 255, 0.3, 1e-3]), seed=st.integers(0, 2**31))
def test_linf_projection_is_the_nearest_point_of_the_ball_and_box(eps: float, seed: int) -> None:
    centre, points = random_points((4, 1, 8, 8), seed)
    low, high = (centre.double() - eps).clamp(min=0), (centre.double() + eps).clamp(max=1)
    nearest = torch.minimum(torch.maximum(points.double(), low), high)
    assert float((ball(centre, "linf", eps).project(points).double() - nearest).abs().max()) < 1e-7


@settings(max_examples=60, deadline=None)
@given(eps=st.sampled_from([1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3]), seed=st.integers(0, 2**31))
def test_l2_projection_goes_straight_to_the_sphere_and_keeps_nearly_all_of_the_radius(eps: float, seed: int) -> None:
    # An attack that is thrown back, or worse thrown back to its start, flatters the defense.
    source = torch.Generator().manual_seed(seed)
    centre = 0.5 + 0.02 * torch.rand((4, 3, 8, 8), generator=source)
    direction = torch.randn(centre.shape, generator=source)
    direction /= direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    projected = ball(centre, "l2", eps).project(centre + 2 * eps * direction)
    expected = (centre + eps * direction).clamp(0, 1)
    assert bool((distance(projected, centre, "l2") >= 0.99 * eps).all())
    assert torch.allclose(projected, expected, rtol=0, atol=1e-6)


@both_norms
@pytest.mark.parametrize("eps", [0.1, 8 / 255, 0.3, 1.0])
def test_points_inside_stay_where_they_are(norm: Norm, eps: float) -> None:
    centre, _ = random_points((8, 1, 8, 8), seed=3)
    inside = (centre + eps / 20 * torch.sin(torch.arange(64.0)).view(1, 1, 8, 8)).clamp(0, 1)
    assert torch.allclose(ball(centre, norm, eps).project(inside), inside, rtol=0, atol=1.2e-7)


@both_norms
def test_radius_zero_gives_the_centre_back(norm: Norm) -> None:
    centre, points = random_points((5, 1, 8, 8), seed=1)
    own = ball(centre, norm, 0.0)
    assert torch.equal(own.project(points), centre)
    assert torch.equal(own.random_start(ImageRandom(0, range(5)), "start"), centre)


@both_norms
def test_projecting_the_centre_gives_it_back_without_a_division_by_zero(norm: Norm) -> None:
    centre, _ = random_points((5, 1, 8, 8), seed=1)
    for eps in AWKWARD:
        assert torch.equal(ball(centre, norm, eps).project(centre), centre)


@both_norms
@pytest.mark.parametrize("eps", AWKWARD)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_random_starts_lie_inside(norm: Norm, eps: float, shape: tuple[int, ...]) -> None:
    centre, _ = random_points((16, *shape), seed=2)
    own = ball(centre, norm, eps)
    starts = own.random_start(ImageRandom(0, range(16)), "start", 0)
    assert_inside(starts, centre, norm, eps)
    if eps >= 1e-3:
        assert bool((distance(starts, centre, norm) > 0).all())
        assert not torch.equal(starts, own.random_start(ImageRandom(0, range(16)), "start", 1))


def test_random_starts_fill_the_linf_ball_evenly() -> None:
    centre = torch.full((200, 1, 8, 8), 0.5)
    offsets = (ball(centre, "linf", 0.2).random_start(ImageRandom(0, range(200)), "start") - centre) / 0.2
    assert abs(float(offsets.mean())) < 0.03
    assert float(offsets.square().mean()) == pytest.approx(1 / 3, abs=0.02)


def test_random_starts_fill_the_l2_ball_evenly() -> None:
    # In d dimensions the share of the volume within radius r is r^d.
    centre = torch.full((2000, 1, 1, 3), 0.5)
    starts = ball(centre, "l2", 0.2).random_start(ImageRandom(0, range(2000)), "start")
    radii = distance(starts, centre, "l2") / 0.2
    assert float((radii <= 0.5).double().mean()) == pytest.approx(0.125, abs=0.04)
    assert float((radii <= 0.9).double().mean()) == pytest.approx(0.729, abs=0.05)
    assert float(((starts - centre).mean(0)).abs().max()) < 0.01


@both_norms
@pytest.mark.parametrize("eps", [0.1, 8 / 255, 0.3, 1.0, 40.0])
def test_large_images(norm: Norm, eps: float) -> None:
    centre, points = random_points((8, 3, 32, 32), seed=4)
    projected = ball(centre, norm, eps).project(points)
    assert_inside(projected, centre, norm, eps)
    assert max(exact_distance(projected, centre, norm)) <= eps * (1 + 1e-15)


@both_norms
def test_an_empty_batch_stays_empty(norm: Norm) -> None:
    centre = torch.empty(0, 1, 8, 8)
    own = ball(centre, norm, 0.3)
    assert own.project(centre).shape == (0, 1, 8, 8)
    assert own.random_start(ImageRandom(0, []), "start").shape == (0, 1, 8, 8)
    assert distance(centre, centre, norm).shape == (0,)


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf])
def test_a_threat_model_refuses_a_radius_that_is_none(eps: float) -> None:
    with pytest.raises(ValueError, match="eps"):
        ThreatModel(norm="linf", eps=eps)


def test_a_threat_model_refuses_an_unknown_norm() -> None:
    with pytest.raises(ValueError, match="l3"):
        ThreatModel(norm="l3", eps=0.1)  # type: ignore[arg-type]


@both_norms
def test_some_of_the_balls_are_the_balls_of_some(norm: Norm) -> None:
    centre, points = random_points((6, 1, 4, 4), 3)
    whole = ball(centre, norm, 0.3)
    for rows in (torch.tensor([4, 1]), torch.tensor([True, False, False, True, True, False]), torch.tensor([]).long()):
        chosen = whole.select(rows)
        assert torch.equal(chosen.project(points[rows]), whole.project(points)[rows])
        assert torch.equal(chosen.project(points[rows]), ball(centre[rows], norm, 0.3).project(points[rows]))
