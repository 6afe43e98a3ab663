"""What a leaderboard claims, against numbers worked out by hand."""

from __future__ import annotations

import pytest
from builders import cell, drawn, metric, record, result_set
from test_reporting import printed, whole

from autoshield_bench.leaderboard import build
from autoshield_bench.scores import Absent, Column, Score
from autoshield_bench.statistics import paired_difference, wilson, wilson_at

GRAY, WHITE = "gray-box", "white-box"


def by_hand(defense="autoencoder", seed=0, *, strong=False, white=(0, 1, 9), white_seen=(0, 1, 2, 9)):
    """Image 9 is wrong without attack, image 2 falls to white-box PGD, which saw only four of the ten images."""
    return [
        record(cell(defense, seed=seed), range(9)),
        record(cell(defense, "fgsm", GRAY, seed=seed), range(10)),
        record(cell(defense, "pgd", GRAY, seed=seed), range(8)),
        record(cell(defense, "pgd", WHITE, seed=seed), white, white_seen, strong=strong),
    ]


def only_row(*records, **fields):
    (board,) = build(result_set(*records, **fields))
    (row,) = board.rows
    return board, row


def test_worst_case_is_taken_over_the_images_that_all_cells_saw_and_counts_clean_errors():
    _, row = only_row(*by_hand())
    assert row.worst_case == Score(
        share=0.5, n=4, low=wilson(2, 4)[0], high=wilson(2, 4)[1], seeds=(0,), shares=(0.5,), spread=None, hits=2
    )


def test_illusion_gap_compares_the_strongest_gray_box_attack_on_the_same_images():
    _, row = only_row(*by_hand())
    # PGD leaves 0, 1 and 2 of the four common images, FGSM all four; worst case 2 of 4.
    gap = row.illusion_gap
    assert (gap.gray_box, gap.value, gap.n) == (0.75, 0.25, 4)
    assert gap.high == paired_difference(1, 0, 4)[2]
    assert gap.low == max(0.0, paired_difference(1, 0, 4)[1])


def test_columns_hold_their_own_images_with_gray_box_first():
    board, row = only_row(*reversed(by_hand()))
    assert board.columns == (Column("pgd", GRAY), Column("fgsm", GRAY), Column("pgd", WHITE))
    assert [(score.hits, score.n) for score in row.scores] == [(8, 10), (10, 10), (3, 4)]
    assert (row.clean.hits, row.clean.n, row.clean.low) == (9, 10, wilson(9, 10)[0])
    assert board.test_size == 10


def test_seeds_average_and_n_counts_images_not_images_times_seeds():
    _, row = only_row(*by_hand(seed=0), *by_hand(seed=1, white=(0, 1, 2)))
    worst = row.worst_case
    assert worst.shares == (0.5, 0.75)
    assert (worst.share, worst.n, worst.hits, worst.seeds) == (0.625, 4, None, (0, 1))
    assert worst.spread == pytest.approx(0.1767767)
    assert (worst.low, worst.high) == wilson_at(0.625, 4)
    assert row.illusion_gap.values == (0.25, 0.0)
    assert row.illusion_gap.value == 0.125


def test_an_image_that_stands_for_one_seed_only_counts_for_that_seed():
    records = [
        *(record(cell("a", seed=seed), range(10)) for seed in (0, 1)),
        *(record(cell("a", "pgd", WHITE, seed=seed), [seed]) for seed in (0, 1)),
    ]
    _, row = only_row(*records)
    assert row.worst_case.shares == (0.1, 0.1)
    assert row.illusion_gap is None  # there is no gray-box attack to compare with


@pytest.mark.parametrize("kind", ["failed", "missing"])
def test_an_incomplete_row_has_no_worst_case_and_says_which_cell(kind):
    *well, white = by_hand()
    if kind == "failed":
        board, row = only_row(*well, record(white.cell, error="NaN in 3 of 4 images"))
        assert row.scores[-1] == Absent("failed", "NaN in 3 of 4 images")
    else:
        board, row = only_row(*well, missing=[white.cell])
        assert row.scores[-1] == Absent("missing")
    assert board.columns[-1] == Column("pgd", WHITE)
    assert row.worst_case is None
    assert row.illusion_gap is None
    assert row.labels == (f"incomplete: pgd/white-box {kind}",)


