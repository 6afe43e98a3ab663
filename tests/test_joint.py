"""Defenses that detect: the joint game of flagging and classifying, against numbers worked out by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from builders import cell, detection, drawn, evidence, record, result_set
from test_reporting import printed, whole

from autoshield_bench.comparison import choose_pairs, compare
from autoshield_bench.joint import FalsePositives
from autoshield_bench.leaderboard import build
from autoshield_bench.outcomes import Draws
from autoshield_bench.reporting.comparison import sentence
from autoshield_bench.reporting.derived import leaderboard_json, markdown_report
from autoshield_bench.reporting.tables import leaderboard_csv
from autoshield_bench.scores import Absent, Column
from autoshield_bench.statistics import clopper_pearson

GRAY, WHITE = "gray-box", "white-box"
PART = "a false-positive rate of 0.001 needs 1000 validation images, there are 500"


def flags(one, five, auroc=None):
    """Flagged at 1 % and at 5 %; there is no threshold at 0.1 %."""
    return detection({"0.01": one, "0.05": five}, not_applicable={"0.001": PART}, auroc={"1:ae": auroc})


def detecting(defense="ae", seed=0):
    """Ten images. Clean: 9 is wrong, 0 is flagged at 1 %, 0 and 1 at 5 %."""
    return [
        record(cell(defense, seed=seed), range(9), detection=flags([0], [0, 1])),
        # Leaves 7, 8 right and flags 3, 4, 5 (1 %), 3 to 6 (5 %).
        record(cell(defense, "pgd", GRAY, seed=seed), range(8), detection=flags([8], [8])),
        record(
            cell(defense, "pgd", WHITE, seed=seed), [7, 8], strong=True, detection=flags([3, 4, 5], [3, 4, 5, 6], 0.9)
        ),
        # Made to stay under the thresholds of 1 %: leaves 0 to 4 and 8 right, flags 5.
        record(
            cell(defense, "detector-pgd", WHITE, seed=seed, fpr=0.01), [0, 1, 2, 3, 4, 8],
            detection=flags([5], [5, 6, 7], 0.6),
        ),
        # Made for 5 %: leaves nothing right and is never flagged.
        record(cell(defense, "detector-pgd", WHITE, seed=seed, fpr=0.05), [], detection=flags([], [], 0.55)),
    ]  # fmt: skip


def only_row(*records, **fields):
    (board,) = build(result_set(*records, **fields))
    (row,) = board.rows
    return board, row


def test_the_worst_case_is_the_joint_game_at_one_percent():
    _, row = only_row(*detecting())
    # Lost from the start: 0 (flagged), 9 (wrong). Defended under pgd: 3, 4, 5, 7, 8; under detector-pgd at 1 %: 1 to 5
    # and 8. Both: 3, 4, 5, 8.
    assert row.worst_case.hits == 4
    assert row.worst_case.n == 10
    assert "detects, at 1 % false positives" in row.labels
    # Gray-box: right on 0 to 7 or flagged (8), less the lost 0: 8 images.
    assert row.illusion_gap.gray_box == 0.8
    assert row.illusion_gap.value == pytest.approx(0.4)


def test_aware_columns_are_joint_and_carry_their_rate_and_unaware_ones_are_plain():
    board, row = only_row(*detecting())
    shares = {str(column): score.hits for column, score in zip(board.columns, row.scores, strict=True)}
    assert shares == {
        "pgd/gray-box": 8,
        "pgd/white-box": 2,
        "detector-pgd/white-box at FPR 1 %": 6,  # 1 to 5 and 8
        "detector-pgd/white-box at FPR 5 %": 0,
    }
    assert row.clean.hits == 9
    assert board.columns[-1] == Column("detector-pgd", WHITE, 0.05)
    output = whole(printed(result_set(*detecting()), 160))
    assert "at FPR 1 %" in output
    assert "Columns of attacks that know of no detector show classification accuracy alone" in output


def test_the_detection_table_says_what_is_flagged_and_caught():
    _, row = only_row(*detecting())
    none, one, five = row.detection
    assert (none.rate, none.not_applicable, none.joint) == (0.001, PART, None)
    low, high = clopper_pearson(1, 10)
    assert one.false_positives == FalsePositives(share=0.1, low=low, high=high, n=10)
    # Successful against pgd: 0 to 6 (right when clean, wrong now); 3, 4 and 5 of them are flagged.
    assert (one.unaware.column, one.unaware.share, one.unaware.n) == (Column("pgd", WHITE), pytest.approx(3 / 7), 7)
    assert one.unaware.auroc == (("1:ae", 0.9),)
    # Against detector-pgd at 1 %: 5, 6 and 7, of which 5 is flagged.
    assert (one.aware.share, one.aware.n, one.aware.auroc[0][1]) == (pytest.approx(1 / 3), 3, 0.6)
    assert one.joint == row.worst_case
    # At 5 %, 0, 1 and 9 are lost, and the attack made for it leaves nothing.
    assert (five.false_positives.share, five.joint.hits, five.aware.column.fpr) == (0.2, 0, 0.05)


def test_where_one_percent_has_no_threshold_flags_do_not_count_and_the_label_says_why():
    reason = "a false-positive rate of 0.01 needs 100 validation images, there are 50"
    own = detection({"0.05": range(10)}, not_applicable={"0.01": reason})
    _, row = only_row(
        record(cell("ae"), range(9), detection=own),
        record(cell("ae", "pgd", WHITE), [1, 2, 3], strong=True, detection=own),
        record(cell("ae", "detector-pgd", WHITE, fpr=0.05), [], detection=own),
    )
    assert row.worst_case.hits == 3
    assert row.labels == (f"no threshold at 1 %: {reason}",)


def test_a_cell_of_another_rate_may_fail_but_not_one_that_belongs_to_the_game():
    *others, one, five = detecting()
    _, row = only_row(*others, one, record(five.cell, error="NaN"))
    assert row.worst_case.hits == 4
    assert row.scores[-1] == Absent("failed", "NaN")
    assert row.detection[2].joint is None
    _, row = only_row(*others, record(one.cell, error="NaN"), five)
    assert row.worst_case is None
    assert row.labels[0] != "upper bound"
    assert "incomplete: detector-pgd/white-box at FPR 1 % failed" in row.labels


def test_a_defense_without_detectors_beside_one_is_as_it_was():
    plain = [record(cell("none"), range(10)), record(cell("none", "pgd", WHITE), [1], strong=True)]
    (board,) = build(result_set(*plain, *detecting()))
    row = board.rows[-1]
    assert (row.defense, row.worst_case.hits, row.labels, row.detection) == ("none", 1, (), ())
    assert row.scores[2:] == (Absent("not planned"), Absent("not planned"))


def test_seeds_are_averaged_and_the_interval_of_false_positives_covers_the_counts_around():
    first, second = detecting(seed=0), detecting(seed=1)
    second[0] = record(second[0].cell, range(9), detection=flags([0, 1], [0, 1]))
    _, row = only_row(*first, *second)
    own = row.detection[1].false_positives
    assert own.share == pytest.approx(0.15)
    assert (own.low, own.high) == (clopper_pearson(1, 10)[0], clopper_pearson(2, 10)[1])
    assert row.worst_case.shares == (0.4, 0.4)  # image 1 was lost to pgd anyway
    assert row.detection[1].unaware.n == 7


def counted(*wins):
    return {"0.01": Draws(n=20, selection=bytes(wins), scored=bytes(wins))}


def test_flags_and_draws_together():
    before = replace(detection({"0.01": [3]}), won=counted(20, 20, 20, 3))
    own = replace(detection({"0.01": [0, 2]}), won=counted(20, 5, 13, 20))
    _, row = only_row(
        drawn(cell("ae"), [20, 20, 20, 20], size=4, detection=before),
        drawn(cell("ae", "pgd", WHITE), [0, 5, 4, 20], size=4, detection=own),
    )
    # When attacked, 0 is flagged in every draw, 1 in none, and 2 in some of the draws that get it wrong; 3 is flagged
    # when clean in 17 of 20. What most draws flag is not what all of them do.
    assert row.worst_case.share == pytest.approx((20 + 5 + 13 + 3) / 80)


def test_nothing_successful_is_no_number():
    _, row = only_row(
        record(cell("ae"), range(10), detection=flags([], [])),
        record(cell("ae", "pgd", WHITE), range(10), detection=flags([1], [1])),
    )
    caught = row.detection[1].unaware
    assert (caught.share, caught.n, row.detection[1].aware) == (None, 0, None)
    stands = [record(cell("ae"), range(10), detection=flags([], [])), record(cell("ae", "pgd", WHITE), range(10))]
    stands[1] = replace(stands[1], detection=flags([1], [1]))
    assert "nothing succeeded" in markdown_report(result_set(*stands))
    assert "succeeded" in printed(result_set(*stands), 80)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_is_whole_on_a_terminal(width):
    output = printed(result_set(*detecting()), width)
    assert max(map(len, output.splitlines())) <= width
    for words in ("0.1000", ".0025–.4450", "0.429", "of 7", "0.333", "of 3", "0.900", "0.600", "0.1 %"):
        assert words in output
    assert f"ae has no threshold at 0.1 %: {PART}." in whole(output)


def test_every_format_has_it():
    results = result_set(*detecting())
    report = markdown_report(results)
    assert "### Detection: mnist, small-cnn, linf eps 0.2" in report
    assert "0.1000 [0.0025, 0.4450] n=10" in report
    row = json.loads(leaderboard_json(results))["leaderboards"][0]["rows"][0]
    one = row["detection"][1]
    assert (one["rate"], one["unaware"]["column"], one["aware"]["column"]["fpr"]) == (
        0.01, {"attack": "pgd", "access": WHITE}, 0.01,
    )  # fmt: skip
    assert one["joint"]["hits"] == 4
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(results))))
    found = {(own["quantity"], own["attack"], own["fpr"]): own["value"] for own in rows}
    assert found["joint robust accuracy", "", "0.01"] == "0.400000"
    assert found["true-positive rate", "detector-pgd", "0.01"] == "0.333333"
    assert found["robust accuracy", "detector-pgd", "0.05"] == "0.000000"
    assert len({len(own) for own in csv.reader(io.StringIO(leaderboard_csv(results)))}) == 1


def test_a_board_where_nothing_detects_has_no_such_table():
    plain = result_set(record(cell("none"), range(10)), record(cell("none", "pgd", WHITE), [1]))
    assert "Detection" not in markdown_report(plain)
    assert "detection" not in leaderboard_json(plain)


def test_the_rank_is_by_the_joint_game():
    plain = [record(cell("b"), range(10)), record(cell("b", "pgd", WHITE), [1, 2, 3], strong=True)]
    results = result_set(*plain, *detecting(), evidence_level="fast", evidence=(evidence("ae"), evidence("b")))
    (board,) = build(results)
    assert [(row.defense, row.rank, row.worst_case.hits) for row in board.rows] == [("ae", 1, 4), ("b", 2, 3)]


@pytest.mark.parametrize("evil", ["\x1b[31mred", "a|b", "<script>", "=1+1", "\u202egnp", "a\nb"])
def test_foreign_names_and_reasons_do_nothing(evil):
    own = detection({"0.01": [1]}, not_applicable={"0.05": evil, evil: evil}, auroc={evil: 0.9, f"{evil}2": None})
    clean, white = record(cell("ae"), range(9), detection=own), record(cell("ae", evil, WHITE), [1], detection=own)
    results = result_set(clean, white, replace(white, cell=cell("ae", evil, WHITE, fpr=0.01)))
    for output in (printed(results, 80), markdown_report(results), leaderboard_json(results), leaderboard_csv(results)):
        assert all(c == "\n" or c.isprintable() for c in output)
    assert "<script>" not in markdown_report(results)
    fields = [field for row in csv.reader(io.StringIO(leaderboard_csv(results))) for field in row]
    assert not any(field[:1] in set("=+-@") for field in fields)


# -- comparisons ------------------------------------------------------------------------------------------------------


def compared(one, two):
    first, second = result_set(*one), replace(result_set(*two), directory=Path("results/y"))
    return compare(first, second, choose_pairs(first, None, second, None))


def test_a_comparison_takes_the_joint_game_and_the_detector_aware_attack_of_the_one_that_detects():
    plain = [
        record(cell("ae"), range(10)),
        record(cell("ae", "pgd", GRAY), range(8)),
        record(cell("ae", "pgd", WHITE), [3, 7], strong=True),
    ]
    found = compared(plain, detecting())
    (worst,) = (own for own in found.differences if own.place.quantity == "worst case")
    assert worst.shares == (0.2, 0.4)
    assert (worst.more, worst.fewer) == (3, 1)
    assert "B detects: the joint game at 1 % false positives" in worst.remarks
    assert "the joint game" in sentence(worst, found)
    assert not any("without" in remark for remark in worst.remarks)


def test_aware_attacks_compare_as_joint_games_by_rate():
    better = detecting()
    better[3] = record(better[3].cell, range(10), detection=flags([], []))
    found = compared(detecting(), better)
    aware = {own.place.fpr: own for own in found.differences if own.place.attack == "detector-pgd"}
    assert aware[0.01].shares == (0.6, 0.8)
    assert aware[0.05].shares == (0.0, 0.0)
    assert "detector-pgd, white-box, at FPR 1 %, linf 0.2" in sentence(aware[0.01], found)
    (worst,) = (own for own in found.differences if own.place.quantity == "worst case")
    assert worst.shares == (0.4, 0.5)  # 7 stands now as well
