"""A new plugin installs and passes its contract at once; a single file is enough for a quick try."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_registry import aubench, path_with, suite_with

from autoshield_bench.results import load_results

KINDS = ("attack", "defense", "metric")


def run_pytest(root: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        capture_output=True, text=True, cwd=root, env={**os.environ, **env}, timeout=300, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


# -- the scaffold -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_its_contract_at_once(tmp_path, monkeypatch, kind):
    # A name for each kind: this process keeps modules that it has imported.
    name, module = f"my-{kind}", f"aubench_my_{kind}"
    done = aubench("new", "plugin", name, "--kind", kind, "--dir", tmp_path)
    assert done.code == 0
    root = tmp_path / f"aubench-{name}"
    written = [Path(line).relative_to(root).as_posix() for line in done.out.splitlines()]
    assert written == sorted(
        ["README.md", f"{module}/__init__.py", f"{module}/manifest.py", f"{module}/{kind}.py",
         "pyproject.toml", "tests/test_contract.py"]
    )  # fmt: skip
    assert f"pip install -e {root}" in done.err
    # Installed, as far as Python can tell: its metadata lie beside its module.
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = root / f"{module}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    points = project["entry-points"]["autoshield_bench"]
    lines = "".join(f"{name} = {module}\n" for name, module in points.items())
    (info / "entry_points.txt").write_text(f"[autoshield_bench]\n{lines}")
    out = run_pytest(root, PYTHONPATH=path_with(root))
    assert " passed" in out, out
    assert "failed" not in out, out
    assert "error" not in out, out
    monkeypatch.setenv("PYTHONPATH", path_with(root))
    monkeypatch.syspath_prepend(str(root))
    listed = json.loads(aubench("plugins", "list", "--kind", kind, "--json").out)
    assert listed["problems"] == []
    assert f"aubench-{name}" in {row["distribution"] for row in listed["plugins"]}


def test_what_is_written_is_clean(tmp_path):
    for kind in KINDS:
        aubench("new", "plugin", f"clean-{kind}", "--kind", kind, "--dir", tmp_path)
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    for command in (["check", "--select", "E,F,I,B,UP,SIM"], ["format", "--check"]):
        options = ["--line-length", "120", "--isolated", "--no-cache"]
        done = subprocess.run([ruff, *command, *options, tmp_path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["My-Own", "-x", "x-", "a--b", "9lives", "../up", "a_b", "", "x" * 41])
def test_a_name_that_is_none_writes_nothing(tmp_path, name):
    done = aubench("new", "plugin", "--kind", "attack", "--dir", tmp_path, "--", name)
    assert done.code == 2
    assert "is no plugin name" in done.errors[0]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    for code in (0, 2):
        done = aubench("new", "plugin", "twice", "--kind", "metric", "--dir", tmp_path)
        assert done.code == code
    assert "exists already" in done.errors[0]
    assert aubench("new", "plugin", "aubench-twice", "--kind", "metric", "--dir", tmp_path).code == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_installs_with_pip(tmp_path, kind):
    aubench("new", "plugin", "piped", "--kind", kind, "--dir", tmp_path)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    site = tmp_path / "site"
    done = subprocess.run(
        [*command, "--target", site, tmp_path / "aubench-piped"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    out = run_pytest(tmp_path / "aubench-piped", PYTHONPATH=path_with(site))
    assert " passed" in out, out
    assert "failed" not in out, out


# -- a single file ----------------------------------------------------------------------------------------------------

FILE = """
from dataclasses import dataclass
from autoshield_bench.contracts import Defense, DefenseSpec
from autoshield_bench.hookspecs import hookimpl

CONTRACT = 1

@hookimpl
def aubench_defenses():
    yield DefenseSpec(name="dim", factory=f"{__name__}:Dim", summary="Dims the image.")

@dataclass(frozen=True, kw_only=True)
class Dim(Defense):
    factor: float = 0.9

    def purify(self, x, rng):
        return self.factor * x
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "dim_defense.py"
    path.write_text(FILE, encoding="utf-8")
    yield path
    sys.modules.pop("dim_defense", None)


@pytest.fixture
def suite(tmp_path):
    path = suite_with(tmp_path, "fgsm")
    text = path.read_text(encoding="utf-8").replace('[[defenses]]\nuse = "none"', '[[defenses]]\nuse = "dim"')
    path.write_text(text.replace('"small-cnn"', '"small-cnn"\nparams = { epochs = 1, features = 2 }'), encoding="utf-8")
    return path


def test_a_single_file_is_planned_run_and_exported(file, suite, tmp_path):
    where = ["--results-dir", tmp_path / "results", "--cache-dir", tmp_path / "cache", "--limit", 20]
    assert "dim" in aubench("plan", suite, "--plugin", file, *where).out
    done = aubench("run", suite, "--plugin", file, "--plugin", file, "--quiet", *where)
    assert done.code == 0, done.err
    assert "dim" in done.out
    results = load_results(tmp_path / "results" / "s-limit20")
    planned = json.loads((results.directory / "plan.json").read_text(encoding="utf-8"))
    used = planned["plugins"]["defense:file/dim"]
    assert len(used["source"]) == 64
    exported = ["export", results.directory, "--cache-dir", tmp_path / "cache", "--images", 1]
    assert aubench(*exported, "--plugin", file).code == 0
    assert aubench(*exported).code == 2


def test_an_edited_file_is_another_plugin(file, suite, tmp_path):
    def keys() -> set[str]:
        found = json.loads(aubench("plan", suite, "--plugin", file, "--json").out)
        return {cell["key"] for cell in found["cells"]}

    before = keys()
    assert keys() == before
    (file.parent / "neighbour.py").write_text("", encoding="utf-8")
    assert keys() == before
    file.write_text(FILE.replace("self.factor * x", "self.factor * x * x"), encoding="utf-8")
    assert not keys() & before


def test_a_single_file_is_checked(file):
    done = aubench("plugins", "check", "dim", "--plugin", file, "--params", '{"factor": 1.5}', "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert [check["check"] for check in found["checks"] if check["verdict"] == "failed"] == ["unit-range"]
    assert aubench("plugins", "check", "file/dim", "--plugin", file).code == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.py", None, "no such file"),
        ("my-own.py", FILE, "is a Python name and ends in .py"),
        ("notes.txt", FILE, "is a Python name and ends in .py"),
        ("random.py", FILE, "'random' is the name of a module that exists already; rename the file"),
        ("broken_one.py", "def (:", "SyntaxError"),
        ("leaves_us.py", "import sys; sys.exit('has left')", "SystemExit: has left"),
        ("no_contract.py", FILE.replace("CONTRACT = 1", ""), "states no CONTRACT"),
    ],
)
def test_a_file_that_is_no_plugin_is_an_error_naming_it(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text, encoding="utf-8")
    done = aubench("plan", "quick", "--plugin", path)
    assert done.code == 2
    assert name in done.errors[0]
    assert message in done.errors[0]
    sys.modules.pop("no_contract", None)


def test_a_file_that_claims_a_name_must_say_whose(file, suite):
    file.write_text(FILE.replace('"dim"', '"autoencoder"'), encoding="utf-8")
    done = aubench("plan", "quick", "--plugin", file)
    assert done.code == 2
    assert "file/autoencoder" in done.errors[0]