def test_a_failed_gray_box_or_clean_cell_takes_the_worst_case_away_too():
    clean, fgsm, pgd, white = by_hand()
    _, row = only_row(clean, record(fgsm.cell, error="x"), pgd, white)
    assert (row.worst_case, row.labels) == (None, ("incomplete: fgsm/gray-box failed",))
    _, row = only_row(record(clean.cell, error="x"), fgsm, pgd, white)
    assert (row.worst_case, row.labels) == (None, ("incomplete: clean failed",))
    _, row = only_row(fgsm, pgd, white)
    assert (row.worst_case, row.labels) == (None, ("incomplete: clean missing",))


def test_one_seed_missing_is_named_and_the_column_says_over_how_many_it_is():
    first, second = by_hand(seed=0), by_hand(seed=1)
    _, row = only_row(*first, *second[:-1], missing=[second[-1].cell])
    assert row.labels == ("incomplete: pgd/white-box missing (seed 1)",)
    assert row.scores[-1].seeds == (0,)


def test_gray_box_alone_gives_no_worst_case():
    _, row = only_row(*by_hand()[:-1])
    assert (row.worst_case, row.illusion_gap, row.labels) == (None, None, ("gray-box only",))


def test_upper_bound_until_a_strong_white_box_attack_counts():
    assert only_row(*by_hand())[1].labels == ("upper bound",)
    assert only_row(*by_hand(strong=True))[1].labels == ()
    clean, fgsm, pgd, white = by_hand()
    strong_but_blind = record(pgd.cell, range(8), strong=True)
    assert only_row(clean, fgsm, strong_but_blind, white)[1].labels == ("upper bound",)


def test_a_worst_case_over_no_image_at_all_is_none():
    clean, _fgsm, _pgd, white = by_hand()
    disjoint = record(cell("autoencoder", "pgd", GRAY), [5], [5, 6])
    _, row = only_row(clean, disjoint, white)
    assert (row.worst_case, row.labels) == (None, ("no image was evaluated by every cell",))


def test_order_is_by_worst_case_never_by_gray_box_and_rows_without_one_come_last():
    def row_of(name, gray, white):
        return [
            record(cell(name), range(10)),
            record(cell(name, "pgd", GRAY), range(gray)),
            *([record(cell(name, "pgd", WHITE), range(white))] if white is not None else []),
        ]

    records = [*row_of("oblivious", 10, None), *row_of("weak", 9, 1), *row_of("even", 6, 5), *row_of("strong", 5, 5)]
    (board,) = build(result_set(*records))
    assert [row.defense for row in board.rows] == ["even", "strong", "weak", "oblivious"]
    assert board.rows[-1].scores[1] == Absent("not planned")
    assert board.rows[-1].labels == ("gray-box only",)


def test_what_falls_in_a_smaller_ball_has_fallen_in_a_larger_one():
    small = [record(cell("ae", "pgd", WHITE, eps=0.1), [1, 2, 3, 4, 5, 6])]
    large = [record(cell("ae", "pgd", WHITE, eps=0.2), [0, 1, 2, 7, 8])]
    few = [record(cell("ae", "fgsm", WHITE, eps=0.05), [1], range(2))]
    other = [record(cell("ae", "pgd", WHITE, norm="l2", eps=0.1), [])]
    clean = [record(cell("ae"), range(9))]
    shares = {
        (board.norm, board.eps): board.rows[0].worst_case.hits
        for board in build(result_set(*clean, *large, *few, *small, *other))
    }
    # At 0.2, 0, 7 and 8 stand under its own attack and fell at 0.1; that at 0.05 saw too few images to say so.
    assert shares == {("linf", 0.05): 1, ("linf", 0.1): 6, ("linf", 0.2): 2, ("l2", 0.1): 0}
    draws = [drawn(cell("ae"), [20] * 3, size=3), drawn(cell("ae", "pgd", WHITE, eps=0.1), [20, 4, 9], size=3)]
    draws.append(drawn(cell("ae", "pgd", WHITE, eps=0.2), [10, 20, 9], size=3))
    *_, board = build(result_set(*draws))
    assert board.eps == 0.2
    assert board.rows[0].worst_case.share == pytest.approx((10 + 4 + 9) / 60)
    assert "counts as fallen in the worst case here" in whole(printed(result_set(*clean, *large, *small), 120))
    assert "counts as fallen" not in whole(printed(result_set(*clean, *large), 120))


