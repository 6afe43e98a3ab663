"""Stochastic defenses on the leaderboard and in comparisons, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from builders import cell, drawn, metric, record, result_set
from hypothesis import given, settings
from hypothesis import strategies as st

from autoshield_bench.comparison import choose_pairs, compare
from autoshield_bench.errors import StoreError
from autoshield_bench.leaderboard import build
from autoshield_bench.outcomes import Draws, Outcomes
from autoshield_bench.reporting.comparison import notes, sentence
from autoshield_bench.reporting.tables import leaderboard_value
from autoshield_bench.standing import paired, restricted, standing
from autoshield_bench.statistics import paired_mean_difference, wilson_at

GRAY, WHITE = "gray-box", "white-box"


def only_row(*records, **fields):
    (board,) = build(result_set(*records, **fields))
    (row,) = board.rows
    return row


def test_a_share_is_the_mean_over_images_of_the_share_of_scored_draws():
    row = only_row(drawn(cell("noise"), [20, 10, 5, 0], [0, 0, 0, 0], size=4))
    assert row.clean.share == (1 + 0.5 + 0.25 + 0) / 4
    assert (row.clean.low, row.clean.high) == wilson_at(row.clean.share, 4)
    assert (row.clean.n, row.clean.hits) == (4, None)
    assert "stochastic, 20 fresh draws per image" in row.labels


def test_the_worst_cell_is_chosen_by_other_draws_than_it_is_scored_by():
    # Image 0: fgsm looks worst by selection (3 < 5), so its 8 scored draws count, though pgd's 2 are fewer.
    # Image 1: the clean cell is worst. Image 2: a tie, so the last cell in the plan, an attack and not the clean one.
    row = only_row(
        drawn(cell("noise"), [20, 4, 15], [20, 1, 6], size=3),
        drawn(cell("noise", "fgsm", WHITE), [8, 20, 0], [3, 20, 6], size=3),
        drawn(cell("noise", "pgd", WHITE), [2, 0, 1], [5, 9, 6], size=3),
    )
    assert row.worst_case.shares == ((8 + 4 + 1) / 20 / 3,)
    assert (row.worst_case.low, row.worst_case.high) == wilson_at(13 / 60, 3)


def test_cells_on_different_images_meet_on_those_they_share():
    row = only_row(
        drawn(cell("noise"), [20, 20, 18, 20], size=4),
        drawn(cell("noise", "pgd", WHITE), [7, 3], None, [1, 3], size=4),
    )
    assert (row.worst_case.n, row.worst_case.share) == (2, pytest.approx(10 / 40))


def test_the_illusion_gap_takes_the_gray_box_attack_that_the_selection_finds_strongest():
    # By selection FGSM leaves 10, PGD 12 draws: FGSM is the strongest, and its scored draws are 24 of 40.
    row = only_row(
        drawn(cell("noise"), [20, 20], size=2),
        drawn(cell("noise", "fgsm", GRAY), [14, 10], [5, 5], size=2),
        drawn(cell("noise", "pgd", GRAY), [2, 2], [6, 6], size=2),
        drawn(cell("noise", "pgd", WHITE), [4, 2], [1, 1], size=2),
    )
    gap = row.illusion_gap
    assert gap.gray_box == pytest.approx(24 / 40)
    assert gap.value == pytest.approx((24 - 6) / 40)
    differences = [(14 - 4) / 20, (10 - 2) / 20]
    expected = paired_mean_difference(sum(differences), sum(own**2 for own in differences), 2)
    assert (gap.low, gap.high) == pytest.approx(expected[1:])


def test_a_cell_without_draws_counts_as_right_in_all_of_them_or_none():
    row = only_row(
        record(cell("noise"), [0, 1], size=3),
        drawn(cell("noise", "pgd", WHITE), [5, 20, 20], size=3),
    )
    assert row.worst_case.share == pytest.approx((5 / 20 + 1 + 0) / 3)


def test_different_numbers_of_draws_in_one_worst_case_are_refused():
    own = [drawn(cell("noise"), [20], size=1), drawn(cell("noise", "pgd", WHITE), [3], n=10, size=1)]
    with pytest.raises(StoreError, match="10 and 20 draws"):
        build(result_set(*own))


def test_a_record_of_one_draw_still_says_so():
    facts = {"stochastic": True}
    old = only_row(record(cell("noise"), [1], facts=facts), record(cell("noise", "pgd", WHITE), [1], facts=facts))
    assert "stochastic, scored on one draw per image" in old.labels
    new = only_row(drawn(cell("noise"), [20], size=1, facts=facts))
    assert [label for label in new.labels if label.startswith("stochastic")] == ["stochastic, 20 fresh draws per image"]


def test_accuracy_on_the_first_draw_is_not_shown_as_a_metric_of_its_own():
    def accuracy(value):
        return {"accuracy": metric({"predictions": value})}

    (board,) = build(
        result_set(
            record(cell("none"), range(9), metrics=accuracy(0.9)),
            drawn(cell("noise"), [20, 10, *[0] * 8], metrics=accuracy(0.2)),
        )
    )
    assert board.predictions == ()


@st.composite
def outcomes(draw, size=6, n=None):
    seen = sorted(draw(st.sets(st.integers(0, size - 1), min_size=1)))
    n = n or draw(st.sampled_from([1, 3, 20]))
    counts = [bytes(draw(st.lists(st.integers(0, n), min_size=len(seen), max_size=len(seen)))) for _ in range(2)]
    right = [image for image, hits in zip(seen, counts[1], strict=True) if 2 * hits > n]
    drawn_at = Draws(n=n, selection=counts[0], scored=counts[1]) if draw(st.booleans()) else None
    return Outcomes.from_indices(size, seen, right, drawn_at)


def shares(own, which="scored"):
    seen = [image for image in range(own.size) if own.evaluated >> image & 1]
    if own.draws is None:
        return {image: float(own.correct >> image & 1) for image in seen}
    return {image: hits / own.draws.n for image, hits in zip(seen, getattr(own.draws, which), strict=True)}


@settings(deadline=None)
@given(st.lists(outcomes(n=20), min_size=1, max_size=4))
def test_what_stands_equals_the_one_worked_out_image_by_image(cells):
    found = shares(standing(cells))
    common = set.intersection(*(set(shares(own)) for own in cells))
    expected = {}
    for image in common:
        chosen = min(reversed(cells), key=lambda own: shares(own, "selection")[image])
        expected[image] = shares(chosen)[image]
    assert found == expected


@settings(deadline=None)
@given(st.lists(st.tuples(outcomes(), outcomes()), min_size=1, max_size=3))
def test_paired_differences_equal_those_worked_out_image_by_image(pairs):
    found = paired(pairs)
    common = set.intersection(*(set(shares(own)) for both in pairs for own in both))
    if not common:
        assert found is None
        return
    means = [sum(shares(two)[image] - shares(one)[image] for one, two in pairs) / len(pairs) for image in common]
    assert found.n == len(common)
    assert (found.more, found.fewer) == (sum(own > 1e-9 for own in means), sum(own < -1e-9 for own in means))
    expected = paired_mean_difference(sum(means), sum(own**2 for own in means), len(means))
    assert (found.value, found.low, found.high) == pytest.approx(expected, abs=1e-12)
    for (one, two), right in zip(pairs, found.right, strict=True):
        kept = [sum(shares(own)[image] for image in common) for own in (one, two)]
        assert right == pytest.approx(kept)
        assert restricted(one, one.evaluated) == one


def compared(one, two):
    first, second = result_set(*one), replace(result_set(*two), directory=Path("results/y"))
    found = compare(first, second, choose_pairs(first, None, second, None))
    return found, {own.place.quantity: own for own in found.differences}


def test_comparisons_take_the_share_of_draws_and_the_sign_of_its_difference():
    one = [drawn(cell("a"), [20] * 20, size=20), drawn(cell("a", "pgd", WHITE), [10] * 20, size=20)]
    two = [drawn(cell("a"), [20] * 20, size=20), drawn(cell("a", "pgd", WHITE), [11] * 18 + [0, 0], size=20)]
    found, at = compared(one, two)
    pgd = at["attack"]
    assert pgd.shares == (0.5, pytest.approx(198 / 400))
    assert (pgd.more, pgd.fewer, pgd.n) == (18, 2, 20)
    assert pgd.value == pytest.approx((18 - 20) / 20 / 20)
    assert pgd.p == pytest.approx(2 * (1 + 20 + 190) / 2**20)
    assert pgd.contradicts
    said = sentence(pgd, found)
    assert "stochastic, scored by 20 fresh draws per image" in said
    assert "but by count alone: B is right more often on 18 images, A on 2 images" in said
    explained = " ".join(notes(found))
    assert "an image counts by its share of fresh draws; the sign test takes the sign of its difference" in explained
    assert "in more draws and seeds than the other does" in explained


def test_a_stochastic_defense_compares_with_a_deterministic_one():
    one = [record(cell("a"), range(10)), record(cell("a", "pgd", WHITE), [0, 1])]
    two = [drawn(cell("a"), [20] * 10), drawn(cell("a", "pgd", WHITE), [20, 0, 5, *[0] * 7])]
    _, at = compared(one, two)
    assert at["worst case"].value == pytest.approx((0 - 1 + 0.25) / 10)
    assert (at["worst case"].more, at["worst case"].fewer) == (1, 1)


def test_json_holds_shares_of_draws_as_they_are():
    value = leaderboard_value(result_set(drawn(cell("noise"), [20, 1], size=2)))
    clean = value["leaderboards"][0]["rows"][0]["clean"]
    assert (clean["share"], clean["n"], clean["hits"]) == (21 / 40, 2, None)
