"""What reports show, in every format, and that no name or message does anything there."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from builders import cell, metric, record, result_set, write_results

from autoshield_bench.reporting import console as terminal
from autoshield_bench.reporting import text
from autoshield_bench.reporting.cost import read_timings
from autoshield_bench.reporting.derived import leaderboard_json, markdown_report
from autoshield_bench.reporting.layout import fold
from autoshield_bench.reporting.tables import all_grids, grid_csv, leaderboard_csv, markup_text

GRAY, WHITE = "gray-box", "white-box"

HOSTILE = [
    "[bold]x", "\x1b[31mred", "a|b", "=cmd()", "<script>alert(1)</script>", "$x_1$", "\u202egnp", "-1+2", "a\nb", "\\",
    "`code`", "[link](http://x.y)", "![i](x)", "**b**", "&amp;", "%c #d {e} ~f ^g", "\x9b2J", "\u200b", "@x", "\ud800",
    "[/bold]", ":smile:", "tail\\", "\x07", "www.x.org", "--", "* x", "- x", "1. x", "2) x", "    x",
]  # fmt: skip


def sample(*, seeds=(0,), eps=(0.2,), defenses=("none", "autoencoder", "stacked-autoencoder"), size=10, **fields):
    def quality(value):
        pairs = {"clean-adversarial": value, "clean-purified": value}
        return {
            "psnr": metric(pairs, n=size, unit="dB", notes="data range 1"),
            "lpips": metric(None, direction="lower", unavailable="backbone is not here; set AUBENCH_WEIGHTS"),
        }

    records = [
        own
        for rank, name in enumerate(defenses)
        for seed in seeds
        for own in [
            record(cell(name, seed=seed), range(size), size=size, metrics=quality(20.5 if rank else None)),
            *(
                record(
                    cell(name, attack, access, eps=radius, seed=seed),
                    range(rank + seed + (3 if access == GRAY else 0)),
                    size=size,
                    metrics=quality(15.25),
                    passes={"attack": {"classifier": {"forward": 40_000_000}}},
                )
                for radius in eps
                for attack in ("fgsm", "pgd")
                for access in (GRAY, WHITE)
            ),
        ]
    ]
    return result_set(*records, **fields)


def printed(results, width, show=terminal.print_leaderboards):
    stream = io.StringIO()
    show(results, terminal.console_for(stream, width))
    return stream.getvalue()


def whole(output):
    return " ".join(output.split())


# --- console -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_console_cuts_no_number_at_any_width(width, seeds):
    output = printed(sample(seeds=seeds, size=10_000), width)
    assert max(map(len, output.splitlines())) <= width
    assert "…" not in output
    for words in ("n=10000", "0.000", "20.50", "15.25", "160M" if len(seeds) == 1 else "480M", "undefined"):
        assert words in output


def test_console_fits_four_attack_columns_in_one_table_at_100_columns():
    output = printed(sample(size=10_000), 100)
    header = next(line for line in output.splitlines() if line.startswith("defense"))
    assert header.count("n=10000") == 7
    assert "gray-box" in output
    assert "(oblivious)" in output


def test_console_answers_first_and_explains_below():
    output = printed(sample(), 120)
    assert output.index("stacked-autoencoder") < output.index("autoencoder\n" if "autoencoder\n" in output else "none")
    assert output.strip().splitlines()[0] == "mnist · small-cnn · linf eps 0.2 · 10 test images · seed 0"
    for words in ("upper bound: ", "gray-box (oblivious): ", "Worst case: ", "Wilson interval", "AUBENCH_WEIGHTS"):
        assert words in whole(output)


def test_different_n_within_a_column_stand_in_the_cells():
    records = list(sample(defenses=("a", "b")))
    records[3] = record(records[3].cell, range(2), range(4))
    output = printed(result_set(*records), 120)
    assert "n=4" in output
    assert "n=10" in output


def test_failed_and_missing_cells_are_listed():
    *records, last = sample()
    failed = record(last.cell, error="outside the ball:\nby 0.1")
    output = printed(result_set(*records[:-1], failed, missing=[records[-1].cell]), 200)
    assert (
        "failed: mnist/small-cnn/stacked-autoencoder/pgd/white-box/linf-0.2/seed-0: outside the ball: by 0.1" in output
    )
    assert "missing: mnist/small-cnn/stacked-autoencoder/pgd/gray-box/linf-0.2/seed-0" in output
    assert "incomplete" in output


def test_sweep_shows_defenses_by_eps_with_the_worst_case_first():
    output = printed(sample(eps=(0.3, 0.1)), 120, terminal.print_sweeps)
    assert output.index("Worst case (upper bound), by eps") < output.index("pgd, white-box, by eps")
    header = next(line for line in output.splitlines() if "eps 0.1" in line)
    assert header.index("eps 0.1") < header.index("eps 0.3")


def test_nothing_at_all_is_said_so():
    assert "nothing to show" in printed(result_set(), 100)
    assert "nothing to show" in printed(sample(), 100, terminal.print_sweeps)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0"), (999, "999"), (1000, "1k"), (40_400_000, "40.4M"), (999_999, "1M")]
)
def test_compact_counts(count, shown):
    assert terminal.compact(count) == shown


def test_fold_breaks_at_hyphens_and_loses_nothing():
    assert fold("stacked-autoencoder", 12) == ["stacked-", "autoencoder"]
    assert "".join(fold("x" * 30, 7)) == "x" * 30
    assert fold("", 5) == [""]


# --- hostile text ------------------------------------------------------------------------------------------------


def hostile(name):
    metrics = {name: metric({"clean-purified": 1.0}, notes=name, unit=name), f"{name}2": metric(None, unavailable=name)}
    return result_set(
        record(cell(name, model=name, dataset=name), [1], metrics=metrics, facts={"trained_on": name}),
        record(cell(name, name, WHITE, model=name, dataset=name), [1], metrics=metrics),
        record(cell("other", name, GRAY, model=name, dataset=name), error=name),
        missing=[cell("other", model=name, dataset=name)],
        damaged=(name,),
        name=name,
    )


def harmless(output):
    return all(c == "\n" or c.isprintable() for c in output)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("width", [60, 160])
def test_console_shows_names_as_they_are(name, width):
    results = hostile(name)
    output = printed(results, width)
    assert harmless(output)
    assert text.visible(name).strip() in whole(output) or len(name) > 12
    assert harmless(printed(results, width, lambda own, console: terminal.print_cost(own, {}, console)))


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_renders_names_as_text_inside_their_cells(name):
    from rich.markdown import Markdown

    results = hostile(name)
    for output in (markdown_report(results), markup_text(results, "markdown", all_grids(results))):
        assert harmless(output)
        assert "://" not in output
        assert "www." not in output
        tokens = Markdown(output).parsed
        inline = [token for token in tokens if token.type == "inline"]
        kinds = {child.type for token in inline for child in token.children}
        assert kinds <= {"text", "text_special"}
        assert {token.type for token in tokens if token.nesting >= 0} <= {
            "inline", "heading_open", "paragraph_open", "bullet_list_open", "list_item_open",
            "table_open", "thead_open", "tbody_open", "tr_open", "th_open", "td_open",
        }  # fmt: skip
        shown = ["".join(child.content for child in token.children) for token in inline]
        assert text.visible(name).strip() in shown


@pytest.mark.parametrize("name", HOSTILE)
def test_html_has_no_tags_but_its_own(name):
    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.text = set(), []

        def handle_starttag(self, tag, attrs):
            self.tags.add(tag)

        def handle_data(self, data):
            self.text.append(data)

    parser = Tags()
    output = markup_text(hostile(name), "html", all_grids(hostile(name)))
    parser.feed(output)
    assert harmless(output)
    assert parser.tags <= {"h3", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert text.visible(name).strip() in "".join(parser.text)


@pytest.mark.parametrize("name", HOSTILE)
def test_latex_holds_no_command_but_its_own(name):
    output = markup_text(hostile(name), "latex", all_grids(hostile(name)))
    assert harmless(output)
    bare = output
    for own in text._LATEX.values():
        bare = bare.replace(own, "")
    for line in bare.splitlines():
        if not line.startswith(("%", "\\")):
            assert not set(line.removesuffix("\\\\")) & set("\\%$#_{}~^")
            assert not line.lstrip().startswith(("[", "*")) or name.startswith("[")


@pytest.mark.parametrize("name", HOSTILE)
def test_csv_starts_no_formula(name):
    for output in (leaderboard_csv(hostile(name)), *(grid_csv(grid) for grid in all_grids(hostile(name)))):
        rows = list(csv.reader(io.StringIO(output)))
        assert len({len(row) for row in rows}) == 1
        for field in (field for row in rows for field in row):
            assert harmless(field)
            assert field == "-" or field[:1] not in set("=+-@\t\r")


@pytest.mark.parametrize("name", HOSTILE)
def test_json_is_ascii_and_gives_the_name_back(name):
    output = leaderboard_json(hostile(name))
    assert output.isascii()
    assert harmless(output)
    assert json.loads(output)["suite"] == name


def test_full_width_and_late_formula_signs_are_defused():
    assert text.csv_field("\t=1+1") == "'\\x09=1+1"
    assert text.csv_field("  =1") == "'  =1"
    assert text.csv_field("＝1") == "'＝1"
    assert text.csv_field("pgd-40") == "pgd-40"


def test_rich_markup_is_escaped_for_progress_bars():
    from rich.text import Text

    for name in HOSTILE:
        assert Text.from_markup(f"[b]{text.rich_markup(name)}[/b]", emoji=False).plain == text.visible(name)


def test_messages_are_one_line_of_bounded_length():
    shown = text.message("a\nb" + "x" * 1000)
    assert shown.startswith("a b")
    assert len(shown) == text.LONGEST_MESSAGE


# --- other formats -----------------------------------------------------------------------------------------------


def test_markdown_report_is_complete_and_deterministic():
    results = sample(eps=(0.1, 0.2))
    report = markdown_report(results)
    assert report == markdown_report(results)
    for words in (
        "# mnist: leaderboard", "## Defenses by eps", "gray-box (oblivious)", "0.200 [0.057, 0.510] n=10", "undefined",
        "unavailable", "set AUBENCH\\_WEIGHTS", "data range 1", "upper bound", "lpips: lower is better",
    ):  # fmt: skip
        assert words in report
    assert "nan" not in report.lower().split()
    assert str(results.directory) not in markdown_report(
        result_set(damaged=(f"{results.directory}/cells/x.json: bad",))
    )


def test_seeds_show_their_spread():
    report = markdown_report(sample(seeds=(0, 1)))
    assert "sd 0.071 over 2 seeds" in report
    assert "n counts images per seed" in report


def test_csv_holds_every_figure_as_a_number():
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(sample()))))
    worst = [row for row in rows if row["quantity"] == "worst case"]
    assert [row["defense"] for row in worst] == ["stacked-autoencoder", "autoencoder", "none"]
    assert float(worst[0]["value"]) == 0.2
    assert worst[0]["labels"] == "upper bound"
    undefined = [row for row in rows if row["quantity"] == "psnr" and row["state"] == "undefined"]
    assert len(undefined) == 1
    assert undefined[0]["value"] == ""


def test_json_states_what_is_not_a_number():
    value = json.loads(leaderboard_json(sample()))
    row = value["leaderboards"][0]["rows"][-1]
    assert row["quality"]["psnr"]["clean"]["state"] == "undefined"
    assert row["quality"]["psnr"]["clean"]["value"] is None
    assert row["quality"]["lpips"]["before"]["state"] == "unavailable"
    assert row["attacks"][0]["robust_accuracy"]["n"] == 10


# --- aubench show ------------------------------------------------------------------------------------------------

SHOW = """
import argparse, sys
from autoshield_bench.cli import show
from autoshield_bench.errors import AubenchError
parser = argparse.ArgumentParser()
show.add_parser(parser.add_subparsers())
args = parser.parse_args(["show", *sys.argv[1:]])
try:
    code = args.handler(args)
