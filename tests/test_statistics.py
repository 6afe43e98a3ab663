"""Intervals against outside witnesses."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from autoshield_bench.statistics import paired_difference, wilson, wilson_at


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 40), (7, 10), (912, 1000), (10_000, 10_000), (1, 10_000)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_wilson_equals_scipy(successes, n, confidence):
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence=confidence) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5)])
def test_counts_that_do_not_fit_are_refused(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_a_mean_over_seeds_has_the_interval_of_its_images_alone():
    """Three seeds on the same 1,000 images are still 1,000 images."""
    assert wilson_at(0.9, 1000) == pytest.approx(wilson(900, 1000))


def test_paired_difference_by_hand():
    # Agresti and Min 2005 with b = 20, c = 10, n = 100: centre 10 / 102, half z / 102 * sqrt(31 - 100 / 102).
    difference, low, high = paired_difference(20, 10, 100)
    half = 1.959963984540054 / 102 * math.sqrt(31 - 100 / 102)
    assert difference == 0.1
    assert (low, high) == pytest.approx((10 / 102 - half, 10 / 102 + half))


def test_paired_difference_turns_with_its_arguments():
    first, second = paired_difference(3, 11, 50), paired_difference(11, 3, 50)
    assert first == pytest.approx((-second[0], -second[2], -second[1]))


def test_paired_difference_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(5)
    shares, n = (0.12, 0.05, 0.83), 300
    draws = generator.multinomial(n, shares, size=2000)
    covered = sum(
        low <= 0.07 <= high for _, low, high in itertools.starmap(paired_difference, [(b, c, n) for b, c, _ in draws])
    )
    assert 0.93 < covered / 2000 < 0.975


@pytest.mark.parametrize("counts", [(1, 1, 0), (-1, 0, 5), (4, 4, 5)])
def test_impossible_pairs_are_refused(counts):
    with pytest.raises(ValueError, match="counts"):
        paired_difference(*counts)
