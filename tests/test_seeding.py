"""Randomness: what is drawn for an image depends on the seed, the image and the purpose, and on nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoshield_bench.seeding import ImageRandom, derive_seed, generator, global_seed

LAWS = ("uniform", "normal")


def draw(rng: ImageRandom, law: str, *purpose: str | int, shape: tuple[int, ...] = (1, 4, 4)) -> torch.Tensor:
    return getattr(rng, law)(shape, *purpose)


# Seeds derived from names -----------------------------------------------------------------------------------------


def test_derived_seeds_stay_the_same_from_release_to_release() -> None:
    # Every key in a cache and every number in a results directory rests on this value.
    assert derive_seed("attack", 0) == 7741728324910449862


def test_derived_seeds_depend_on_every_name_its_type_and_the_order() -> None:
    names = [("a", "b"), ("b", "a"), ("ab",), ("a", "b", 0), ("a", 1), ("a", "1"), (1, "a"), ()]
    seeds = [derive_seed(*each) for each in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_one_name_draw_alike_and_of_two_names_do_not() -> None:
    first, again, other = (torch.rand(8, generator=generator("fit", seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# Draws per image --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@settings(max_examples=40, deadline=None)
@given(
    indices=st.lists(st.integers(0, 2**31), min_size=1, max_size=8, unique=True),
    cut=st.integers(0, 8),
    shuffle=st.randoms(use_true_random=False),
)
def test_draws_do_not_depend_on_batch_split_or_order(
    law: str, indices: list[int], cut: int, shuffle: random.Random
) -> None:
    whole = draw(ImageRandom(5, indices), law, "noise", 3)
    parts = [draw(ImageRandom(5, part), law, "noise", 3) for part in (indices[:cut], indices[cut:])]
    assert torch.equal(torch.cat(parts), whole)
    order = list(range(len(indices)))
    shuffle.shuffle(order)
    assert torch.equal(draw(ImageRandom(5, [indices[row] for row in order]), law, "noise", 3), whole[order])


@pytest.mark.parametrize("law", LAWS)
def test_select_keeps_each_images_draws(law: str) -> None:
    rng = ImageRandom(1, [30, 10, 20, 0]).child("attack")
    whole = draw(rng, law, "start")
    rows, mask = torch.tensor([2, 0]), torch.tensor([False, True, False, True])
    assert torch.equal(draw(rng.select(rows), law, "start"), whole[rows])
    assert torch.equal(draw(rng.select(mask), law, "start"), whole[mask])
    assert torch.equal(draw(rng.select(mask).select(torch.tensor([1])), law, "start"), whole[3:])
    nobody = rng.select(torch.zeros(4, dtype=torch.bool))
    assert len(nobody) == 0
    assert draw(nobody, law, "start").shape == (0, 1, 4, 4)


@pytest.mark.parametrize("law", LAWS)
def test_draws_differ_between_images_seeds_purposes_and_children(law: str) -> None:
    rngs = [ImageRandom(0, [4, 5]), ImageRandom(1, [4, 5]), ImageRandom(0, [6, 7])]
    drawn = [draw(rng, law, "a") for rng in rngs]
    drawn += [draw(rngs[0], law, *purpose) for purpose in (("b",), ("a", 0), ("a", 1), ("a", "0"))]
    drawn += [draw(rngs[0].child("c"), law, "a"), draw(rngs[0].child("c", 1), law, "a")]
    images = torch.cat(drawn).flatten(1)
    assert len(torch.unique(images, dim=0)) == len(images)


@pytest.mark.parametrize("law", LAWS)
def test_drawing_twice_for_one_purpose_gives_the_same_values(law: str) -> None:
    rng = ImageRandom(0, [1, 2])
    first = draw(rng, law, "a")
    draw(rng, law, "b")
    torch.rand(7)
    assert torch.equal(draw(rng, law, "a"), first)


def test_uniform_draws_fill_their_range_evenly() -> None:
    drawn = ImageRandom(0, range(50)).uniform((40, 40), "u", low=-0.3, high=0.3)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (50, 40, 40)
    assert float(drawn.double().abs().max()) <= 0.3 + 1e-7
    counts = torch.histc(drawn, bins=12, min=-0.3, max=0.3) / drawn.numel()
    assert torch.allclose(counts, torch.full((12,), 1 / 12), atol=5 * (1 / 12 / drawn.numel()) ** 0.5)


def test_normal_draws_have_the_moments_of_a_standard_normal() -> None:
    drawn = ImageRandom(0, range(50)).normal((40, 40), "n").double()
    deviation = 5 / drawn.numel() ** 0.5
    assert abs(float(drawn.mean())) < deviation
    assert abs(float(drawn.var()) - 1) < deviation * 2**0.5
    assert abs(float((drawn.abs() < 1).double().mean()) - 0.6827) < deviation
    assert float(drawn.abs().max()) > 3.5


def test_neighbouring_images_are_uncorrelated() -> None:
    drawn = ImageRandom(0, range(20)).normal((5000,), "n").numpy()
    off_diagonal = np.corrcoef(drawn)[~np.eye(20, dtype=bool)]
    assert np.abs(off_diagonal).max() < 6 / 5000**0.5


# Global state -----------------------------------------------------------------------------------------------------


def global_draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.random()), random.random()


@pytest.mark.parametrize("fails", [False, True])
def test_global_seed_gives_back_the_state_of_torch_numpy_and_random(fails: bool) -> None:
    with global_seed("outer"):
        global_draws()
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()
        expected = global_draws()
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        try:
            with global_seed("inner"):
                global_draws()
                if fails:
                    raise RuntimeError("a plugin failed")
        except RuntimeError:
            pass
        assert global_draws() == expected


def test_global_seed_makes_all_three_generators_repeat_themselves() -> None:
    drawn = []
    for name in ("a", "a", "b"):
        with global_seed(name):
            drawn.append(global_draws())
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))