def test_one_board_per_data_set_model_norm_and_eps_sharing_the_clean_cell():
    clean, *attacked = by_hand()
    other = [record(cell("autoencoder", "pgd", WHITE, eps=0.3), [0])]
    deep = [record(cell("autoencoder", model="deep"), range(10))]
    boards = build(result_set(clean, *attacked, *other, *deep))
    assert [(board.model, board.norm, board.eps) for board in boards] == [
        ("small-cnn", "linf", 0.2), ("small-cnn", "linf", 0.3), ("deep", None, None),
    ]  # fmt: skip
    assert boards[1].rows[0].clean.hits == 9
    assert boards[2].columns == ()
    assert boards[2].rows[0].labels == ()


def test_nothing_gives_nothing():
    assert build(result_set()) == []


def test_quality_comes_from_the_strongest_gray_box_cell():
    def ssim(before, after):
        return {"ssim": metric({"clean-adversarial": before, "clean-purified": after})}

    _, row = only_row(
        record(cell("a"), range(10), metrics={"ssim": metric({"clean-purified": 0.99})}),
        record(cell("a", "fgsm", GRAY), range(7), metrics=ssim(0.1, 0.2)),
        record(cell("a", "pgd", GRAY), range(6), metrics=ssim(0.3, 0.4)),
        record(cell("a", "pgd", WHITE), range(2), metrics=ssim(0.5, 0.6)),
    )
    assert row.examples == Column("pgd", GRAY)
    (quality,) = row.quality
    assert (quality.before.value, quality.after.value, quality.clean.value) == (0.3, 0.4, 0.99)


def test_undefined_and_unavailable_are_states_not_numbers():
    psnr = metric({"clean-purified": None}, unit="dB")
    lpips = metric(None, unavailable="set AUBENCH_WEIGHTS")
    board, row = only_row(record(cell("none"), range(10), metrics={"psnr": psnr, "lpips": lpips}))
    states = {info.label: own.clean for info, own in zip(board.quality, row.quality, strict=True)}
    assert (states["psnr"].state, states["psnr"].value, states["psnr"].undefined) == ("undefined", None, 10)
    assert states["lpips"].state == "unavailable"
    assert board.quality[1].unavailable == "set AUBENCH_WEIGHTS"


def test_infinity_smuggled_into_a_record_is_not_a_value():
    smuggled = metric({"clean-purified": float("inf")})
    _, row = only_row(record(cell("a"), range(10), metrics={"psnr": smuggled}))
    assert row.quality[0].clean.state == "undefined"


def test_a_prediction_metric_that_repeats_the_accuracies_is_not_shown_twice():
    metrics = {"accuracy": metric({"predictions": 0.9}), "attack-success": metric({"predictions": 0.1})}
    board, row = only_row(record(cell("a"), range(9), metrics=metrics))
    assert [info.label for info in board.predictions] == ["attack-success"]
    assert row.predictions[0][0].value == 0.1


def test_passes_are_summed_over_cells_forward_and_backward():
    passes = {
        "attack": {"classifier": {"forward": 40, "backward": 40}},
        "score": {"classifier": {"forward": 10}, "stage-1": {"forward": 10, "backward": 0}},
    }
    _, row = only_row(
        record(cell("a"), range(10), passes={"score": {"classifier": {"forward": 10}}}),
        record(cell("a", "pgd", WHITE), range(5), passes=passes),
    )
    assert (row.passes.attack, row.passes.score) == (80, 30)


def test_what_a_defense_was_trained_on_is_said():
    facts = {"trained_on": "noise"}
    _, row = only_row(record(cell("a"), range(10), facts=facts), record(cell("a", "pgd", GRAY), [1], facts=facts))
    assert row.labels == ("gray-box only", "trained on noise")
    assert only_row(record(cell("none"), [1], facts={"trained_on": "nothing"}))[1].labels == ()


@pytest.mark.parametrize(("white", "labelled"), [(range(60), True), (range(21), False), (range(5), False)])
def test_an_attack_that_does_worse_for_seeing_the_defense_is_labelled(white, labelled):
    _, row = only_row(
        record(cell("clamp"), range(100), size=100),
        record(cell("clamp", "pgd", GRAY), range(20), size=100),
        record(cell("clamp", "pgd", WHITE), white, size=100),
    )
    assert any("pgd weaker than gray-box" in label for label in row.labels) == labelled
    assert row.worst_case.hits <= 20


def test_a_stochastic_defense_says_how_it_was_scored():
    facts = {"stochastic": True}
    _, row = only_row(
        record(cell("noise"), range(10), facts=facts), record(cell("noise", "pgd", WHITE), range(5), facts=facts)
    )
    assert "stochastic, scored on one draw per image" in row.labels