except AubenchError as error:
    print(f"error: {error}", file=sys.stderr)
    code = error.exit_code
heavy = {"torch", "numpy", "pydantic"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


def show(*arguments, cwd, **env):
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONUTF8": "1", **env}
    environment.pop("COLUMNS", None)
    return subprocess.run(
        [sys.executable, "-c", SHOW, *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", cwd=cwd, env=environment, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def on_disk(tmp_path):
    write_results(tmp_path / "results" / "mnist", sample(eps=(0.1, 0.2)))
    return tmp_path


def test_show_finds_a_suite_by_name_and_imports_nothing_heavy(on_disk):
    done = show("mnist", cwd=on_disk)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Worst case (upper bound), by eps" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize("form", ["markdown", "latex", "csv", "json", "html-table"])
def test_show_prints_every_format(on_disk, form):
    done = show("results/mnist", "--format", form, "--view", "leaderboard", "--cost", cwd=on_disk)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stacked-autoencoder" in done.stdout


def test_show_json_is_one_value(on_disk):
    done = show("mnist", "--json", "--cost", cwd=on_disk)
    value = json.loads(done.stdout)
    assert [board["eps"] for board in value["leaderboards"]] == [0.1, 0.2]
    assert value["cost"][1]["passes"]["attack"]["classifier"]["forward"] == 40_000_000


def test_show_lists_failed_cells_and_exits_1(tmp_path):
    *records, last = sample()
    write_results(tmp_path / "x", result_set(*records, record(last.cell, error="shape [3] instead of [4]")))
    done = show("x", "--width", "200", cwd=tmp_path)
    assert done.returncode == 1
    assert "failed: mnist/small-cnn/stacked-autoencoder/pgd/white-box/linf-0.2/seed-0: shape [3]" in done.stdout


def test_show_warns_of_damage_exits_3_and_claims_no_worst_case(tmp_path):
    results = sample(defenses=("autoencoder",))
    write_results(tmp_path / "x", results)
    damaged = next((tmp_path / "x" / "cells").glob("*/pgd-white-box-*.json"))
    damaged.write_text("{", encoding="utf-8")
    done = show("x", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("warning: ")
    assert damaged.name in done.stderr
    row = json.loads(done.stdout)["leaderboards"][0]["rows"][0]
    assert row["worst_case"] is None
    assert row["labels"] == ["incomplete: pgd/white-box missing"]


def test_show_without_results_says_where_it_looked(on_disk):
    done = show("mnits", cwd=on_disk)
    assert done.returncode == 2
    assert "results/mnits" in done.stderr
    assert 'did you mean "mnist"?' in done.stderr
    (on_disk / "empty").mkdir()
    assert show("empty", cwd=on_disk).returncode == 3


def test_show_cost_reads_the_journal(on_disk):
    journal = on_disk / "results" / "mnist" / "journal"
    journal.mkdir()
    name = "mnist/small-cnn/none/pgd/white-box/linf-0.1/seed-0"
    event = {"event": "cell", "cell": name, "stage": "attack", "seconds": 2.0, "images": 10}
    lines = [json.dumps(event), json.dumps({**event, "seconds": 4.0}), '{"event": "cell", "ce', "[]", json.dumps({})]
    (journal / "host-1-20250101T000000Z.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (journal / "host-1-20240101T000000Z.jsonl").write_text(json.dumps({**event, "seconds": 9.0}), encoding="utf-8")
    assert read_timings(journal.parent)[name]["attack"].seconds == 4.0
    done = show("mnist", "--cost", "--width", "160", cwd=on_disk)
    line = next(line for line in done.stdout.splitlines() if line.startswith(name) and "4.00" in line)
    assert line.split()[-2:] == ["4.00", "2"]


def test_show_survives_a_terminal_that_knows_no_unicode(on_disk):
    done = show("mnist", cwd=on_disk, PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.isascii()


@pytest.mark.parametrize("width", ["5", "x", "1e3", "99999999"])
def test_show_refuses_a_width_that_is_none(on_disk, width):
    done = show("mnist", "--width", width, cwd=on_disk)
    assert done.returncode == 2
    assert "--width" in done.stderr
