"""Intervals, paired tests and ranks against outside witnesses."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from autoshield_bench.statistics import (
    auroc,
    clopper_pearson,
    holm,
    mcnemar_exact,
    paired_difference,
    paired_mean_difference,
    wilson,
    wilson_at,
)


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 40), (7, 10), (912, 1000), (10_000, 10_000), (1, 10_000)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_wilson_equals_scipy(successes, n, confidence):
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence=confidence) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5)])
def test_counts_that_do_not_fit_are_refused(interval, successes, n):
    with pytest.raises(ValueError, match="successes"):
        interval(successes, n)


EXTREMES = [(0, 1), (1, 1), (0, 100_000), (1, 100_000), (3, 100_000), (50_000, 100_000), (99_999, 100_000)]


@pytest.mark.parametrize(("successes", "n"), [*EXTREMES, (100_000, 100_000), (0, 40), (7, 10), (912, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99, 0.999])
def test_clopper_pearson_equals_scipy(successes, n, confidence):
    expected = binomtest(successes, n).proportion_ci(confidence, method="exact")
    assert clopper_pearson(successes, n, confidence=confidence) == pytest.approx(tuple(expected), rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(counts=st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_equals_scipy_anywhere_and_mirrors(counts):
    successes, n = counts
    low, high = clopper_pearson(successes, n)
    assert (low, high) == pytest.approx(tuple(binomtest(successes, n).proportion_ci(method="exact")), abs=1e-12)
    assert low <= successes / n <= high
    assert clopper_pearson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_clopper_pearson_of_nothing_says_nothing_and_wants_a_confidence():
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    for confidence in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="confidence"):
            clopper_pearson(1, 2, confidence=confidence)


# -- paired outcomes --------------------------------------------------------------------------------------------------


def witness(b, c):
    return mcnemar([[0, b], [c, 0]], exact=True).pvalue


@pytest.mark.parametrize(
    "counts", [(0, 0), (1, 0), (0, 9), (10, 10), (11, 10), (20, 10), (500, 420), (50_300, 49_700), (1, 60_000)]
)
def test_mcnemar_equals_statsmodels(counts):
    assert mcnemar_exact(*counts) == pytest.approx(witness(*counts), rel=1e-11, abs=1e-300)


@settings(deadline=None)
@given(b=st.integers(0, 400), c=st.integers(0, 400))
def test_mcnemar_equals_the_fraction_it_stands_for_and_does_not_care_for_the_order(b, c):
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    exact = min(Fraction(1), Fraction(2 * tail, 2 ** (b + c)))
    assert mcnemar_exact(b, c) == pytest.approx(float(exact), rel=1e-13)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)
    assert mcnemar_exact(b, c) == pytest.approx(witness(b, c), rel=1e-11)


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match="counts"):
        mcnemar_exact(-1, 3)


@settings(deadline=None, max_examples=10)  # statsmodels collects garbage at each call
@given(p_values=st.lists(st.integers(0, 500).map(lambda step: step / 500), min_size=1, max_size=30))
def test_holm_equals_statsmodels(p_values):
    expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(tuple(expected), abs=1e-12)


def test_holm_by_hand_and_of_nothing():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([]) == ()


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_probability(wrong):
    with pytest.raises(ValueError, match="p values"):
        holm([0.5, wrong])


# -- ranks ------------------------------------------------------------------------------------------------------------


def area(positives, negatives):
    return roc_auc_score([1] * len(positives) + [0] * len(negatives), [*positives, *negatives])


# Few distinct scores, so that ties are the rule.
scores = st.lists(st.integers(-8, 8).map(lambda step: step / 4), min_size=1, max_size=60)


@settings(deadline=None)
@given(positives=scores, negatives=scores)
def test_auroc_equals_scikit_learn_with_ties(positives, negatives):
    assert auroc(positives, negatives) == pytest.approx(area(positives, negatives), abs=1e-12)
    assert auroc(negatives, positives) == pytest.approx(1 - auroc(positives, negatives), abs=1e-15)


def test_auroc_equals_scikit_learn_on_many_single_precision_scores():
    generator = np.random.default_rng(3)
    positives = generator.normal(0.5, 1, 50_000).astype(np.float32).round(3)
    negatives = generator.normal(0, 1, 40_000).astype(np.float32).round(3)
    assert auroc(positives, negatives) == pytest.approx(area(positives, negatives), abs=1e-12)


def test_auroc_of_clear_cases():
    assert auroc([2, 3], [0, 1]) == 1.0
    assert auroc([1], [1]) == 0.5
    assert auroc([math.inf], [1e300]) == 1.0


@pytest.mark.parametrize("sides", [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [0.0, math.nan])])
def test_auroc_needs_scores_on_both_sides(sides):
    with pytest.raises(ValueError, match="scores"):
        auroc(*sides)


# -- differences ------------------------------------------------------------------------------------------------------


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


@settings(deadline=None)
@given(data=st.data(), n=st.integers(1, 200))
def test_a_mean_over_one_run_has_the_interval_of_paired_proportions(data, n):
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    assert paired_mean_difference(b - c, b + c, n) == paired_difference(b, c, n)


def test_paired_mean_difference_approaches_the_normal_interval_of_the_images():
    values = np.random.default_rng(1).choice([-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1], size=20_000)
    half = 1.959963984540054 * values.std(ddof=1) / math.sqrt(len(values))
    found = paired_mean_difference(values.sum(), (values**2).sum(), len(values))
    assert found == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), abs=2e-5)


def test_paired_mean_difference_covers_the_truth_about_as_often_as_it_says():
    """Three runs that agree on most images: what one run does to an image, the others often do as well."""
    generator = np.random.default_rng(7)
    n, repeats = 300, 2000
    kind = generator.choice(3, p=(0.1, 0.1, 0.8), size=(repeats, n))
    chance = np.array([0.9, 0.1, 0.5])[kind]  # that the first is right alone, where exactly one is
    differs = generator.random((3, repeats, n)) < np.array([0.8, 0.5, 0.01])[kind]
    signs = np.where(generator.random((3, repeats, n)) < chance, 1, -1) * differs
    means = signs.mean(axis=0)
    truth = 0.1 * 0.8 * 0.8 - 0.1 * 0.5 * 0.8
    covered = sum(
        low <= truth <= high for _, low, high in (paired_mean_difference(own.sum(), (own**2).sum(), n) for own in means)
    )
    assert 0.93 < covered / repeats < 0.975


@pytest.mark.parametrize("sums", [(0, 0, 0), (3, 1, 2), (0, 3, 2), (0, -1, 2)])
def test_sums_that_no_images_have_are_refused(sums):
    with pytest.raises(ValueError, match="sums"):
        paired_mean_difference(*sums)
