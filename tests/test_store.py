"""What every file on disk is promised to be: complete or absent, readable by anybody, and never trusted unchecked."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path

import pytest
import torch
from builders import cell, evidence, metric, record, result_set, verdict, write_results

from autoshield_bench import effects
from autoshield_bench.cli.main import main
from autoshield_bench.errors import StoreError, WriteError
from autoshield_bench.outcomes import Outcomes
from autoshield_bench.results import CellRecord, cell_path, load_results, read_record, write_record
from autoshield_bench.store import (
    ArtifactStore,
    canonical,
    content_key,
    open_sealed,
    read_json,
    results_lock,
    rounded,
    write_bytes,
    write_json,
    write_sealed,
    write_text,
)
from autoshield_bench.verdicts import evidence_path, read_evidence, write_evidence

KEY = "ab" * 32


@pytest.fixture
def warnings_of_the_store():
    """The store's warnings, whatever other tests have done to logging."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            lines.append(entry.getMessage())

    logger, collector = logging.getLogger("autoshield_bench.store"), Collector(logging.WARNING)
    logger.addHandler(collector)
    yield lines
    logger.removeHandler(collector)


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["open_new", "write", "permit", "sync", "close", "replace"])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, step, before):
    path = tmp_path / "file.json"
    if before is not None:
        path.write_bytes(before)
    real = getattr(effects, step)

    def refuse(*arguments):
        if step == "close":
            real(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(effects, step, refuse)
    with pytest.raises(WriteError, match=r"file\.json.*No space left on device"):
        write_bytes(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if before is None else ["file.json"])
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("step", ["write", "sync", "close", "replace"])
def test_an_interrupted_write_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file.json"
    write_bytes(path, b"old")
    real = getattr(effects, step)

    def interrupt(*arguments):
        if step == "close":
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(effects, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"file.json": b"old"}


def test_data_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    done: list[str] = []
    for step in ("make_directory", "write", "sync", "replace", "sync_directory"):
        real = getattr(effects, step)
        monkeypatch.setattr(effects, step, lambda *given, step=step, real=real: (done.append(step), real(*given))[1])
    write_text(tmp_path / "a" / "b" / "file", "text")
    made = ["make_directory", "sync_directory"]
    assert done == [*made, *made, "write", "sync", "replace", "sync_directory"]
    assert (tmp_path / "a" / "b" / "file").read_text(encoding="utf-8") == "text"


def test_no_descriptor_stays_open(tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(28, "No space left on device")

    store, before = ArtifactStore(tmp_path / "cache"), len(list(Path("/dev/fd").iterdir()))
    with results_lock(tmp_path / "results"):
        write_text(tmp_path / "results" / "file", "text")
        store.publish("attack", KEY, b"bytes", {})
    monkeypatch.setattr(effects, "write", refuse)
    for _time in range(3):
        with pytest.raises(WriteError):
            write_text(tmp_path / "file", "text")
        with pytest.raises(WriteError):
            store.publish("attack", KEY, b"bytes", {})
        with pytest.raises(WriteError), results_lock(tmp_path / "results"):
            pass
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_others_may_read_a_published_file(tmp_path):
    write_bytes(tmp_path / "file", b"x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_place_that_cannot_be_written_is_an_error_naming_it(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StoreError, match="file/x"):
        write_bytes(tmp_path / "file" / "x", b"")


# -- JSON -------------------------------------------------------------------------------------------------------------


def test_a_key_depends_on_content_alone():
    assert canonical({"b": [1, 2.5, None], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5,null]}'
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key([1, 2]) != content_key([2, 1])
    assert content_key({"a": 1}) != content_key({"a": 1.5})
    assert content_key("") == "12ae32cb1ec02d01eda3581b127c1fee3b0dc53572ed6baf239721a03d82e126"
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            content_key({"a": [bad]})


def test_json_on_disk_is_sorted_indented_and_free_of_noise(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"b": 0.1 + 0.2, "a": {"é": (1, True, None)}})
    assert (
        path.read_bytes()
        == '{\n  "a": {\n    "é": [\n      1,\n      true,\n      null\n    ]\n  },\n  "b": 0.3\n}\n'.encode()
    )
    assert read_json(path) == {"a": {"é": [1, True, None]}, "b": 0.3}


def test_rounding_keeps_ten_digits_at_any_size():
    assert rounded({1: [1 / 3, 1e-20 / 3, 123456789012.5]}) == {"1": [0.3333333333, 3.333333333e-21, 123456789000.0]}
    assert rounded([1, True, None, "x"]) == [1, True, None, "x"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_does_not_exist_is_never_written(tmp_path, value):
    with pytest.raises(StoreError, match="null"):
        write_json(tmp_path / "x.json", {"deep": [{"value": value}]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": 1,\n"b" 2}', [":2: ", "delete it"]),
        (b"", ["not valid JSON"]),
        (b'{"a": NaN}', ["NaN"]),
        (b'{"a": -Infinity}', ["Infinity"]),
        (b'{"a": "\xff"}', ["not UTF-8 at byte 7"]),
        (b"[" * 200_000, ["not valid JSON"]),
        (b"1" * 5000, ["not valid JSON"]),
    ],
)
def test_json_that_cannot_be_trusted_is_one_line_naming_the_file(tmp_path, data, words):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        read_json(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_json_is_read_from_plain_files_of_sane_size_alone(tmp_path):
    write_json(tmp_path / "x.json", 1)
    (tmp_path / "link.json").symlink_to(tmp_path / "x.json")
    with (tmp_path / "big.json").open("wb") as stream:
        stream.truncate(33 << 20)
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("link.json", "big.json", "pipe.json", "missing.json", "."):
        with pytest.raises(StoreError):
            read_json(tmp_path / name)


# -- artifacts --------------------------------------------------------------------------------------------------------


def tensors():
    return {
        "float": torch.tensor([[0.1, math.nan], [math.inf, -0.0]]),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "half": torch.tensor([0.5], dtype=torch.bfloat16),
        "long": torch.tensor([2**62]),
        "bool": torch.tensor([True, False]),
        "byte": torch.arange(6, dtype=torch.uint8).view(2, 3).T,
        "empty": torch.zeros((0, 3)),
        "scalar": torch.tensor(7),
        "channels-last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }


def test_an_artifact_comes_back_as_it_was(tmp_path):
    store, given = ArtifactStore(tmp_path), tensors()
    assert not store.has("attack", KEY)
    assert store.load("attack", KEY) is None
    store.save("attack", KEY, given, {"passes": {"classifier": {"forward": 3}}})
    found = ArtifactStore(tmp_path).load("attack", KEY)
    assert found is not None
    assert found[1] == {"passes": {"classifier": {"forward": 3}}}
    assert found[0].keys() == given.keys()
    for name, tensor in given.items():
        assert found[0][name].dtype == tensor.dtype
        torch.testing.assert_close(found[0][name], tensor, rtol=0, atol=0, equal_nan=True)
    assert store.load("fit", KEY) is None


def test_an_artifact_may_hold_nothing(tmp_path):
    store = ArtifactStore(tmp_path)
    store.save("fit", KEY, {}, {})
    assert store.load("fit", KEY) == ({}, {})


def test_weights_that_share_memory_can_be_kept(tmp_path):
    shared = torch.arange(4.0)
    store = ArtifactStore(tmp_path)
    store.save("train", KEY, {"a": shared, "b": shared, "half": shared[:2]}, {})
    found = store.load("train", KEY)
    assert found is not None
    assert found[0]["b"].tolist() == shared.tolist()
    assert found[0]["half"].tolist() == [0.0, 1.0]


def flip(directory):
    file = directory / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def truncate(directory):
    file = directory / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def foreign(directory):
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    (directory / "manifest.json").write_text(json.dumps({**manifest, "key": "cd" * 32}), encoding="utf-8")


DAMAGE = {
    "flipped bit": flip,
    "cut short": truncate,
    "no tensors": lambda directory: (directory / "tensors.safetensors").unlink(),
    "manifest cut short": lambda directory: (directory / "manifest.json").write_text("{", encoding="utf-8"),
    "manifest of another kind": lambda directory: (directory / "manifest.json").write_text("[]", encoding="utf-8"),
    "manifest of another key": foreign,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_artifact_is_set_aside_with_a_warning_and_can_be_built_anew(tmp_path, warnings_of_the_store, name):
    store = ArtifactStore(tmp_path)
    store.save("attack", KEY, {"x": torch.ones(3)}, {})
    DAMAGE[name](store.directory("attack", KEY))
    assert store.load("attack", KEY) is None
    assert KEY[:12] in warnings_of_the_store.pop()
    assert not store.has("attack", KEY)
    store.save("attack", KEY, {"x": torch.zeros(3)}, {})
    found = store.load("attack", KEY)
    assert found is not None
    assert found[0]["x"].tolist() == [0, 0, 0]
    assert warnings_of_the_store == []


def test_an_artifact_may_be_damaged_again(tmp_path, warnings_of_the_store):
    store = ArtifactStore(tmp_path)
    for _time in range(3):
        store.save("attack", KEY, {"x": torch.ones(3)}, {})
        flip(store.directory("attack", KEY))
        assert store.load("attack", KEY) is None
    assert len(warnings_of_the_store) == 3


def test_an_artifact_without_a_manifest_was_never_published(tmp_path, warnings_of_the_store):
    store = ArtifactStore(tmp_path)
    store.save("attack", KEY, {"x": torch.ones(3)}, {})
    (store.directory("attack", KEY) / "manifest.json").unlink()
    assert not store.has("attack", KEY)
    assert store.load("attack", KEY) is None
    assert warnings_of_the_store == []
    store.save("attack", KEY, {"x": torch.ones(3)}, {})
    assert store.load("attack", KEY) is not None


def test_a_save_that_fails_midway_publishes_nothing(tmp_path, monkeypatch):
    store = ArtifactStore(tmp_path)
    replace = effects.replace

    def only_tensors(source, target):
        if target.name == "manifest.json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(effects, "replace", only_tensors)
        with pytest.raises(StoreError, match="No space"):
            store.save("attack", KEY, {"x": torch.ones(3)}, {})
    assert store.load("attack", KEY) is None
    store.save("attack", KEY, {"x": torch.ones(3)}, {})
    assert store.load("attack", KEY) is not None


# -- records ----------------------------------------------------------------------------------------------------------


def full_record() -> CellRecord:
    return record(
        cell("autoencoder", "pgd", "white-box", eps=0.1),
        [0, 3, 9],
        [0, 1, 3, 9],
        strong=True,
        metrics={"psnr": metric({"clean-adversarial": 20.5, "clean-purified": None}, unit="dB")},
        passes={"attack": {"classifier": {"forward": 8, "backward": 4}}},
        facts={"subset": {"images": 4}},
        env="e" * 16,
    )


def test_a_record_comes_back_as_it_was(tmp_path):
    own = full_record()
    write_record(tmp_path, own)
    path = tmp_path / cell_path(own.key, own.cell)
    assert path.relative_to(tmp_path) == Path("cells") / "autoencoder" / f"pgd-white-box-{own.key[:12]}.json"
    assert read_record(path) == own
    assert read_json(path)["schema"] == "aubench.cell/2"
    failed = record(cell("none"), error="why, with 3 numbers: 1 2")
    write_record(tmp_path, failed)
    assert read_record(tmp_path / cell_path(failed.key, failed.cell)) == failed


def altered(path: Path, before: str, after: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, after), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"correct": "209"', '"correct": "20b"'),  # one more image stands
        ('"strong": true', '"strong": false'),
        ('"value": 20.5', '"value": 20.6'),
        ('"eps": 0.1', '"eps": 0.2'),
        ('"schema": "aubench.cell/2"', '"schema": "aubench.cell/2", "unheard": 1'),
    ],
)
def test_a_record_that_was_altered_is_refused_with_file_and_line(tmp_path, before, after):
    own = full_record()
    write_record(tmp_path, own)
    path = altered(tmp_path / cell_path(own.key, own.cell), before, after)
    line = 1 + path.read_text(encoding="utf-8").splitlines().index(f'  "sha256": "{read_json(path)["sha256"]}",')
    with pytest.raises(StoreError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}:{line}: sha256 ")
    assert "delete it and run again" in str(caught.value)


def test_an_altered_record_is_left_out_named_and_seen_in_the_exit_code(tmp_path, capsys):
    clean, attacked = record(cell("none"), range(9)), record(cell("none", "pgd", "white-box"), [1, 2])
    ours, sound = tmp_path / "ours", tmp_path / "sound"
    for directory in (ours, sound):
        write_results(directory, result_set(clean, attacked))
    assert main(["show", str(ours), "--json"]) == 0
    path = altered(ours / cell_path(attacked.key, attacked.cell), '"correct": "6"', '"correct": "3ff"')
    found = load_results(ours)
    assert [own.key for own in found.records] == [clean.key]
    assert list(found.missing) == [attacked.cell]
    capsys.readouterr()
    for command in (["show", str(ours)], ["compare", str(sound), str(ours)]):
        assert main(command) == 3
        assert f"warning: {path}:" in capsys.readouterr().err


@pytest.mark.parametrize("seal", ['"0"', "null", "[[]]", '{"a": 1}'])
def test_a_checksum_of_another_kind_is_refused_in_one_line(tmp_path, seal):
    path = tmp_path / "x.json"
    path.write_text(f'{{"a": 1, "sha256": {seal}}}', encoding="utf-8")
    with pytest.raises(StoreError, match=r"x\.json:1: sha256 .*altered"):
        open_sealed(path, read_json(path))


def test_evidence_that_was_altered_is_refused_with_file_and_line(tmp_path):
    own = evidence("autoencoder", verdict("converged", "fail", "falls further"))
    write_evidence(tmp_path, own)
    path = tmp_path / evidence_path(own.key, own.where)
    assert read_evidence(path) == own
    with pytest.raises(StoreError, match=r"\.json:\d+: sha256 .*altered"):
        read_evidence(altered(path, '"ruling": "fail"', '"ruling": "pass"'))


def test_the_layout_of_a_record_is_no_part_of_its_checksum(tmp_path):
    own = full_record()
    write_record(tmp_path, own)
    path = tmp_path / cell_path(own.key, own.cell)
    path.write_text(json.dumps(dict(reversed(read_json(path).items()))), encoding="utf-8")
    assert read_record(path) == own


def test_a_record_that_has_lost_its_checksum_is_refused(tmp_path):
    write_json(tmp_path / "x.json", full_record().to_json())
    with pytest.raises(StoreError, match=r"x\.json: sha256 is missing"):
        read_record(tmp_path / "x.json")


def test_masks_hold_any_image_of_a_large_test_set():
    outcomes = Outcomes.from_indices(10_000, range(1, 10_000, 2), [9999, 1])
    assert (outcomes.n, outcomes.hits) == (5000, 2)
    assert Outcomes.from_json(json.loads(json.dumps(outcomes.to_json()))) == outcomes
    assert [index for index in range(10_000) if outcomes.correct >> index & 1] == [1, 9999]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed"},
        {"outcomes": None},
        {"outcomes": {"size": 10, "evaluated": "ffff", "correct": "0"}},
        {"outcomes": {"size": 10, "evaluated": "1", "correct": "2"}},
        {"outcomes": {"size": 10, "evaluated": "xyz", "correct": "0"}},
        {"outcomes": [1]},
        {"cell": {"dataset": "mnist"}},
        {"metrics": {"psnr": {}}},
        {"unheard": "of"},
    ],
)
def test_a_record_that_does_not_fit_is_refused_in_one_line(tmp_path, change):
    own = full_record()
    path = tmp_path / "x.json"
    write_sealed(path, {**own.to_json(), **change})
    with pytest.raises(StoreError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: not a cell record")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("plan", ["", "[]", "{}", '{"schema": "aubench.plan/x", "cells": [], "suite": {}}'])
def test_a_plan_that_does_not_fit_is_refused_in_one_line(tmp_path, plan):
    (tmp_path / "plan.json").write_text(plan, encoding="utf-8")
    with pytest.raises(StoreError) as caught:
        load_results(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
