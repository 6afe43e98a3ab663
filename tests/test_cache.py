"""What is promised about the artifact cache: known, checked, and pruned without harm to a run under way."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from autoshield_bench import effects
from autoshield_bench.cache import contents, in_use, prune, verify
from autoshield_bench.cli.cache import size_option, size_text
from autoshield_bench.cli.main import main
from autoshield_bench.errors import WriteError
from autoshield_bench.locks import exclude
from autoshield_bench.store import ArtifactStore, write_json

KEYS = [f"{number:02x}" * 32 for number in range(4)]
SIZE = 10_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache with four artifacts, of which the first is the longest unused."""
    store = ArtifactStore(tmp_path)
    for age, key in enumerate(KEYS):
        store.publish("train" if age == 0 else "attack", key, bytes(SIZE), {})
        used(store, key, 1_000_000 + age)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").write_bytes(bytes(SIZE))  # data sets lie beside the artifacts, and are none
    return tmp_path


def used(store: ArtifactStore, key: str, when: float) -> None:
    for stage in ("train", "attack"):
        manifest = store.directory(stage, key) / "manifest.json"
        if manifest.exists():
            os.utime(manifest, (when, when))


def there(root: Path) -> list[int]:
    return sorted(KEYS.index(entry.key) for entry in contents(root).entries)


def flip(root: Path, key: str) -> None:
    (file,) = root.glob(f"*/*/{key}/tensors.safetensors")
    file.write_bytes(b"\x01" + file.read_bytes()[1:])


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["cache", *arguments])
    return code, capsys.readouterr().out


# -- info -------------------------------------------------------------------------------------------------------------


def test_info_counts_artifacts_and_bytes_by_stage(root, capsys):
    code, out = run(capsys, "info", "--json", "--cache-dir", str(root))
    value = json.loads(out)
    assert code == 0
    assert value["path"] == str(root)
    assert {name: own["artifacts"] for name, own in value["stages"].items()} == {"train": 1, "attack": 3}
    one = sum(path.stat().st_size for path in ArtifactStore(root).directory("train", KEYS[0]).iterdir())
    assert value["stages"]["train"]["bytes"] == one > SIZE
    assert value["bytes"] == sum(own["bytes"] for own in value["stages"].values())
    assert value["runs"] == []
    with in_use(root, [("train", KEYS[0])]):
        value = json.loads(run(capsys, "info", "--json", "--cache-dir", str(root))[1])
        assert [own["pid"] for own in value["runs"]] == [os.getpid()]
        text = run(capsys, "info", "--cache-dir", str(root))[1]
    assert f"in use by process {os.getpid()} on " in text
    assert "longest unused since 1970-01-12" in text


