"""plugins.lock: what was pinned is loaded, anything else is refused before a line of it runs."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys

import pytest
from test_registry import HEAD, SOUND, aubench, distribution, site, suite_with

from autoshield_bench.errors import PinError
from autoshield_bench.pins import installed_pins, read_lock, verified

__all__ = ["site"]

TELLING = """
import os
from pathlib import Path
Path(os.environ["TOLD"], "{module}").touch()
"""
CLASS = """
import dataclasses
from autoshield_bench.contracts import Attack
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound(Attack):
    def run(self, request):
        return request.images
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, where plugins.lock is looked for; ``told`` holds a file per manifest that was run."""
    (tmp_path / "told").mkdir()
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def install(folder, name="aubench-one", code="", **options):
    return distribution(folder, name, HEAD + SOUND + CLASS + TELLING + code, **options)


def record_of(folder, module):
    """Write the RECORD that an installer writes: scripts, metadata and compiled copies too."""
    (info,) = folder.glob("*.dist-info")
    digest = hashlib.sha256((folder / f"{module}.py").read_bytes()).hexdigest()
    lines = [f"{module}.py,sha256={digest},1", f"__pycache__/{module}.cpython-311.pyc,,", "../../bin/one,,"]
    lines += [f"{info.name}/RECORD,,", f"{info.name}/METADATA,,", f"{info.name}/INSTALLER,,"]
    (info / "RECORD").write_text("\n".join(lines) + "\n", encoding="utf-8")


def told(here):
    return sorted(path.name for path in (here / "told").iterdir())


def refused(*command):
    done = aubench(*command)
    assert (done.code, done.out) == (2, ""), done.err
    assert all(line.startswith("error: ") for line in done.err.splitlines())
    return done.errors


def test_what_is_pinned_is_loaded_and_locking_itself_loads_nothing(here, site):
    module = install(site)
    done = aubench("plugins", "lock")
    assert (done.code, done.out) == (0, "plugins.lock\n")
    assert "aubench-one 1.0" in done.err
    assert told(here) == []
    # Whatever else is installed where the tests run is pinned as well.
    pins = {pin["distribution"]: (pin["version"], len(pin["sha256"])) for pin in lock(here)["plugins"]}
    assert pins["aubench-one"] == ("1.0", 64)
    assert pins["autoshield-bench"] == (read_lock(here / "plugins.lock")["autoshield-bench"].version, 64)
    done = aubench("plugins", "list", "--locked", "--json")
    assert done.code == 0
    assert "sound" in {plugin["name"] for plugin in json.loads(done.out)["plugins"]}
    assert told(here) == [module]


def lock(here):
    return json.loads((here / "plugins.lock").read_text(encoding="utf-8"))


def test_locking_twice_writes_the_same_bytes(here, site):
    install(site)
    aubench("plugins", "lock", "--out", "a")
    aubench("plugins", "lock", "--out", "b")
    assert (here / "a").read_bytes() == (here / "b").read_bytes()


@pytest.mark.parametrize("with_record", [False, True])
def test_a_changed_file_is_refused_and_not_run(here, site, with_record):
    module = install(site)
    if with_record:
        record_of(site, module)
    aubench("plugins", "lock")
    assert aubench("plugins", "list", "--locked").code == 0
    (here / "told" / module).unlink()
    file = site / f"{module}.py"
    file.write_text(file.read_text(encoding="utf-8") + "# and more\n", encoding="utf-8")
    (said,) = refused("plugins", "list", "--locked")
    assert said.startswith("error: plugins.lock: aubench-one 1.0: its files are not those that were pinned (SHA-256 ")
    assert "install it again, or run `aubench plugins lock` once you have looked at what is new" in said
    assert told(here) == []


def test_another_version_and_a_new_distribution_are_refused_together(here, site):
    install(site)
    aubench("plugins", "lock")
    (metadata,) = site.glob("*.dist-info/METADATA")
    metadata.write_text(metadata.read_text(encoding="utf-8").replace("1.0", "1.1"), encoding="utf-8")
    install(site, "aubench-two")
    first, second = refused("plugins", "list", "--locked")
    assert "aubench-one is installed as 1.1, pinned is 1.0; `pip install aubench-one==1.0`, or run" in first
    assert "aubench-two 1.0 is not pinned; uninstall it, or run `aubench plugins lock`" in second
    assert told(here) == []


def test_a_run_and_a_plan_are_refused_and_leave_nothing(here, site):
    suite = suite_with(here, "fgsm")
    aubench("plugins", "lock", "--out", "other.lock")
    install(site)
    for command in ("run", "plan"):
        (said,) = refused(command, suite, "--locked", "--lock-file", "other.lock")
        assert "other.lock: aubench-one 1.0 is not pinned" in said
    assert told(here) == []
    assert not (here / "results").exists()


def test_a_plan_whose_plugins_are_pinned_is_made(here, site):
    install(site)
    aubench("plugins", "lock")
    done = aubench("plan", suite_with(here, "fgsm"), "--locked", "--cache-dir", here / "cache")
    assert done.code == 0, done.err


def test_what_is_turned_off_or_gone_is_not_asked_for(here, site, monkeypatch):
    install(site)
    aubench("plugins", "lock")
    install(site, "aubench-two")
    monkeypatch.setenv("AUBENCH_DISABLE_PLUGINS", "1")
    assert aubench("plugins", "list", "--locked").code == 0
    assert told(here) == []


def package(site):
    """A distribution of one package with a RECORD, as pip leaves it."""
    module = install(site)
    name = f"{module}_package"
    (site / name).mkdir()
    (site / f"{module}.py").rename(site / name / "__init__.py")
    (info,) = site.glob("*.dist-info")
    (info / "entry_points.txt").write_text(f"[autoshield_bench]\nmain = {name}\n", encoding="utf-8")
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n{name}/data.bin,,\n", encoding="utf-8")
    (site / name / "data.bin").write_bytes(b"weights")
    text = (site / name / "__init__.py").read_text(encoding="utf-8").replace(f"{module}:Sound", f"{name}:Sound")
    (site / name / "__init__.py").write_text(text, encoding="utf-8")
    importlib.invalidate_caches()
    return site / name


def test_a_file_that_no_record_lists_is_another_package(here, site):
    folder = package(site)
    aubench("plugins", "lock")
    assert aubench("plugins", "list", "--locked").code == 0
    (folder / "__pycache__").mkdir(exist_ok=True)
    (folder / "__pycache__" / "x.pyc").write_bytes(b"compiled")
    assert aubench("plugins", "list", "--locked").code == 0
    (folder / "data.bin").write_bytes(b"others")
    assert "its files are not those" in refused("plugins", "list", "--locked")[0]
    (folder / "data.bin").write_bytes(b"weights")
    (folder / "more.py").write_text("", encoding="utf-8")
    assert "its files are not those" in refused("plugins", "list", "--locked")[0]


def test_a_module_in_the_way_of_a_pinned_one_is_refused(here, site, monkeypatch):
    folder = package(site)
    aubench("plugins", "lock")
    front = here / "front"
    front.mkdir()
    (front / f"{folder.name}.py").write_text("raise SystemExit('run')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(front))
    (said,) = refused("plugins", "list", "--locked")
    assert f"module '{folder.name}' would come from {front}" in said


def test_a_factory_outside_the_pinned_distributions_is_refused(here, site):
    (site / "outside_of_all.py").write_text("raise SystemExit('run')", encoding="utf-8")
    distribution(site, "aubench-one", HEAD + SOUND.replace("{module}:Sound", "outside_of_all:Sound"))
    aubench("plugins", "lock")
    (said,) = refused("plugins", "list", "--locked")
    assert "module 'outside_of_all' would come from" in said
    assert "outside_of_all" not in sys.modules


def test_a_single_file_cannot_be_pinned(here, site):
    aubench("plugins", "lock")
    (here / "mine.py").write_text("raise SystemExit('run')", encoding="utf-8")
    (said,) = refused("plan", suite_with(here, "fgsm"), "--locked", "--plugin", "mine.py")
    assert "mine.py is no installed distribution and cannot be pinned" in said


def test_an_editable_distribution_is_pinned_by_its_files():
    (own,) = [pinned for pinned in installed_pins() if pinned.pin.distribution == "autoshield-bench"]
    names = {path.name for path in own.files}
    assert {"pins.py", "manifest.py", "runner.py"} <= names
    assert own.strays == ()


SOUND_LOCK = '{"schema": "aubench.plugins-lock/1", "plugins": [%s]}'
ENTRY = '{"distribution": "a", "version": "1", "sha256": "0"}'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "no plugins.lock"),
        (b"[]", "list where an object belongs"),
        (b"{}", "schema: NoneType"),
        (
            b'{"schema": "aubench.plugins-lock/2", "plugins": []}',
            "its schema is 'aubench.plugins-lock/2', this version",
        ),
        ((SOUND_LOCK % "1").encode(), "int where an object belongs"),
        ((SOUND_LOCK % '{"distribution": "a"}').encode(), "version: NoneType"),
        ((SOUND_LOCK % f"{ENTRY}, {ENTRY}").encode(), "'a' stands twice"),
        ((SOUND_LOCK % ENTRY[:-1]).encode(), "no plugins.lock"),
        (ENTRY.replace("}", ', "sha256": "1"}').encode(), "stands twice in one object"),
        ((SOUND_LOCK % ENTRY.replace("}", ', "more": 1}')).encode(), "more"),
        (b"\xff", "utf-8"),
        (b"[" * 100_000, "nested more than"),
        (b" " * (1 << 20) + b" ", "larger than 1048576 bytes"),
    ],
)
def test_a_lock_that_is_none_is_one_line_with_the_remedy(here, site, content, words):
    if content is not None:
        (here / "plugins.lock").write_bytes(content)
    install(site)
    (said,) = refused("plugins", "list", "--locked")
    assert "plugins.lock: " in said
    assert words in said
    assert "write it again with `aubench plugins lock`" in said
    assert told(here) == []


def test_a_lock_that_is_a_pipe_is_not_waited_for(here):
    os.mkfifo(here / "plugins.lock")
    assert "a named pipe" in refused("plugins", "list", "--locked")[0]


def test_a_lock_file_without_locked_is_a_mistake(here):
    (said,) = refused("plugins", "list", "--lock-file", "x")
    assert "--lock-file: means something with --locked alone; give both" in said


def test_the_library_asks_for_the_lock_too(here, site):
    from autoshield_bench import load_suite

    aubench("plugins", "lock")
    install(site)
    with pytest.raises(PinError, match="aubench-one"):
        load_suite(suite_with(here, "fgsm"), lock=here / "plugins.lock")
    with pytest.raises(PinError, match="aubench-one"):
        verified(here / "plugins.lock")


def test_listing_runs_the_manifest_and_nothing_behind_it(here, site):
    noisy = (
        "import os, pathlib\nprint('clamour')\npathlib.Path(os.environ['TOLD'], 'factory').touch()\nraise SystemExit(3)"
    )
    (site / "heavy_factory.py").write_text(noisy, encoding="utf-8")
    code = HEAD + SOUND.replace("{module}:Sound", "heavy_factory:Sound") + TELLING
    module = distribution(site, "aubench-heavy", code)
    for options in ([], ["--json"], ["--timings"]):
        done = aubench("plugins", "list", *options)
        assert done.code == 0
        assert "sound" in done.out
        assert "clamour" not in done.out + done.err
    assert told(here) == [module]
    assert "heavy_factory" not in sys.modules
