"""Two defenses or two runs on the same images: what is compared, what is claimed, and what CI gets to know."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import cell, record, result_set, write_results
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from test_registry import aubench, python

from autoshield_bench.cli.compare import split_argument
from autoshield_bench.comparison import choose_pairs, compare
from autoshield_bench.errors import StoreError, UsageError
from autoshield_bench.outcomes import Outcomes
from autoshield_bench.paired import Place, difference_of
from autoshield_bench.reporting.comparison import left_out_lines, notes, p_text, sentence
from autoshield_bench.results import load_results
from autoshield_bench.statistics import paired_difference, wilson

ROOT = Path(__file__).parents[1]
GRAY, WHITE = "gray-box", "white-box"
SIZE = 200


def defended(defense, clean, pgd, *, access=WHITE, seed=0, size=SIZE, evaluated=None, strong=False, facts=None):
    """A clean cell and one of PGD, with the images that are right."""
    return [
        record(cell(defense, seed=seed), clean, size=size),
        record(cell(defense, "pgd", access, seed=seed), pgd, evaluated, size=size, strong=strong, facts=facts or {}),
    ]


def against(one, two, **fields):
    """B minus A, for one defense on each side."""
    first, second = result_set(*one, **fields), replace(result_set(*two), directory=Path("results/y"))
    return compare(first, second, choose_pairs(first, None, second, None))


def at(comparison, quantity):
    (found,) = [own for own in comparison.differences if own.place.quantity == quantity]
    return found


def attack(steps=40, version=1, source="0" * 64, **more):
    identity = {"distribution": "autoshield-bench", "name": "pgd", "version": version, "source": source}
    return {"attack": {"identity": {**identity, "params": {"steps": steps}}, **more}}


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_one_seed_is_mcnemars_test_with_the_paired_interval_and_holm_over_the_table():
    # White-box PGD: B alone is right on 30 images, A alone on 8, both on 62; on clean images 5 and 3.
    one = defended("a", range(195), [*range(62), *range(62, 70)])
    two = defended("a", [*range(192), *range(195, 200)], [*range(62), *range(100, 130)])
    found = against(one, two)
    clean, pgd, worst = found.differences
    assert [own.place.quantity for own in found.differences] == ["clean", "attack", "worst case"]
    assert (pgd.more, pgd.fewer, pgd.n, pgd.shares) == (30, 8, SIZE, (0.35, 0.46))
    assert pgd.share_intervals == (wilson(70, SIZE), wilson(92, SIZE))
    assert (pgd.value, pgd.low, pgd.high) == paired_difference(30, 8, SIZE)
    assert (clean.more, clean.fewer) == (5, 3)
    witnesses = [mcnemar([[0, own.more], [own.fewer, 0]], exact=True).pvalue for own in found.differences]
    assert [own.p for own in found.differences] == pytest.approx(witnesses)
    assert [own.adjusted for own in found.differences] == pytest.approx(
        list(multipletests(witnesses, method="holm")[1])
    )
    assert [own.verdict for own in found.differences] == ["not shown", "better", "better"]
    assert found.regressions == ()
    assert (worst.more, worst.fewer) == (30, 8)


def test_the_worst_case_takes_what_stands_under_everything_on_images_that_all_cells_saw():
    one = [*defended("a", range(9), [0, 1, 2], evaluated=range(6), size=10), record(cell("a", "pgd", GRAY), range(8))]
    two = [*defended("a", [0, *range(2, 10)], range(6), evaluated=range(6), size=10)]
    two += [record(cell("a", "pgd", GRAY), [0, 1, 2, 3, 4], range(5))]
    worst = at(against(one, two), "worst case")
    # Seen by all: 0 to 4. A stands on 0, 1, 2; B on 0, 2, 3, 4, being wrong on clean image 1.
    assert (worst.n, worst.shares, worst.more, worst.fewer) == (5, (0.6, 0.8), 2, 1)


def test_several_seeds_count_images_once_and_show_their_spread_apart():
    one = [own for seed in range(3) for own in defended("a", range(SIZE), [], seed=seed)]
    # Image 0 is gained in all three seeds, 1 in one, 2 gained and lost again (so not at all), 3 lost in two.
    gained = [[0, 1, 2], [0], [0]]
    lost = [[], [2, 3], [3]]
    one = [own if own.cell.attack is None else record(own.cell, lost[own.cell.seed], size=SIZE) for own in one]
    two = [own for seed in range(3) for own in defended("a", range(SIZE), gained[seed], seed=seed)]
    pgd = at(against(one, two), "attack")
    assert (pgd.n, pgd.seeds, pgd.more, pgd.fewer) == (SIZE, (0, 1, 2), 2, 1)
    assert pgd.values == (3 / SIZE, -1 / SIZE, 0.0)
    assert pgd.value == pytest.approx((3 + 1 + 0 - 2) / 3 / SIZE)
    assert pgd.spread == pytest.approx(math.sqrt((49 + 25 + 4) / 9 / 2) / SIZE)
    squares = 1 + 1 / 9 + 0 + 4 / 9
    half = 1.959963984540054 / 202 * math.sqrt(squares + 1 - (2 / 3) ** 2 / 202)
    assert (pgd.low, pgd.high) == pytest.approx((2 / 3 / 202 - half, 2 / 3 / 202 + half))
    assert pgd.p == 1.0


def test_swapped_sides_give_the_mirror_image():
    one = [own for seed in (0, 1) for own in defended("a", range(190), range(80 + seed), seed=seed)]
    two = [own for seed in (0, 1) for own in defended("a", range(3, 200), range(40, 90 - seed), seed=seed)]
    there, back = against(one, two), against(two, one)
    opposite = {"better": "worse", "worse": "better", "not shown": "not shown"}
    for own, other in zip(there.differences, back.differences, strict=True):
        assert (own.value, own.low, own.high) == (-other.value, -other.high, -other.low)
        assert own.values == tuple(-value for value in other.values)
        assert (own.more, own.fewer, own.shares) == (other.fewer, other.more, other.shares[::-1])
        assert (own.p, own.adjusted, own.spread) == (other.p, other.adjusted, other.spread)
        assert own.verdict == opposite[other.verdict]
    assert any(own.verdict == "worse" for own in there.differences)


def test_results_that_agree_everywhere_show_no_difference():
    found = against(defended("a", range(100), range(50)), defended("a", range(100), range(50)))
    assert {(own.value, own.p, own.verdict) for own in found.differences} == {(0.0, 1.0, "not shown")}
    assert "A and B keep the same share" in sentence(at(found, "attack"), found)
    assert "no difference that 200 images can show" in sentence(at(found, "attack"), found)


@settings(deadline=None)
@given(data=st.data(), seeds=st.integers(1, 4), size=st.integers(1, 40))
def test_a_difference_equals_the_one_worked_out_image_by_image(data, seeds, size):
    def outcomes():
        evaluated = data.draw(st.sets(st.integers(0, size - 1)))
        right = data.draw(st.sets(st.sampled_from(sorted(evaluated)))) if evaluated else set()
        return Outcomes.from_indices(size, evaluated, right), evaluated, right

    pairs = [(outcomes(), outcomes()) for _ in range(seeds)]
    place = Place(first="a", second="b", dataset="d", model="m", quantity="clean")
    found = difference_of(place, [(seed, one[0], two[0]) for seed, (one, two) in enumerate(pairs)])
    images = set.intersection(*(seen for pair in pairs for _, seen, _ in pair))
    if not images:
        assert found is None
        return
    sums = [sum((image in two[2]) - (image in one[2]) for one, two in pairs) for image in images]
    counts = sum(own > 0 for own in sums), sum(own < 0 for own in sums)
    assert (found.n, found.more, found.fewer) == (len(images), *counts)
    assert found.value == pytest.approx(sum(sums) / seeds / len(images))
    assert found.p == pytest.approx(binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0)
    assert found.low <= found.value <= found.high


def test_the_committed_sweep_has_three_seeds_on_the_same_images():
    results = load_results(ROOT / "results" / "mnist-sweep")
    found = compare(results, results, [("autoencoder", "two-conv")])
    (pgd,) = (
        own for own in found.differences
        if (own.place.model, own.place.attack, own.place.access, own.place.eps) == ("deep-cnn", "pgd", WHITE, 0.2)
    )  # fmt: skip
    sides = [results.select(f"mnist/deep-cnn/{name}/pgd/white-box/linf-0.2/*") for name in ("autoencoder", "two-conv")]
    bits = [[[int(bit) for bit in f"{own.outcomes.correct:010000b}"] for own in side] for side in sides]
    sums = np.sum(bits[1], axis=0) - np.sum(bits[0], axis=0)
    assert (pgd.n, pgd.seeds) == (250, (0, 1, 2))
    assert pgd.value == pytest.approx(sums.sum() / 750)
    assert pgd.p == pytest.approx(binomtest(int((sums > 0).sum()), int((sums != 0).sum())).pvalue)
    assert pgd.verdict == "better"
    assert {own.place.model for own in found.differences} == {"small-cnn", "deep-cnn"}


def test_the_committed_autoencoders_as_a_witness_sees_them():
    results = load_results(ROOT / "results" / "mnist")
    found = compare(results, results, [("autoencoder", "stacked-autoencoder")])
    worst = at(found, "worst case")
    counts = [(own.more, own.fewer) for own in found.differences]
    expected = [mcnemar([[0, more], [fewer, 0]], exact=True).pvalue for more, fewer in counts]
    assert [own.adjusted for own in found.differences] == pytest.approx(list(multipletests(expected, method="holm")[1]))
    assert worst.shares == (0.305, 0.34)
    assert sentence(worst, found) == (
        "worst case, linf 0.2: B keeps 3.5 points more than A (95 % interval 1.8 to 5.2, 1,000 images, adjusted p "
        "< 0.001): a real difference; upper bounds: no strong white-box attack was run on both."
    )


# -- words ------------------------------------------------------------------------------------------------------------


def test_strong_attacks_on_both_sides_make_it_no_upper_bound():
    weak, strong = (defended("a", range(9), [1], size=10, strong=strong) for strong in (False, True))
    assert at(against(strong, strong), "worst case").remarks == ()
    assert "upper bounds" in at(against(weak, strong), "worst case").remarks[0]


def test_other_attacks_are_named_and_change_no_verdict():
    one = defended("a", range(200), range(100), facts=attack(steps=40))
    two = defended("a", range(200), range(60), facts=attack(steps=100))
    found = against(one, two)
    own = at(found, "attack")
    assert own.verdict == "worse"
    said = sentence(own, found)
    assert "a real difference between figures taken under different attacks (steps: 40 in A, 100 in B)" in said
    assert at(found, "worst case").other_attack == ("pgd/white-box: steps: 40 in A, 100 in B",)
    same = against(one, defended("a", range(200), range(100), facts=attack(steps=41)))
    assert "no difference that 200 images can show, though under different" in sentence(at(same, "attack"), same)


@pytest.mark.parametrize(
    ("two", "phrases"),
    [
        (attack(), ()),
        (attack(version=2), ("version: 1 in A, 2 in B",)),
        (attack(source="1" * 64), ("its source code differs",)),
        (attack(queries=500), ()),  # A's record is of a version that did not write it
        ({}, ("which attack it was is not recorded in B",)),
        ({"attack": {"identity": {"distribution": "x", "name": "pgd"}}}, ("autoshield-bench/pgd in A, x/pgd in B",)),
        ({"attack": {"identity": []}}, ()),
    ],
)
def test_what_counts_as_another_attack(two, phrases):
    found = against(defended("a", [], [], facts=attack()), defended("a", [], [], facts=two))
    assert at(found, "attack").other_attack == phrases


def test_gradient_paths_and_draws_may_differ_with_the_defense():
    one = defended("a", [], [], facts={**attack(eot=1, gradient_path=["exact"]), "stochastic": False})
    two = defended("a", [], [], facts={**attack(eot=20, gradient_path=["bpda"]), "stochastic": True})
    own = at(against(one, two), "attack")
    assert own.other_attack == ()
    assert own.remarks == ("stochastic, scored on one draw per image",)
    both = [defended("a", [], [], facts=attack(eot=eot)) for eot in (1, 20)]
    assert at(against(*both), "attack").other_attack == ("eot: 1 in A, 20 in B",)


def test_another_classifier_is_said_once():
    def facts(key, epochs):
        identity = {"distribution": "d", "name": "n", "params": {"epochs": epochs}}
        return {**attack(), "model": {"key": key, "identity": identity}}

    one, same, other = (defended("a", [], [], facts=facts(*own)) for own in (("x", 5), ("y", 5), ("z", 6)))
    assert against(one, one).remarks == ()
    assert against(one, same).remarks == (
        "The classifier small-cnn need not be the same in A and B: they were trained apart.",
    )
    assert against(one, other).remarks[0].endswith("epochs: 5 in A, 6 in B.")


def test_a_mean_that_goes_against_the_count_is_said():
    # B gains 30 images in one seed of three; A gains 11 in all three.
    empty = {seed: [] for seed in range(3)}
    gains, losses = {**empty, 0: range(30)}, {seed: range(100, 111) for seed in range(3)}
    one = [own for seed in range(3) for own in defended("a", [], losses[seed], seed=seed)]
    two = [own for seed in range(3) for own in defended("a", [], gains[seed], seed=seed)]
    found = against(one, two)
    own = at(found, "attack")
    assert (own.more, own.fewer, own.verdict) == (30, 11, "better")
    assert own.value == pytest.approx(-3 / 3 / SIZE)
    assert "but by count alone: B is right more often on 30 images, A on 11 images" in sentence(own, found)


@pytest.mark.parametrize("p", [0.04999, 0.0499999999, 0.05, 0.0500001, 0.2, 0.00099, 0.9999])
def test_a_p_value_is_printed_on_its_side_of_the_level(p):
    text = p_text(p)
    assert (float(text.removeprefix("< ")) < 0.05) == (p < 0.05)


# -- what cannot be compared ------------------------------------------------------------------------------------------


def test_cells_of_one_side_and_seeds_of_one_side_are_named():
    one = [*defended("a", range(9), [1], size=10), record(cell("a", "fgsm", WHITE), [0])]
    two = [own for seed in (0, 1) for own in defended("a", range(9), [1, 2], seed=seed, size=10)]
    two.append(record(cell("a", "pgd", GRAY, eps=0.3), [0]))
    found = against(one, two)
    assert set(left_out_lines(found)) == {
        "Not compared, seed 1 only in B: clean accuracy; pgd, white-box, linf 0.2.",
        "Not compared, only A has it: fgsm, white-box, linf 0.2.",
        "Not compared, only B has it: pgd, gray-box (oblivious), linf 0.3.",
    }
    assert found.lost == ()
    worst = at(found, "worst case")
    assert worst.remarks[0] == "over what both have, without fgsm/white-box (A)"
    assert worst.seeds == (0,)


def test_a_cell_that_failed_takes_its_seed_and_the_worst_case_away():
    one = [own for seed in (0, 1) for own in defended("a", range(9), range(5), seed=seed, size=10)]
    *two, last = [own for seed in (0, 1) for own in defended("a", range(9), range(4), seed=seed, size=10)]
    found = against(one, [*two, record(last.cell, error="NaN")])
    assert at(found, "attack").seeds == (0,)
    assert at(found, "clean").seeds == (0, 1)
    assert {(own.place.quantity, own.reason, own.lost) for own in found.left_out} == {
        ("attack", "failed in B (seed 1)", True),
        ("worst case", "pgd/white-box failed in B", False),
    }
    # The other way round, B lost nothing that A has.
    assert against([*two, record(last.cell, error="NaN")], one).lost == ()


def test_gray_box_alone_has_no_worst_case():
    found = against(defended("a", [1], [1], access=GRAY), defended("a", [1], [1], access=GRAY))
    assert [own.place.quantity for own in found.differences] == ["clean", "attack"]
    assert not any(note.startswith("Worst case") for note in notes(found))


def test_worst_case_without_clean_cells_or_common_images_or_seeds_is_left_out():
    (_, pgd) = defended("a", [1], [1], evaluated=range(5))
    assert against([pgd], [pgd]).left_out[-1].reason == "clean accuracy is not in both"
    apart = against(defended("a", [], [], evaluated=range(5)), defended("a", [], [], evaluated=range(5, 9)))
    assert [own.reason for own in apart.left_out] == [
        "no image was evaluated by both", "no image was evaluated by every cell of both",
    ]  # fmt: skip
    clean, white = defended("a", [1], [1], seed=0)
    other = record(cell("a", "pgd", WHITE, seed=1), [1], size=SIZE)
    assert against([clean, white], [clean, other]).left_out[-1].reason == "no training seed is in both"


@pytest.mark.parametrize(
    ("two", "error", "words"),
    [
        ([record(cell("a", dataset="digits"), [1])], UsageError, "about mnist, results/y about digits"),
        ([record(cell("a"), [1], size=12)], UsageError, "test set of results/x has 10 of them, that of results/y 12"),
        ([record(cell("a", model="deep"), [1])], UsageError, "no cell in common"),
        ([record(cell("b"), [1])], UsageError, "no defense is in both: results/x has a, results/y has b"),
        ([record(cell("a"), error="x")], StoreError, r"no results on the same images \(failed in B \(seed 0\)\)"),
        ([record(cell("a", seed=1), [1])], StoreError, "no results on the same images"),
        ([record(cell("a"), [], [])], StoreError, "no image was evaluated by both"),
    ],
)
def test_what_has_nothing_in_common_is_refused(two, error, words):
    with pytest.raises(error, match=words):
        against([record(cell("a"), [1])], two)


def test_another_split_of_the_same_data_set_is_refused_and_other_code_is_said():
    def results(name, dataset, plugin=None):
        own = result_set(record(cell("a"), [1]), plugins={"dataset:d/mnist": {"source": plugin}})
        return replace(own, directory=Path(name), suite={"name": "s", "dataset": dataset})

    one = results("x", {"use": "mnist", "params": {}})
    with pytest.raises(UsageError, match="other parameters"):
        compare(one, results("y", {"use": "mnist", "params": {"split": 2}}), [("a", "a")])
    other = compare(one, results("y", {"use": "autoshield-bench/mnist", "params": {}}, "0"), [("a", "a")])
    assert other.remarks == ("dataset:d/mnist is not the same code in A and B: the images may differ.",)
    assert compare(one, results("y", "nonsense"), [("a", "a")]).remarks == ()


def test_defenses_are_chosen_by_name():
    first = result_set(record(cell("a"), [1]), record(cell("b"), [1]))
    second = replace(result_set(record(cell("b"), [1]), record(cell("c"), [1])), directory=Path("results/y"))
    assert choose_pairs(first, None, second, None) == [("b", "b")]
    assert choose_pairs(first, "b", second, None) == choose_pairs(first, None, second, "b") == [("b", "b")]
    assert choose_pairs(first, "a", second, "c") == [("a", "c")]
    with pytest.raises(UsageError, match="compared with itself"):
        choose_pairs(first, "a", first, "a")
    with pytest.raises(UsageError, match='results/x: no defense "aa" there; did you mean "a"'):
        choose_pairs(first, "aa", second, None)


def test_no_seed_at_all_gives_no_difference():
    nothing = record(cell("a"), [], [])
    place = at(against(defended("a", [1], [1]), defended("a", [1], [1])), "clean").place
    assert difference_of(place, [(0, nothing.outcomes, nothing.outcomes)]) is None


# -- aubench compare --------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with an old run and a new one that is worse under PGD, and better on clean images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    write_results(tmp_path / "old", result_set(*defended("a", range(170), range(100)), *defended("b", range(9), [1])))
    write_results(tmp_path / "new", result_set(*defended("a", range(185), range(70)), *defended("b", range(9), [1])))
    return tmp_path


def test_two_runs_compare_every_defense_with_its_namesake(here):
    done = aubench("compare", "old", "new")
    assert (done.code, done.err) == (0, "")
    flat = " ".join(done.out.split())
    assert "A: old · a, b" in flat
    assert "a: clean accuracy: B has 7.5 points more than A" in flat
    _, low, high = paired_difference(0, 30, SIZE)
    assert (
        "a: pgd, white-box, linf 0.2: B keeps 15.0 points less than A "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f}, 200 images, adjusted p < 0.001): a real difference."
        in flat
    )
    assert "Holm adjusts for 6 comparisons" in flat
    assert "One training seed" in flat


@pytest.mark.parametrize(("sides", "code"), [(("old", "new"), 1), (("new:b", "old:b"), 0), (("old:b", "new"), 0)])
def test_fail_on_regression(here, sides, code):
    done = aubench("compare", *sides, "--fail-on", "regression")
    assert done.code == code
    complaints = done.err.splitlines()
    assert len(complaints) == 2 * code
    assert all(line.startswith("regression: a: ") and "points less than A" in line for line in complaints)


def test_a_run_that_got_better_passes_and_one_that_lost_a_cell_does_not(here):
    better = result_set(*defended("a", range(170), range(130)), *defended("b", range(9), [1]))
    write_results(here / "better", better)
    assert aubench("compare", "old", "better", "--fail-on", "regression").code == 0
    clean, pgd = defended("a", range(170), range(100))
    write_results(
        here / "broken", result_set(clean, record(pgd.cell, error="shape [3]"), *defended("b", range(9), [1]))
    )
    done = aubench("compare", "old", "broken", "--fail-on", "regression")
    assert (done.code, done.err) == (1, "lost: a: pgd, white-box, linf 0.2: failed in B (seed 0)\n")
    assert "B: failed: mnist/small-cnn/a/pgd/white-box/linf-0.2/seed-0: shape [3]" in " ".join(done.out.split())
    assert aubench("compare", "old", "broken").code == 0


def test_damaged_records_are_warned_of_and_exit_3(here):
    damaged = next((here / "new" / "cells" / "a").glob("pgd-*.json"))
    damaged.write_text("{", encoding="utf-8")
    done = aubench("compare", "old", "new", "--json")
    assert done.code == 3
    assert damaged.name in done.warnings[0]
    value = json.loads(done.out)
    assert value["b"]["damaged"]
    assert value["lost"] == 1
    assert "missing in B (seed 0)" in {own["reason"] for own in value["left_out"]}


def test_json_holds_every_difference_with_its_words(here):
    value = json.loads(aubench("compare", "old:a", "new:a", "--json").out)
    assert value["schema"] == "aubench.comparison/1"
    assert (value["a"]["results"], value["b"]["defenses"]) == ("old", ["a"])
    pgd = next(own for own in value["differences"] if own["place"]["quantity"] == "attack")
    assert (pgd["value"], pgd["n"], pgd["verdict"], pgd["more"], pgd["fewer"]) == (-0.15, 200, "worse", 0, 30)
    assert pgd["words"].endswith("a real difference.")
    assert value["regressions"] == 2


@pytest.mark.parametrize("width", [40, 80, 200])
def test_numbers_are_whole_at_any_width(here, width):
    three = [own for seed in range(3) for own in defended("a", range(170), range(100 + seed), seed=seed)]
    more = [own for seed in range(3) for own in defended("a", range(160), range(70), seed=seed)]
    write_results(here / "one", result_set(*three))
    write_results(here / "two", result_set(*more))
    done = aubench("compare", "one", "two", "--width", width)
    assert max(map(len, done.out.splitlines())) <= width
    value = json.loads(aubench("compare", "one", "two", "--json").out)
    for own in value["differences"]:
        assert f"{100 * own['low']:.1f} to {100 * own['high']:.1f}" in done.out
    for number in ("-16.0 to -15.0", "3, sd 0.5", "< 0.001", "B worse", "A 32"):
        assert number in done.out


def test_many_comparisons_get_sentences_for_real_differences_only(here):
    eps = [round(0.01 * step, 2) for step in range(1, 31)]

    def run(right, steps):
        facts = {**attack(steps=steps), "stochastic": True}
        cells = [cell("a", "pgd", GRAY, eps=own) for own in eps]
        return result_set(*(record(own, right(own.eps), size=SIZE, facts=facts) for own in cells))

    write_results(here / "one", run(lambda own: range(100), 40))
    write_results(here / "two", run(lambda own: range(40 if own == 0.2 else 100), 50))
    out = " ".join(aubench("compare", "one", "two").out.split())
    assert out.count("a real difference between") == 1
    assert "29 of 30 comparisons: no difference that their images can show." in out
    assert "among these: pgd, gray-box (oblivious), linf 0.01; pgd" in out
    assert "; and 23 more. Among these: stochastic, scored on one draw per image." in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["old"], 2, "required: B"),
        (["old", "new", "--fail-on", "anything"], 2, "--fail-on"),
        (["old", "old"], 2, "compared with itself"),
        (["old:c", "new"], 2, 'old: no defense "c" there; known: a, b'),
        (["odl:a", "new"], 2, "odl: no results directory"),
        (["old", "empty"], 3, "no plan.json"),
        (["old", "new", "--width", "3"], 2, "--width"),
    ],
)
def test_bad_usage(here, arguments, code, words):
    (here / "empty").mkdir()
    done = aubench("compare", *arguments)
    assert (done.code, done.out) == (code, "")
    assert words in done.err


def test_a_directory_name_may_hold_a_colon(here):
    (here / "old").rename(here / "run:a")
    (here / "results" / "suite").mkdir(parents=True)
    assert split_argument("run:a") == ("run:a", None)
    assert split_argument("run:a:b") == ("run:a", "b")
    assert split_argument("suite:a+b.1") == ("suite", "a+b.1")
    assert split_argument("new:a:b") == ("new", "a:b")
    assert split_argument("nowhere:a") == ("nowhere", None)
    assert aubench("compare", "run:a:a", "new").code == 0


def test_foreign_text_does_nothing(here):
    evil = "\x1b[31mred[/bold]\u202e"
    facts = attack(steps=evil)
    suite = {"name": evil}
    for name, steps in (("one", attack()), ("two", facts)):
        own = result_set(*defended("a", [1], [1, 2], facts=steps))
        write_results(here / name, replace(own, suite=suite))
    for options in ([], ["--json"]):
        done = aubench("compare", "one", "two", *options)
        assert done.code == 0
        assert "\x1b" not in done.out
        assert "\u202e" not in done.out
    assert r"\x1b[31mred[/bold]\u202e" in " ".join(aubench("compare", "one", "two", "--width", 1000).out.split())


def test_compare_imports_nothing_heavy(here):
    code = """
import sys
from autoshield_bench.cli.main import main
code = main(["compare", *sys.argv[1:]])
heavy = {"torch", "numpy", "scipy", "sklearn", "pydantic"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""
    for options in ([], ["--json"]):
        done = python(code, "old", "new", *options, cwd=here)
        assert (done.returncode, done.stderr) == (0, "")