def test_a_cache_that_is_not_there_is_empty(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AUBENCH_CACHE", str(tmp_path / "none"))
    assert json.loads(run(capsys, "info", "--json")[1])["bytes"] == 0
    assert run(capsys, "verify") == (0, "0 artifacts are sound, 0 damaged\n")
    assert run(capsys, "prune", "--keep", "1G") == (0, "0 artifacts removed, 0 B freed, 0 B left\n")
    assert not (tmp_path / "none").exists()


# -- verify -----------------------------------------------------------------------------------------------------------


def test_verify_sets_aside_what_is_damaged_and_says_so_in_its_exit_code(root, capsys):
    assert run(capsys, "verify", "--cache-dir", str(root)) == (0, "4 artifacts are sound, 0 damaged\n")
    times = {entry.key: entry.used for entry in contents(root).entries}
    flip(root, KEYS[1])
    (ArtifactStore(root).directory("attack", KEYS[2]) / "manifest.json").write_text("{", encoding="utf-8")
    code, out = run(capsys, "verify", "--json", "--cache-dir", str(root))
    assert code == 3
    value = json.loads(out)
    assert value["sound"] == 2
    assert [line.split(":")[0] for line in value["damaged"]] == [f"attack {KEYS[1]}", f"attack {KEYS[2]}"]
    assert there(root) == [0, 3]
    assert len(contents(root).aside) == 2
    assert run(capsys, "verify", "--cache-dir", str(root))[0] == 0
    # To be hashed is not to be used.
    assert {entry.key: entry.used for entry in contents(root).entries} == {
        key: times[key] for key in (KEYS[0], KEYS[3])
    }


def test_verify_sweeps_what_killed_runs_left(root):
    store = ArtifactStore(root)
    (store.directory("attack", KEYS[1]) / ".tensors.safetensors.0123abcd.tmp").touch()
    (store.directory("attack", KEYS[2]) / "manifest.json").unlink()
    (root / "locks" / KEYS[3]).touch()
    (root / "runs").mkdir()
    (root / "runs" / "host-1-00").write_text("{}", encoding="utf-8")
    assert verify(root) == (3, [])
    assert there(root) == [0, 1, 3]
    assert not list(root.rglob("*.tmp"))
    assert list((root / "locks").iterdir()) == list((root / "runs").iterdir()) == []
    assert not store.directory("attack", KEYS[2]).exists()


# -- prune ------------------------------------------------------------------------------------------------------------


def test_the_longest_unused_goes_first_down_to_the_size(root, capsys):
    code, out = run(capsys, "prune", "--keep", str(2 * SIZE + 2000), "--json", "--cache-dir", str(root))
    assert code == 0
    assert there(root) == [2, 3]
    value = json.loads(out)
    assert (value["removed"], value["spared"], value["reached"]) == (2, 0, True)
    assert value["left"] == contents(root).size <= 2 * SIZE + 2000
    assert (root / "data" / "images").stat().st_size == SIZE
    assert prune(root, 2 * SIZE + 2000).removed == 0
    assert prune(root, 0).left == contents(root).size == 0


def test_to_be_read_is_to_be_used(root):
    assert ArtifactStore(root).fetch("train", KEYS[0]) is not None
    prune(root, 2 * SIZE + 2000)
    assert there(root) == [0, 3]


def test_what_was_set_aside_goes_before_anything_sound(root):
    flip(root, KEYS[3])
    verify(root)
    done = prune(root, 3 * SIZE + 3000)
    assert (done.removed, there(root)) == (0, [0, 1, 2])
    assert done.freed > SIZE
    assert contents(root).aside == ()


@pytest.mark.parametrize(
    "link", ["set-aside/x", "set-aside", "unfinished", "runs", "locks", "fit", "fit/ab", f"fit/ab/{'ab' * 32}"]
)
def test_no_link_leads_a_prune_out_of_the_cache(root, tmp_path_factory, link):
    outside = tmp_path_factory.mktemp("outside")
    for name in ("important", ".half.0123abcd.tmp", "manifest.json", "x/y/z", f"{'ab' * 32}/manifest.json"):
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_text("{}")
    if link == "fit":
        (outside / "ab").symlink_to(outside)
    before = sorted(outside.rglob("*"))
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    if (root / link).is_dir():
        (root / link).rename(root / "elsewhere")
    (root / link).symlink_to(outside)
    verify(root)
    assert prune(root, 0, abandon=True).left == 0
    assert sorted(outside.rglob("*")) == before
    assert there(root) == []


def test_nothing_is_published_through_a_link(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / ".half.0123abcd.tmp").write_text("{}")
    directory = ArtifactStore(root).directory("fit", "ab" * 32)
    directory.parent.mkdir(parents=True)
    directory.symlink_to(outside)
    with pytest.raises(WriteError, match="a symbolic link"):
        ArtifactStore(root).publish("fit", "ab" * 32, b"x", {})
    assert [own.name for own in outside.iterdir()] == [".half.0123abcd.tmp"]


def test_a_day_that_no_calendar_knows_is_no_traceback(root, tmp_path, capsys):
    write_json(root / "unfinished" / "x.json", {"results": str(tmp_path), "began": 1e300, "keys": [KEYS[0]]})
    code, out = run(capsys, "info", "--cache-dir", str(root))
    assert code == 0
    assert "an unknown day" in out


def test_what_a_run_under_way_needs_is_never_pruned(root, capsys):
    with in_use(root, [("train", KEYS[0]), ("attack", "ff" * 32)]):
        code, out = run(capsys, "prune", "--keep", "0", "--cache-dir", str(root))
        assert code == 1
        assert "1 spared, which a run under way or an interrupted one needs" in out
        assert there(root) == [0]
    assert prune(root, 0).removed == 1


def test_what_an_interrupted_run_needs_is_kept_until_a_run_there_ends(root, tmp_path, capsys):
    results = tmp_path / "results"
    results.mkdir()
    mine = [("train", KEYS[0])]
    with pytest.raises(KeyboardInterrupt), in_use(root, mine, results):
        raise KeyboardInterrupt
    assert f"kept for the run in {results}, interrupted on " in run(capsys, "info", "--cache-dir", str(root))[1]
    assert run(capsys, "prune", "--keep", "0", "--cache-dir", str(root))[0] == 1
    assert there(root) == [0]
    with in_use(root, mine, results):
        assert json.loads(run(capsys, "info", "--json", "--cache-dir", str(root))[1])["interrupted"] == []
    assert prune(root, 0).removed == 1


@pytest.mark.parametrize("gone", ["abandoned", "no results", "damaged"])
def test_what_nobody_will_take_up_is_not_kept(root, tmp_path, capsys, gone):
    results = tmp_path / "results"
    results.mkdir()
    with pytest.raises(OSError, match="gone"), in_use(root, [("train", KEYS[0])], results):
        raise OSError("gone")
    if gone == "no results":
        results.rmdir()
    if gone == "damaged":
        (file,) = (root / "unfinished").iterdir()
        file.write_text('{"keys": 1}', encoding="utf-8")
    options = ["--abandon"] if gone == "abandoned" else []
    assert run(capsys, "prune", "--keep", "0", *options, "--cache-dir", str(root))[0] == 0
    assert there(root) == []
    assert list((root / "unfinished").iterdir()) == []


def test_what_a_run_under_way_made_or_used_is_never_pruned(root):
    store = ArtifactStore(root)
    with in_use(root, []):
        store.publish("judge", "ee" * 32, b"new", {})
        assert store.fetch("attack", KEYS[1]) is not None
        assert prune(root, 0).spared == 2
        assert store.has("judge", "ee" * 32)
        assert store.has("attack", KEYS[1])


def test_the_needs_of_a_killed_run_vanish_with_it(root):
    come, leave = os.pipe()
    pid = os.fork()
    if pid == 0:
        with in_use(root, [("train", KEYS[0])]):
            os.write(leave, b"x")
            signal.pause()
    os.read(come, 1)
    try:
        prune(root, 0)
        assert there(root) == [0]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(come)
        os.close(leave)
    assert len(list((root / "runs").iterdir())) == 1
    assert prune(root, 0).removed == 1
    assert there(root) == []
    assert list((root / "runs").iterdir()) == []


def test_a_run_that_does_not_say_what_it_needs_is_given_everything(root):
    with in_use(root, []):
        (own,) = (root / "runs").iterdir()
        own.write_text("{", encoding="utf-8")
        assert prune(root, 0).removed == 0
    assert there(root) == [0, 1, 2, 3]


def test_a_run_that_begins_waits_for_a_prune_to_end(root):
    come, leave = os.pipe()
    with exclude(root / "pruning"):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.write(leave, b"x")
                with in_use(root, [("train", KEYS[0])]):
                    code = 0 if ArtifactStore(root).fetch("train", KEYS[0]) is None else 2
            finally:
                os._exit(code)
        os.read(come, 1)
        os.close(come)
        os.close(leave)
        assert not (root / "runs").exists()
        (ArtifactStore(root).directory("train", KEYS[0]) / "manifest.json").unlink()  # as the prune under way does
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_prune_that_is_killed_leaves_whole_artifacts_or_none(root, monkeypatch):
    for number in range(1, 12):
        pid = os.fork()
        if pid == 0:
            count = 0
            for name in ("remove", "remove_directory"):
                real = getattr(effects, name)

                def step(path: Path, real: object = real, number: int = number) -> None:
                    nonlocal count
                    count += 1
                    if count == number:
                        os._exit(9)
                    real(path)  # type: ignore[operator]

                setattr(effects, name, step)
            prune(root, 0)
            os._exit(0)
        os.waitpid(pid, 0)
        store = ArtifactStore(root)
        for age, key in enumerate(KEYS):
            store.fetch("train" if age == 0 else "attack", key)
        assert contents(root).aside == ()  # nothing looks damaged
        for age, key in enumerate(KEYS):
            store.publish("train" if age == 0 else "attack", key, bytes(SIZE), {})
    assert verify(root) == (4, [])


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_sweeps_what_a_killed_one_left_beside_its_artifacts(root):
    store = ArtifactStore(root)
    own = store.directory("attack", KEYS[1]) / ".manifest.json.0123abcd.tmp"
    other = store.directory("attack", KEYS[2]) / ".manifest.json.0123abcd.tmp"
    own.touch()
    other.touch()
    with in_use(root, [("attack", KEYS[1])]):
        assert not own.exists()
        assert other.exists()  # not its own: `verify` and `prune` look everywhere


def test_a_cache_that_may_only_be_read_is_used_with_a_warning(root, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("autoshield_bench.cache.log.warning", lambda text, *given: said.append(text % given))

    def refuse(*_arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("make_directory", "open_lock", "open_new", "touch", "remove"):
        monkeypatch.setattr(effects, name, refuse)
    with in_use(root, [("train", KEYS[0])]):
        assert ArtifactStore(root).fetch("train", KEYS[0]) is not None
    assert len(said) == 1
    assert "cannot be written" in said[0]


def test_a_full_disk_is_no_cache_that_may_only_be_read(root, monkeypatch):
    def refuse(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(effects, "open_lock", refuse)
    with pytest.raises(WriteError, match="No space left"), in_use(root, []):
        pytest.fail("begun")


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("500M", 500 << 20), ("2G", 2 << 30), ("1.5 GiB", 3 << 29), ("3kb", 3072), ("1T", 1 << 40)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert size_option(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1e3", "nan", "inf", "2X", "1,5G", "٣", "1" * 400, "2G\n3"])
def test_what_is_no_size_is_a_usage_error(text, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["cache", "prune", f"--keep={text}"])
    assert caught.value.code == 2
    assert "is not a size; write one such as 500M, 2G or 0" in capsys.readouterr().err


def test_sizes_are_printed_as_people_read_them():
    assert [size_text(size) for size in (0, 1023, 1024, 3 << 29, 5 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 GiB",
        "5120.0 TiB",
    ]
