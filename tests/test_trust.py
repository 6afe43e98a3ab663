"""What is refused: files that are not what they seem, names that lead elsewhere, and text that asks for too much."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from builders import cell, evidence, record, result_set, write_results

from autoshield_bench.errors import StoreError, SuiteError
from autoshield_bench.plain_files import LONGEST_NAME, name_problem, read_plain
from autoshield_bench.results import CellId, cell_path, load_results, read_record, samples_path
from autoshield_bench.store import content_key, read_json, write_sealed
from autoshield_bench.strict_json import MAX_DEPTH, parse_json
from autoshield_bench.suite_file import SuiteDocument
from autoshield_bench.verdicts import EvidenceId, evidence_path, read_evidence

PLACES = (
    "plan.json",
    "cells/none/clean-{key}.json",
    "cells/more.json",
    "evidence/none/linf-0.2-{judged}.json",
    "samples/{key}.safetensors",
    "env/x.json",
    "journal/host-1-20260101T000000Z.jsonl",
    "derived/leaderboard.json",
    "notes",
)


@pytest.fixture
def results(tmp_path):
    directory = tmp_path / "results" / "mnist"
    clean, attacked = record(cell("none"), [1, 2]), record(cell("none", "pgd", "white-box"), [1])
    write_results(directory, result_set(clean, attacked, evidence=(evidence("none"),), evidence_level="fast"))
    return directory


def place(results: Path, name: str) -> Path:
    key, judged = content_key({"cell": str(cell("none"))})[:12], evidence("none").key[:12]
    path = results / name.format(key=key, judged=judged)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def make_odd(kind: str, path: Path, elsewhere: Path) -> None:
    """Put something there that is no plain file."""
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "dangling link":
        path.symlink_to(elsewhere / "nothing")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        here = Path.cwd()
        os.chdir(path.parent)  # the address of a socket is short
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        finally:
            os.chdir(here)


def aubench(*arguments: object, cwd: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run the command, which must not wait for whoever may never write into a pipe."""
    command = [sys.executable, "-m", "autoshield_bench", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "socket"])
@pytest.mark.parametrize("name", PLACES)
def test_results_that_hold_anything_but_plain_files_are_refused(results, tmp_path, kind, name):
    path = place(results, name)
    make_odd(kind, path, tmp_path)
    with pytest.raises(StoreError, match="not a plain file but a") as caught:
        load_results(results)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_in_the_results_that_leads_elsewhere_is_refused(results, tmp_path):
    (results / "cells").rename(tmp_path / "cells")
    (results / "cells").symlink_to(tmp_path / "cells")
    with pytest.raises(StoreError, match="symbolic link"):
        load_results(results)


@pytest.mark.parametrize("kind", ["cell", "evidence"])
def test_a_machine_record_outside_the_results_is_none_of_theirs(results, kind):
    if kind == "cell":
        path, value, read = place(results, "cells/none/clean-{key}.json"), record(cell("none"), [1, 2]), read_record
    else:
        value, read = evidence("none"), read_evidence
        path = results / evidence_path(value.key, value.where)
    write_sealed(path, {**value.to_json(), "env": "../../secret"})
    with pytest.raises(StoreError, match="leads out of its directory") as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_results_may_be_named_through_a_link(results, tmp_path):
    (tmp_path / "other").symlink_to(results)
    assert len(load_results(tmp_path / "other")) == 2


