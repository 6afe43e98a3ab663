"""What is promised about journals: they help where they can be read, and never stand in the way of a result."""

from __future__ import annotations

import os
import time

import pytest

from autoshield_bench import effects
from autoshield_bench.engine.journal import Journal, read_events
from autoshield_bench.engine.pace import Pace
from autoshield_bench.engine.pace import read_timings as read_paces
from autoshield_bench.errors import WriteError
from autoshield_bench.reporting.cost import read_timings

EVENT = {"cell": "c", "stage": "attack", "images": 10, "passes": 100, "ok": True}


def rate(directory):
    """Return the seconds per image-pass that attacks took."""
    return Pace(read_paces(directory), {}).seconds("attack", "elsewhere", 1, 1)


def written(directory, *seconds):
    journal = Journal(directory)
    for own in seconds:
        journal.event("cell", seconds=own, **EVENT)
    journal.close()
    return sorted((directory / "journal").iterdir())


def test_events_come_back_and_tell_how_fast_the_machine_is(tmp_path):
    written(tmp_path, 1.0, 3.0, 2.0)
    assert [event["seconds"] for event in read_events(tmp_path)] == [1.0, 3.0, 2.0]
    assert rate(tmp_path) == 0.02


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_torn_last_line_is_passed_over(tmp_path, cut):
    (path,) = written(tmp_path, 1.0, 3.0)
    path.write_bytes(path.read_bytes()[:-cut])
    if cut == 1:  # the line itself is whole
        assert rate(tmp_path) == 0.02
    else:
        assert rate(tmp_path) == 0.01
        assert read_timings(tmp_path)["c"]["attack"].seconds == 1.0


def test_a_run_that_nothing_happens_in_leaves_no_journal(tmp_path):
    Journal(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_jumps_back_neither_mixes_nor_loses_journals(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))
    monkeypatch.setattr(time, "time", lambda: -5.0)
    first = written(tmp_path, 1.0)
    first[0].write_bytes(first[0].read_bytes()[:-9])  # the process died; another one of its number comes
    files = written(tmp_path, 2.0)
    assert len(files) == 2
    assert [event["utc"] for event in read_events(tmp_path)] == [-5.0]
    assert rate(tmp_path) == 0.02
    assert read_timings(tmp_path)["c"]["attack"].seconds == 2.0


def test_what_is_no_journal_is_passed_over(tmp_path):
    (good,) = written(tmp_path, 1.0)
    folder = good.parent
    (folder / "a.jsonl").write_bytes(b'\xff\xfe\n[]\n3\nnull\n{"seconds": Infinity}\n' + b"[" * 100_000 + b"\n")
    (folder / "b.jsonl").write_text(
        '{"event": "cell", "stage": "attack", "passes": 1, "ok": true, "seconds": Infinity}\n', encoding="utf-8"
    )
    (folder / "c.jsonl").mkdir()
    (folder / "d.jsonl").symlink_to(good)
    os.mkfifo(folder / "e.jsonl")
    assert rate(tmp_path) == 0.01


@pytest.mark.parametrize("step", ["make_directory", "open_new", "write", "close"])
def test_a_full_disk_is_the_disks_fault_and_not_a_plugins(tmp_path, monkeypatch, step):
    def refuse(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(effects, step, refuse)
    with pytest.raises(WriteError, match=r"journal: cannot be written \(No space left on device\)"):
        written(tmp_path, 1.0)
