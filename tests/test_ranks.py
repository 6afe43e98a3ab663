"""Who has a rank, who has none and why, and what a defense gains over none."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
from builders import cell, drawn, evidence, record, result_set, verdict, write_results
from test_registry import aubench
from test_reporting import printed, show, whole

from autoshield_bench.labels import gain_words
from autoshield_bench.leaderboard import build
from autoshield_bench.ranks import NO_EVIDENCE, ranked
from autoshield_bench.reporting import console as terminal
from autoshield_bench.reporting.derived import leaderboard_json, markdown_report
from autoshield_bench.reporting.tables import evidence_grids, leaderboard_csv
from autoshield_bench.scores import Gain
from autoshield_bench.statistics import paired_difference

GRAY, WHITE = "gray-box", "white-box"


def row_of(defense, white, *, seeds=(0,), size=100, stages=1, eps=0.2, routes=None, every=True):
    facts = {"defense": [{}] * stages}
    attack = {"attack": {"routes": routes, "every_route": every}} if routes else {}
    return [
        own
        for seed in seeds
        for own in (
            record(cell(defense, seed=seed), range(size), size=size, facts=facts),
            record(
                cell(defense, "pgd", WHITE, seed=seed, eps=eps),
                range(white),
                size=size,
                strong=True,
                facts={**facts, **attack},
            ),
        )
    ]


def judged(*records, evidence=(), level="fast", **fields):
    return result_set(*records, evidence_level=level, evidence=tuple(evidence), **fields)


def rows_of(results):
    (board,) = build(results)
    return {row.defense: row for row in board.rows}


# -- who has one ------------------------------------------------------------------------------------------------------


def test_ranks_number_those_whose_evidence_carries_them_and_equal_shares_are_equal():
    defenses = {"a": 90, "too good": 99, "b": 50, "c": 50, "d": 10}
    records = [own for name, white in defenses.items() for own in row_of(name, white)]
    found = [evidence(name) for name in defenses if name != "too good"]
    found.append(evidence("too good", verdict("unbounded", "fail", "3 images stand at eps 1")))
    (board,) = build(judged(*records, evidence=found))
    assert [(row.defense, row.rank) for row in board.rows] == [
        ("too good", None), ("a", 1), ("b", 2), ("c", 2), ("d", 4),
    ]  # fmt: skip
    assert board.rows[0].unranked == ("unbounded: 3 images stand at eps 1",)
    assert board.rows[0].worst_case.share == 0.99
    assert ranked([0.5, None, 0.5, 0.7]) == [2, None, 2, 1]


@pytest.mark.parametrize(("ruling", "rank"), [("pass", 1), ("not applicable", 1), ("fail", None), ("unproven", None)])
def test_fail_and_unproven_cost_the_rank(ruling, rank):
    rows = rows_of(judged(*row_of("a", 5), evidence=[evidence("a", verdict("converged", ruling))]))
    assert rows["a"].rank == rank


def test_no_evidence_gives_no_rank_and_one_sentence():
    off = result_set(*row_of("a", 5), *row_of("b", 4))
    assert [(row.rank, row.unranked) for row in rows_of(off).values()] == [(None, (NO_EVIDENCE,))] * 2
    output = whole(printed(off, 100))
    assert output.count("(--evidence off)") == 1
    assert "rank " not in output.split("Each share")[0]
    claimed = judged(*row_of("a", 5), evidence=[evidence("a", level="off")])
    assert rows_of(claimed)["a"].rank is None
    # Records of an earlier run do not count where this one asked for none.
    assert rows_of(replace(off, evidence=(evidence("a"),)))["a"].rank is None


def test_every_seed_needs_its_own_record_with_verdicts():
    records = row_of("a", 5, seeds=(0, 1))
    assert rows_of(judged(*records, evidence=[evidence("a", seed=0), evidence("a", seed=1)]))["a"].rank == 1
    (reason,) = rows_of(judged(*records, evidence=[evidence("a", seed=0)]))["a"].unranked
    assert "no evidence was taken yet" in reason
    assert "(seed 1)" in reason
    bad = evidence("a", verdict("live", "fail", "a weight changed"), seed=1)
    assert rows_of(judged(*records, evidence=[evidence("a"), bad]))["a"].unranked == (
        "live (seed 1): a weight changed",
    )
    empty = replace(evidence("a", seed=1), verdicts=())
    assert rows_of(judged(*records, evidence=[evidence("a"), empty]))["a"].rank is None


@pytest.mark.parametrize("other", [{"eps": 0.3}, {"norm": "l2"}, {"model": "deep"}, {"dataset": "digits"}, {"seed": 7}])
def test_evidence_of_another_threat_model_or_seed_carries_nothing(other):
    assert rows_of(judged(*row_of("a", 5), evidence=[evidence("a", **other)]))["a"].rank is None


def test_a_row_without_a_worst_case_has_no_rank_whatever_the_evidence():
    clean, white = row_of("a", 5)
    results = judged(clean, record(white.cell, error="NaN"), evidence=[evidence("a")])
    assert rows_of(results)["a"].unranked == ("no worst case: incomplete: pgd/white-box failed",)


# -- what readers see -------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed():
    """A ranked defense and one that did not converge, each with routes."""
    routes = {
        "exact": {"tried": 100, "fell": 60, "cut": 0},
        "classifier alone": {"tried": 40, "fell": 7, "cut": 2, "again": 5},
    }
    records = [*row_of("a", 30, routes=routes), *row_of("b|b", 70, routes=routes, every=False)]
    failed = verdict("converged", "fail", "12 of 70 survivors fell to doubled steps", lost=12)
    found = [evidence("a", verdict("valid"), verdict("converged")), evidence("b|b", verdict("valid"), failed)]
    return judged(*records, evidence=found)


def test_console_has_the_rank_first_and_a_paragraph_for_the_one_without(mixed):
    output = printed(mixed, 80)
    header = next(line for line in output.splitlines() if "defense" in line)
    assert header.split()[:2] == ["rank", "defense"]
    first = [line.split()[:2] for line in output.splitlines() if line.strip().startswith(("1  a", "-  b|b"))]
    assert first == [["-", "b|b"], ["1", "a"]]
    flat = whole(output)
    assert "b|b has no rank: converged: 12 of 70 survivors fell to doubled steps." in flat
    assert "a has no rank" not in flat
    assert "evidence: fast, 12 % of the passes of the attacks it judges." in flat


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_verdict_and_no_number_is_cut_at_any_width(mixed, width):
    for view in (terminal.print_leaderboards, terminal.print_evidence):
        output = printed(mixed, width, view)
        assert max(map(len, output.splitlines())) <= width
        assert "…" not in output
    for word in ("converged", "fail", "pass", "12 of 70", "100", "60"):
        assert word in output


def test_markdown_has_ranks_verdicts_and_notes(mixed):
    report = markdown_report(mixed)
    table = next(part for part in report.split("\n\n") if part.startswith("| Rank"))
    ranks = [[part.strip() for part in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    assert ranks == [["-", "b&#124;b"], ["1", "a"]]
    assert "### Evidence: mnist, small-cnn, linf eps 0.2" in report
    verdicts = next(part for part in report.split("\n\n") if "| converged" in part)
    assert [part.strip() for part in verdicts.splitlines()[2].split("|")[1:-1]] == [
        "b&#124;b", "pass", "fail", "12 (12 %)",
    ]  # fmt: skip
    assert "- b&#124;b has no rank: converged: 12 of 70" in report
    assert "- b&#124;b, converged: fail: 12 of 70" in report


def test_json_has_every_verdict_with_its_numbers(mixed):
    value = json.loads(leaderboard_json(mixed))
    board = value["leaderboards"][0]
    assert board["evidence"] == {"levels": ["fast"], "passes": 24, "judged": 200, "share": 0.12}
    bad, good = board["rows"]
    assert (good["rank"], good["unranked"]) == (1, [])
    assert (bad["rank"], bad["unranked"]) == (None, ["converged: 12 of 70 survivors fell to doubled steps"])
    (own,) = bad["evidence"]
    assert (own["seed"], own["level"], own["share"]) == (0, "fast", 0.12)
    assert own["verdicts"][1] == {
        "check": "converged", "ruling": "fail", "text": "12 of 70 survivors fell to doubled steps",
        "numbers": {"lost": 12},
    }  # fmt: skip


def test_csv_has_the_rank_in_a_column_at_the_end(mixed):
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(mixed))))
    assert list(rows[0])[-2:] == ["rank", "fpr"]
    assert list(rows[0])[:3] == ["suite", "dataset", "model"]
    worst = {row["defense"]: row["rank"] for row in rows if row["quantity"] == "worst case"}
    assert worst == {"b|b": "", "a": "1"}


def test_routes_are_noted_and_counted(mixed):
    output = whole(printed(mixed, 120))
    assert "pgd/white-box takes every gradient route through a chain (exact and BPDA per stage, prefixes" in output
    assert "pgd/white-box on b|b: the chain is too long to enumerate: 2 routes were tried." in output
    routes = evidence_grids(mixed)[-1]
    assert routes.rows[:2] == (
        ("a", "pgd, white-box, linf eps 0.2", "exact", "100", "60", "0", "0"),
        ("a", "pgd, white-box, linf eps 0.2", "classifier alone", "40", "7", "2", "5"),
    )
    # One route is no news.
    single = result_set(*row_of("a", 5, routes={"exact": {"tried": 9, "fell": 1, "cut": 0}}))
    assert "route" not in whole(printed(single, 120))


def test_counts_of_routes_are_summed_over_seeds_and_strange_ones_do_no_harm():
    routes = {"exact": {"tried": 3, "fell": 1, "cut": 0}, "\x1b[31m": {"tried": "x", "fell": None}, "odd": 7}
    results = result_set(*row_of("a", 5, seeds=(0, 1), routes=routes))
    assert evidence_grids(results)[-1].rows[0][3:] == ("6", "2", "0", "0")
    assert "\x1b" not in printed(results, 80, terminal.print_evidence)


def test_show_evidence_prints_verdicts_in_every_format(mixed, tmp_path):
    write_results(tmp_path / "x", mixed)
    done = show("x", "--evidence", "--width", "80", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a, valid: pass: so it is" in done.stdout
    for form in ("markdown", "latex", "html-table", "json"):
        done = show("x", "--evidence", "--format", form, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "12 of 70 survivors" in done.stdout
    rows = list(csv.reader(io.StringIO(show("x", "--evidence", "--format", "csv", cwd=tmp_path).stdout)))
    assert rows[0] == ["Estimate", "Level", "Check", "Ruling", "Words"]
    assert rows[4][2:4] == ["converged", "fail"]
    both = show("x", "--evidence", "--cost", "--format", "csv", cwd=tmp_path)
    assert both.returncode == 2
    assert "--cost or --evidence" in both.stderr


def test_show_evidence_without_any_says_so(tmp_path):
    write_results(tmp_path / "x", result_set(*row_of("a", 5)))
    done = show("x", "--evidence", cwd=tmp_path)
    assert done.returncode == 0
    assert f"There is no verdict: {NO_EVIDENCE}." in done.stdout


def test_the_gravest_ruling_over_seeds_stands_in_the_grid_with_its_seeds():
    records = row_of("a", 5, seeds=(0, 1, 2))
    found = [evidence("a", verdict("reach", ruling), seed=seed) for seed, ruling in enumerate(("pass", "fail", "pass"))]
    (grid, *_) = evidence_grids(judged(*records, evidence=found))
    assert grid.rows[0][1] == "fail (seed 1)"
    assert grid.rows[0][2] == "36 (12 %)"


def test_sweeps_say_no_rank_and_call_only_ranked_ones_best():
    names = {"a": 30, "b": 60}
    records = [own for eps in (0.1, 0.2) for name, white in names.items() for own in row_of(name, white, eps=eps)]
    records = list({own.cell: own for own in records}.values())
    found = [
        evidence(name, verdict("live", "pass" if name == "a" else "fail"), eps=eps)
        for name in names
        for eps in (0.1, 0.2)
    ]
    results = judged(*records, evidence=found)
    output = printed(results, 100, terminal.print_sweeps)
    assert output.count("no rank") >= 2
    assert "b has no rank at linf eps 0.1: live: so it is." in whole(output)
    assert "no rank" in markdown_report(results).split("## Each eps")[0]


HOSTILE = ["\x1b[31mred", "a|b", "<script>", "[bold]x", "=1+1", "\u202egnp", "a\nb"]


@pytest.mark.parametrize("evil", HOSTILE)
def test_foreign_text_in_verdicts_does_nothing(evil, tmp_path):
    found = [evidence("a", verdict(evil, "fail", evil))]
    results = judged(*row_of("a", 5, routes={evil: {"tried": 1}, "x": {}}), evidence=found)
    for output in (
        printed(results, 80),
        printed(results, 80, terminal.print_evidence),
        markdown_report(results),
        leaderboard_json(results),
    ):
        assert all(c == "\n" or c.isprintable() for c in output)
    assert "<script>" not in markdown_report(results)
    write_results(tmp_path / "x", results)
    text = aubench("show", tmp_path / "x", "--evidence", "--format", "csv").out
    assert not any(field[:1] in set("=+-@") and field != "-" for row in csv.reader(io.StringIO(text)) for field in row)


# -- gain -------------------------------------------------------------------------------------------------------------


def test_gain_is_the_paired_difference_to_the_defense_without_stages():
    records = [*row_of("none", 20, stages=0), *row_of("a", 60), *row_of("b", 22), *row_of("c", 5)]
    rows = rows_of(result_set(*records))
    value, low, high = paired_difference(40, 0, 100)
    gain = rows["a"].gain
    assert (gain.over, gain.value, gain.low, gain.high, gain.n) == ("none", value, low, high, 100)
    assert rows["a"].labels == (f"gain +0.40 [{low:.2f}, {high:.2f}] over none",)
    assert rows["b"].labels == ("no gain measured",)
    assert rows["c"].labels[0].startswith("loss -0.15 [-0.")
    assert (rows["none"].gain, rows["none"].labels) == (None, ())


def test_gain_is_found_by_the_stages_never_by_the_name():
    rows = rows_of(result_set(*row_of("none", 20), *row_of("bare", 10, stages=0)))
    assert rows["none"].gain.over == "bare"
    assert rows["bare"].gain is None
    assert rows_of(result_set(*row_of("none", 20), *row_of("a", 10)))["a"].gain is None


def test_gain_takes_common_images_and_needs_the_same_seeds():
    one = row_of("none", 20, stages=0)
    clean, white = row_of("a", 60)
    half = record(white.cell, range(30), range(50), size=100, strong=True)
    gain = rows_of(result_set(*one, clean, half))["a"].gain
    assert (gain.n, gain.value) == (50, 0.2)
    both = rows_of(result_set(*row_of("none", 20, stages=0, seeds=(0, 1)), *row_of("a", 60)))
    assert both["a"].gain is None
    seeds = rows_of(result_set(*row_of("none", 20, stages=0, seeds=(0, 1)), *row_of("a", 60, seeds=(0, 1))))
    assert seeds["a"].gain.seeds == (0, 1)


def test_gain_of_a_stochastic_defense_takes_its_share_of_draws():
    none = row_of("none", 0, stages=0, size=10)
    noise = [drawn(cell("noise"), [20] * 10), drawn(cell("noise", "pgd", WHITE), [10] * 10)]
    assert rows_of(result_set(*none, *noise))["noise"].gain.value == pytest.approx(0.5)


def test_a_gain_keeps_digits_until_its_interval_leaves_zero_out():
    own = Gain(over="none", value=0.004, low=0.001, high=0.007, n=10_000, seeds=(0,))
    assert gain_words(own) == "gain +0.004 [0.001, 0.007] over none"
    assert gain_words(replace(own, value=-0.3, low=-0.31, high=-0.29)) == "loss -0.30 [-0.31, -0.29] over none"


def test_the_sign_of_a_number_is_never_left_behind():
    from autoshield_bench.reporting.layout import fold

    assert fold("loss -0.15 [-0.22, -0.08] over none", 12) == ["loss -0.15", "[-0.22,", "-0.08] over", "none"]