@pytest.mark.parametrize("command", ["show", "compare", "export"])
def test_no_command_waits_for_a_pipe_in_the_results(results, command):
    make_odd("pipe", place(results, "journal/host-1-20260101T000000Z.jsonl"), results)
    more = {"show": ["--cost"], "compare": [results], "export": []}[command]
    done = aubench(command, results, *more, cwd=results.parent.parent)
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert "a named pipe; remove it" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["plan", "run"])
def test_neither_plan_nor_run_opens_what_is_no_plain_file(tmp_path, command):
    (tmp_path / "tiny.toml").write_text(SUITE, encoding="utf-8")
    journal = tmp_path / "results" / "tiny-limit10" / "journal"
    journal.mkdir(parents=True)
    os.mkfifo(journal / "host-1-20260101T000000Z.jsonl")
    done = aubench(command, "tiny.toml", "--limit", 10, "--cache-dir", "cache", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert "a named pipe; remove it" in done.stderr
    assert list((tmp_path / "results").rglob("*.json")) == []


SUITE = """\
schema = 1
name = "tiny"
dataset.use = "digits"
model.use = "small-cnn"
threats = [{ norm = "linf", eps = 0.1 }]
defenses = [{ use = "none" }]
attacks = [{ use = "fgsm", access = "white-box" }]
"""


def test_a_file_is_read_no_further_than_its_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_plain(path, 5) == b"12345"
    with pytest.raises(StoreError, match="larger than 4 bytes"):
        read_plain(path, 4)
    with pytest.raises(StoreError, match="No such file"):
        read_plain(tmp_path / "none", 4)
    with pytest.raises(StoreError, match="null"):
        read_plain(tmp_path / "a\0b", 4)


# -- names ------------------------------------------------------------------------------------------------------------

BAD_NAMES = [
    "", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "a\0b", ".hidden",
    "x" * (LONGEST_NAME + 1), "é" * LONGEST_NAME,
    "con", "NUL", "Com1", "lpt9.json", "aux .txt", "name.", "name ", "a\x1b[2Jb", "a\nb",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leads_elsewhere_is_none_of_a_file(name):
    assert name_problem(name) is not None
    with pytest.raises(StoreError):
        cell_path("0" * 64, CellId(dataset="d", model="m", defense=name, seed=0))
    with pytest.raises(StoreError):
        evidence_path("0" * 64, EvidenceId(dataset="d", model="m", defense=name, seed=0, norm="linf", eps=0.1))


@pytest.mark.parametrize("name", ["a", "mnist-limit40", "a.b", "constant", "com10", "pgd + 40", "x" * LONGEST_NAME])
def test_an_ordinary_name_is_one(name):
    assert name_problem(name) is None


def test_a_key_that_leads_elsewhere_names_no_file():
    where = CellId(dataset="d", model="m", defense="none", seed=0)
    for path in (lambda key: cell_path(key, where), samples_path):
        with pytest.raises(StoreError, match="leads out of its directory"):
            path("/../../../x")


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name])
@pytest.mark.parametrize("field", ["defense", "attack"])
def test_a_plan_that_names_files_elsewhere_is_refused(results, tmp_path, name, field):
    plan = read_json(results / "plan.json")
    plan["cells"][1]["cell"][field] = name
    plan.pop("sha256", None)
    (results / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(StoreError) as caught:
        load_results(results)
    assert str(results / "plan.json") in str(caught.value)


def test_a_plan_whose_suite_was_changed_by_hand_is_refused(results):
    plan = read_json(results / "plan.json")
    load_results(results)
    plan["suite"]["seeds"] = [1]
    (results / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(StoreError, match=r"plan\.json: suite_sha256 is not that of the suite beside it"):
        load_results(results)


@pytest.mark.parametrize(
    "line",
    [
        'name = "con"',
        'name = "nul.2026"',
        'name = "name."',
        'name = "tiny"\ndefenses = [{ use = "none", label = "COM1" }]',
        'name = "tiny"\ndefenses = [{ use = "none", label = "dots." }]',
        'name = "tiny"\ndefenses = [{ use = "aux" }]',
    ],
)
def test_a_suite_takes_only_names_that_every_system_can_store(line):
    text = SUITE.replace('name = "tiny"', line)
    if "defenses" in line:
        text = text.replace('defenses = [{ use = "none" }]\n', "")
    with pytest.raises(SuiteError, match=r"Windows.*directories are named after it; give another"):
        SuiteDocument.parse(text, Path("s.toml")).suite()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "tiny"', f'name = "tiny"\nseeds = {list(range(1001))}', "1001 are too many; give at most 1000"),
        ("eps = 0.1", f"eps = {[i / 2000 for i in range(1001)]}", "1001 are too many"),
        ('name = "tiny"', f'name = "tiny"\ndescription = "{"x" * 10_001}"', "give at most 10,000 characters"),
    ],
)
def test_a_suite_that_asks_for_too_much_is_refused_before_anything_is_planned(old, new, words):
    with pytest.raises(SuiteError, match=words):
        SuiteDocument.parse(SUITE.replace(old, new), Path("s.toml")).suite()


def test_a_suite_of_a_million_cells_is_refused():
    text = SUITE.replace('"tiny"', f'"tiny"\nseeds = {list(range(1000))}')
    text = text.replace("eps = 0.1", f"eps = {[i / 2000 for i in range(1000)]}")
    with pytest.raises(SuiteError) as caught:
        SuiteDocument.parse(text, Path("s.toml")).suite()
    message = "s.toml: asks for 1,001,000 cells; split it into suites of at most 100,000"
    assert caught.value.problems == (message,)


# -- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested more than 64 levels deep"),
        ('{"a":' * 1_000_000, "nested more than 64 levels deep"),
        ('{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', "key 'c' stands twice"),
        ("[1e999]", "beyond every number"),
        ("[-1e999]", "beyond every number"),
        ("[NaN]", "NaN is not a JSON value"),
        (f"[{'9' * 5000}]", "more than 64 bits"),
        ("[18446744073709551616]", "more than 64 bits"),
        (r'["\ud800"]', "half of a surrogate pair"),
        (r'{"\udfff": 1}', "half of a surrogate pair"),
        ('\ufeff{"a": 1}', "BOM"),
        ('{"a": "\0"}', "control character"),
        ('{"a": 1}{', "Extra data"),
    ],
)
def test_json_that_only_python_would_read_is_refused(text, words):
    with pytest.raises(ValueError, match="(?i)" + words):
        parse_json(text)


def test_json_that_is_sound_is_read():
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(deep)) == deep
    text = r'{"brackets": "[[[\"{{{\\", "pair": "\ud83d\ude00", "number": -9223372036854775808, "float": 1e300}'
    assert parse_json(text) == json.loads(text)
