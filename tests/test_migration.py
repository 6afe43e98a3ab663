"""Results outlive their program: old ones are read, newer ones are refused, and no schema changes unseen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from builders import cell, detection, evidence, record, result_set, write_results
from test_run import FGSM, go, suite

from autoshield_bench.cli.main import main
from autoshield_bench.errors import NewerSchemaError, StoreError
from autoshield_bench.migration import CELL, ENV, EVIDENCE, PLAN, Schema
from autoshield_bench.results import cell_path, load_results, read_record, write_record
from autoshield_bench.store import read_json, write_json, write_sealed
from autoshield_bench.verdicts import evidence_path, read_evidence, write_evidence
from autoshield_bench.version import __version__

ROOT = Path(__file__).parents[1]
FROZEN = Path(__file__).parent / "data" / "records"
SCHEMAS = {schema.name.partition(".")[2]: schema for schema in (CELL, EVIDENCE, PLAN, ENV)}
VERSIONS = [(kind, version) for kind, schema in SCHEMAS.items() for version in range(1, schema.version + 1)]


def frozen(kind: str, version: int) -> Path:
    return FROZEN / f"{kind}-{version}.json"


# -- what was written once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "version"), VERSIONS)
def test_one_frozen_file_of_every_version_is_read_as_the_current(kind, version):
    path = frozen(kind, version)
    assert read_json(path)["schema"] == f"aubench.{kind}/{version}"
    value = SCHEMAS[kind].read(path)
    assert value["schema"] == SCHEMAS[kind].current
    assert "sha256" not in value


@pytest.mark.parametrize("kind", ["cell", "evidence"])
def test_what_is_written_today_has_the_frozen_form_of_its_version(kind, tmp_path):
    """A field that is added or renamed needs a new version, its step and its frozen file: this is what notices."""
    path = frozen(kind, SCHEMAS[kind].version)
    if kind == "cell":
        own = read_record(path)
        write_record(tmp_path, own)
        again = tmp_path / cell_path(own.key, own.cell)
    else:
        judged = read_evidence(path)
        write_evidence(tmp_path, judged)
        again = tmp_path / evidence_path(judged.key, judged.where)
    assert again.read_bytes() == path.read_bytes()


def test_an_early_record_says_what_it_said_and_no_more():
    old, new = read_json(frozen("cell", 1)), read_record(frozen("cell", 1))
    assert "fpr" not in old["cell"]
    assert "detection" not in old
    assert (new.cell.fpr, new.detection, new.numeric_class, new.samples) == (None, None, "", "")
    assert new.key == old["key"]
    assert new.facts == old["facts"]
    assert new.outcomes.to_json() == old["outcomes"]


def test_a_detector_of_version_1_has_no_joint_game_by_draws(tmp_path):
    own = record(cell("autoencoder"), range(9), detection=detection({"0.01": [1]}))
    value = own.to_json() | {"schema": "aubench.cell/1"}
    del value["detection"]["won"], value["numeric_class"], value["samples"]
    write_json(tmp_path / "x.json", value)
    assert read_record(tmp_path / "x.json") == own


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_step_changes_a_copy(kind):
    value = read_json(frozen(kind, 1))
    before = json.dumps(value)
    assert SCHEMAS[kind].migrated(value, 1) == SCHEMAS[kind].migrated(value, 1)
    assert json.dumps(value) == before


def test_steps_are_taken_in_turn(tmp_path):
    schema = Schema("aubench.cell", (lambda old: {**old, "b": old["a"] + 1}, lambda old: {**old, "c": old["b"] + 1}))
    for version, given in ((1, {"a": 1}), (2, {"a": 1, "b": 2}), (3, {"a": 1, "b": 2, "c": 3})):
        write_json(tmp_path / "x.json", {"schema": f"aubench.cell/{version}", **given})
        assert schema.read(tmp_path / "x.json") == {"schema": "aubench.cell/3", "a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("name", ["mnist", "mnist-sweep", "cross-library"])
def test_committed_results_of_any_age_are_shown(name, capsys):
    assert main(["show", str(ROOT / "results" / name), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_old_records_are_left_as_they_are(tmp_path, capsys):
    shutil.copytree(ROOT / "results" / "mnist", tmp_path / "mnist")
    before = {path: path.read_bytes() for path in (tmp_path / "mnist").rglob("*.json")}
    assert main(["show", str(tmp_path / "mnist")]) == 0
    assert {path: path.read_bytes() for path in before} == before


# -- what is newer than this program ----------------------------------------------------------------------------------


def newer(path: Path, schema: Schema) -> None:
    write_json(path, {**read_json(path), "schema": f"{schema.name}/{schema.version + 1}"})


@pytest.mark.parametrize("kind", ["cell", "evidence", "plan"])
@pytest.mark.parametrize("command", ["show", "compare"])
def test_results_of_a_newer_release_are_refused_in_one_line(tmp_path, capsys, kind, command):
    clean, judged = record(cell("none"), range(9)), evidence("none")
    write_results(tmp_path, result_set(clean, evidence=(judged,), evidence_level="fast"))
    path = (
        tmp_path
        / {
            "cell": cell_path(clean.key, clean.cell),
            "evidence": evidence_path(judged.key, judged.where),
            "plan": "plan.json",
        }[kind]
    )
    newer(path, SCHEMAS[kind])
    before = path.read_bytes()
    assert main([command, str(tmp_path), *([str(tmp_path)] if command == "compare" else [])]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ")
    for word in (f"aubench.{kind}/3", f"aubench.{kind}/2", __version__, "pip install --upgrade"):
        assert word in line
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["cell", "plan"])
def test_a_run_overwrites_nothing_of_a_newer_release(tmp_path, kind):
    path = suite(tmp_path, FGSM)
    results, _ = go(path, tmp_path)
    own = results.records[0]
    file = results.directory / (cell_path(own.key, own.cell) if kind == "cell" else "plan.json")
    newer(file, SCHEMAS[kind])
    before = {path: path.read_bytes() for path in results.directory.rglob("*.json")}
    with pytest.raises(NewerSchemaError):
        go(path, tmp_path)
    assert {path: path.read_bytes() for path in results.directory.rglob("*.json")} == before


def test_a_newer_record_is_not_called_damaged_whatever_its_checksum(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"schema": "aubench.cell/3", "sha256": {"of": "another kind"}})
    with pytest.raises(NewerSchemaError):
        read_record(path)


NONE = [f"aubench.cell{tail}" for tail in ("", "/", "/0", "/-1", "/02", "/²", "/1 ", "/9999999")]
NONE += ["aubench.plan/1", "x" * 5000, "", None, 2, ["aubench.cell/2"]]


@pytest.mark.parametrize("schema", NONE, ids=range(len(NONE)))
def test_a_schema_that_is_none_is_refused_in_one_line(tmp_path, schema):
    path = tmp_path / "x.json"
    write_sealed(path, {**record(cell("none")).to_json(), "schema": schema})
    with pytest.raises(StoreError, match=r"'aubench\.cell/2' belongs") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("change", [{"cell": None}, {"cell": []}, {"detection": [1]}, {"detection": 0}])
def test_an_old_record_that_does_not_fit_is_refused_in_one_line(tmp_path, change):
    path = tmp_path / "x.json"
    write_json(path, {**read_json(frozen("cell", 1)), **change})
    with pytest.raises(StoreError, match=r"x\.json: not what aubench\.cell/1 says"):
        read_record(path)


def test_a_number_beyond_all_numbers_is_refused_in_one_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(frozen("cell", 2).read_text(encoding="utf-8").replace("0.2,", "1e999,", 1), encoding="utf-8")
    with pytest.raises(StoreError) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


def test_a_plan_without_its_suite_is_refused(tmp_path):
    value = read_json(frozen("plan", 1))
    del value["suite"]
    write_json(tmp_path / "plan.json", value)
    with pytest.raises(StoreError, match=r"plan\.json: not what aubench\.plan/1 says"):
        load_results(tmp_path)
