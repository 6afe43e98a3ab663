"""What is promised about locks: one run per results directory, named in the refusal, and gone with its holder."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoshield_bench import effects, locks
from autoshield_bench.cli.main import main
from autoshield_bench.errors import StoreError, WriteError
from autoshield_bench.locks import HeldError, holder, lock
from autoshield_bench.store import LOCK, ArtifactStore, results_lock, sweep, write_bytes, write_text

KEY = "ab" * 32

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks are flock's")


@contextlib.contextmanager
def another_process(work: Callable[[Callable[[], None]], None]) -> Iterator[int]:
    """Another process that has come to where ``work`` calls what it is given; it stays there until it is killed."""
    come, leave = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)  # what it forks ends with it

        def here() -> None:
            os.write(leave, b"x")
            while True:
                signal.pause()

        try:
            work(here)
        finally:
            os._exit(1)
    os.close(leave)
    try:
        assert os.read(come, 1) == b"x"
        yield pid
    finally:
        os.close(come)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def hold(directory: Path) -> Callable[[Callable[[], None]], None]:
    def work(here: Callable[[], None]) -> None:
        with results_lock(directory):
            here()

    return work


def test_a_second_run_on_a_results_directory_is_told_who_holds_it(tmp_path):
    directory = tmp_path / "results" / "mnist"
    with another_process(hold(directory)) as pid:
        with pytest.raises(HeldError) as caught, results_lock(directory):
            pytest.fail("both hold it")
        expected = (
            rf"{re.escape(str(directory))}: held by process {pid} on {re.escape(platform.node())} since "
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ; wait until it ends, or choose another --results-dir"
        )
        assert re.fullmatch(expected, str(caught.value))
        assert caught.value.exit_code == 4
        assert (directory / LOCK).exists()


SUITE = """
schema = 1
name = "small"
[dataset]
use = "digits"
[model]
use = "small-cnn"
[[threats]]
norm = "linf"
eps = [0.2]
[[defenses]]
use = "none"
[[attacks]]
use = "fgsm"
access = ["white-box"]
"""


def test_the_command_that_comes_second_has_an_exit_code_of_its_own(tmp_path, capsys):
    (tmp_path / "suite.toml").write_text(SUITE, encoding="utf-8")
    command = ["run", str(tmp_path / "suite.toml"), "--results-dir", str(tmp_path), "--device", "cpu"]
    with another_process(hold(tmp_path / "small")) as pid:
        assert main(command) == 4
        assert f"error: {tmp_path / 'small'}: held by process {pid} on " in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "small").iterdir()] == [LOCK]
        # A look at the plan or at results needs no lock.
        assert main(["plan", *command[1:]]) == 0


def test_a_lock_vanishes_with_its_holder(tmp_path):
    with another_process(hold(tmp_path)) as pid:
        end(pid)
        assert (tmp_path / LOCK).exists()
        with results_lock(tmp_path):
            assert str(os.getpid()) in (tmp_path / LOCK).read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == []


def test_a_process_does_not_hold_the_locks_of_the_one_that_forked_it(tmp_path):
    def work(here: Callable[[], None]) -> None:
        with results_lock(tmp_path):
            if os.fork() == 0:
                here()  # outlives its parent
            os._exit(0)

    with another_process(work) as pid:
        os.waitpid(pid, 0)
        with results_lock(tmp_path):
            pass


def test_a_fork_that_unwinds_leaves_its_parents_lock_alone(tmp_path):
    with contextlib.ExitStack() as stack:
        stack.enter_context(results_lock(tmp_path))
        pid = os.fork()
        if pid == 0:
            try:
                stack.close()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        held = holder(tmp_path / LOCK)
        assert held is not None
        assert held["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_the_same_process_is_refused_too(tmp_path):
    with results_lock(tmp_path):
        with pytest.raises(HeldError, match=f"process {os.getpid()} "), results_lock(tmp_path):
            pytest.fail("held twice")
        assert (tmp_path / LOCK).exists()
    with results_lock(tmp_path):
        pass


def test_who_waits_gets_the_lock_when_it_is_free(tmp_path):
    path = tmp_path / "lock"

    def work(here: Callable[[], None]) -> None:
        with lock(path, wait=True):
            here()

    with another_process(work) as first:
        second = os.fork()
        if second == 0:
            try:
                with lock(path, wait=True):
                    write_text(tmp_path / "second", "was here")
            finally:
                os._exit(0)
        assert os.waitpid(second, os.WNOHANG) == (0, 0)
        end(first)
        os.waitpid(second, 0)
    assert (tmp_path / "second").read_text(encoding="utf-8") == "was here"
    assert not path.exists()


def test_many_processes_hold_a_lock_one_after_the_other(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0", encoding="utf-8")
    children = []
    for _process in range(6):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                for _time in range(25):
                    with lock(tmp_path / "lock", wait=True):
                        value = int(counter.read_text(encoding="utf-8"))
                        counter.write_text(str(value + 1), encoding="utf-8")
            finally:
                os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    assert counter.read_text(encoding="utf-8") == "150"


def test_a_holder_that_says_nothing_readable_is_still_a_holder(tmp_path):
    with results_lock(tmp_path):
        (tmp_path / LOCK).write_text('{"pid": ', encoding="utf-8")
        with pytest.raises(HeldError, match="held by another process"), results_lock(tmp_path):
            pytest.fail("held twice")


@pytest.mark.parametrize("what", ["fifo", "symlink", "directory"])
def test_a_lock_that_is_no_plain_file_is_refused_and_does_not_hang(tmp_path, what):
    path = tmp_path / LOCK
    {"fifo": os.mkfifo, "symlink": lambda own: own.symlink_to(tmp_path / "elsewhere"), "directory": Path.mkdir}[what](
        path
    )
    with pytest.raises(StoreError, match=re.escape(str(path))), results_lock(tmp_path):
        pytest.fail("held")
    assert not (tmp_path / "elsewhere").exists()


def test_a_results_directory_that_cannot_be_written_is_an_error_naming_it(tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(effects, "open_lock", refuse)
    with pytest.raises(WriteError, match=rf"{re.escape(str(tmp_path))}.*Read-only file system"), results_lock(tmp_path):
        pytest.fail("held")


def test_where_there_are_no_locks_the_work_goes_on_with_one_warning(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(locks.log, "warning", lambda text, *given: said.append(text % given))
    monkeypatch.setattr(locks, "try_lock", lambda *_given, **_named: "none")
    monkeypatch.setattr("autoshield_bench.store.try_lock", lambda *_given, **_named: "none")
    locks._warn.cache_clear()
    leftover = tmp_path / ".file.0123abcd.tmp"
    leftover.touch()
    for _time in range(2):
        with results_lock(tmp_path):
            write_text(tmp_path / "file", "text")
    assert leftover.exists()  # nobody can tell whether its writer lives
    assert (tmp_path / "file").read_text(encoding="utf-8") == "text"
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path}: there are no file locks here")


# -- temporary files --------------------------------------------------------------------------------------------------


def test_what_a_dead_writer_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    def work(here: Callable[[], None]) -> None:
        effects.replace = lambda _source, _target: here()
        write_bytes(tmp_path / "cells" / "file.json", b"data")

    with another_process(work) as pid:
        (temporary,) = (tmp_path / "cells").iterdir()
        with results_lock(tmp_path):
            assert temporary.read_bytes() == b"data"
        end(pid)
        assert temporary.exists()
        with results_lock(tmp_path):
            assert not temporary.exists()


def test_only_temporary_files_are_swept(tmp_path):
    kept = [".gitignore", ".hidden.tmp", "plain.0123abcd.tmp", ".x.0123abcd.tmp.json", ".lock"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / ".x.0123abcd.tmp").touch()
    (tmp_path / ".y.0123abcd.tmp").mkdir()
    (tmp_path / ".z.0123abcd.tmp").symlink_to(tmp_path / ".lock")
    os.mkfifo(tmp_path / ".f.0123abcd.tmp")
    assert sweep(tmp_path) == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        *kept,
        ".y.0123abcd.tmp",
        ".z.0123abcd.tmp",
        ".f.0123abcd.tmp",
    }


def test_a_writer_whose_new_file_was_swept_begins_again(tmp_path, monkeypatch):
    real, made = effects.open_new, []

    def swept(path: Path) -> int:
        descriptor = real(path)
        made.append(path)
        if len(made) == 1:
            assert sweep(tmp_path) == 1  # between its creation and its lock
        return descriptor

    monkeypatch.setattr(effects, "open_new", swept)
    write_bytes(tmp_path / "file", b"data")
    assert len(made) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- the cache --------------------------------------------------------------------------------------------------------


def test_two_processes_that_publish_the_same_artifact_tear_nothing(tmp_path):
    store, until = ArtifactStore(tmp_path), time.monotonic() + 1.5
    children = []
    for process in range(4):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                # Bytes that differ, as of a plugin that breaks its promise: the worst case for a torn artifact.
                data, count = bytes([process]) * 100_000, 0
                while time.monotonic() < until:
                    store.publish("attack", KEY, data, {"process": process})
                    found = store.fetch("attack", KEY)
                    assert found is not None
                    assert found[0] == bytes([found[1]["process"]]) * 100_000
                    count += 1
                code = 0 if count else 1
            finally:
                os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0, 0]
    assert not (tmp_path / "set-aside").exists()
    assert list((tmp_path / "locks").iterdir()) == []
    assert {path.name for path in store.directory("attack", KEY).iterdir()} == {"manifest.json", "tensors.safetensors"}
