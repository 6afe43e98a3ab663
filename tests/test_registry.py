"""What users and plugin authors rely on: plugins are found, and a broken one is named and harms nobody else."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from autoshield_bench.cli.main import main
from autoshield_bench.errors import PluginError
from autoshield_bench.registry import Registry

HEAD = """\
from autoshield_bench.contracts import AttackSpec, DefenseSpec, MetricSpec, ModelSpec
from autoshield_bench.hookspecs import hookimpl
CONTRACT = 1
"""

SOUND = """
@hookimpl
def aubench_attacks():
    yield AttackSpec(name="sound", factory="{module}:Sound", summary="A sound attack.", norms=("linf",))
"""

_serial = itertools.count()


# -- fake distributions and the command line, for other test files too ------------------------------------------------


def distribution(site: Path, name: str, code: str, *, metadata: bool = True, files: tuple[str, ...] = ()) -> str:
    """Put a distribution of one manifest module into a folder of the path; ``{module}`` in ``code`` is its name.

    No two have the same module name, so that nothing this process has cached of one is taken for another.
    """
    plain = re.sub(r"[-.]", "_", name).lower()
    module = f"{plain}_{next(_serial)}"
    (site / f"{module}.py").write_text(code.replace("{module}", module), encoding="utf-8")
    folder = site / f"{plain}-1.0.dist-info"
    folder.mkdir()
    if metadata:
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (folder / "entry_points.txt").write_text(f"[autoshield_bench]\nmain = {module}\n", encoding="utf-8")
    if files:
        (folder / "RECORD").write_text("".join(f"{line}\n" for line in files), encoding="utf-8")
    importlib.invalidate_caches()
    return module


@dataclass(frozen=True)
class Finished:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that say ``error:``."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def warnings(self) -> list[str]:
        """The lines that say ``warning:``."""
        return [line for line in self.err.splitlines() if line.startswith("warning: ")]


def aubench(*arguments: object) -> Finished:
    """Run a command in this process, and leave its environment, signal handlers and logging as they were."""
    out, err = io.StringIO(), io.StringIO()
    logger = logging.getLogger("autoshield_bench")
    handler = signal.getsignal(signal.SIGTERM)
    environment = dict(os.environ)
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as stopped:
                code = int(stopped.code or 0)
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        signal.signal(signal.SIGTERM, handler)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    return Finished(code, out.getvalue(), err.getvalue())


def python(code: str, *arguments: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", cwd=cwd, env={**os.environ, **env}, timeout=120, check=False,
    )  # fmt: skip


def path_with(folder: Path) -> str:
    """PYTHONPATH with a folder in front."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of the path; what is installed there is found."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.delenv("AUBENCH_DISABLE_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def suite_with(tmp_path: Path, attack: str, more: str = "") -> Path:
    """Write a suite with one attack."""
    path = tmp_path / "suite.toml"
    path.write_text(
        f"""\
schema = 1
name = "s"
[dataset]
use = "digits"
[model]
use = "small-cnn"
[[threats]]
norm = "linf"
eps = [0.1]
[[defenses]]
use = "none"
[[attacks]]
use = "{attack}"
access = ["gray-box"]
{more}""",
        encoding="utf-8",
    )
    return path


# -- listing ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_plugin_is_listed_with_its_origin(site):
    distribution(
        site,
        "many-kinds",
        HEAD
        + """
from autoshield_bench.contracts import DatasetSpec
@hookimpl
def aubench_attacks():
    return [AttackSpec(name="a1", factory="x:X", summary="An attack,\\n  in two lines.", norms=("linf",))]
@hookimpl
def aubench_defenses():
    yield DefenseSpec(name="d1", factory="x:X", summary="A defense.")
@hookimpl
def aubench_metrics():
    yield MetricSpec(name="m1", factory="x:X", summary="A metric.", looks_at="pair", direction="lower", range=(0, 1))
@hookimpl
def aubench_datasets():
    yield DatasetSpec(name="s1", factory="x:X", summary="A data set.")
@hookimpl
def aubench_models():
    yield ModelSpec(name="n1", factory="x:X", summary="A model.")
""",
    )
    done = aubench("plugins", "list", "--json")
    assert (done.code, done.err) == (0, "")
    rows = json.loads(done.out)["plugins"]
    assert all(list(row) == ["kind", "name", "distribution", "version", "origin", "summary"] for row in rows)
    mine = {row["kind"]: row for row in rows if row["distribution"] == "many-kinds"}
    assert set(mine) == {"attack", "defense", "metric", "dataset", "model"}
    assert mine["attack"]["summary"] == "An attack, in two lines."
    assert {(row["version"], row["origin"]) for row in mine.values()} == {("1.0", "installed")}
    builtin = {(row["kind"], row["name"]) for row in rows if row["origin"] == "built-in"}
    assert builtin >= {
        ("attack", "fgsm"), ("attack", "pgd"), ("defense", "none"), ("defense", "autoencoder"),
        ("defense", "stacked-autoencoder"), ("defense", "chain"), ("defense", "gaussian-blur"),
        ("defense", "median"), ("defense", "bit-depth"), ("defense", "jpeg"), ("defense", "autoencoder-detector"),
        ("defense", "adversarial-training"), ("metric", "accuracy"), ("metric", "attack-success"),
        ("metric", "mse"), ("metric", "psnr"), ("metric", "ssim"), ("metric", "lpips"), ("metric", "linf"),
        ("metric", "l2"), ("dataset", "mnist"), ("dataset", "fashion-mnist"), ("dataset", "cifar10"),
        ("dataset", "digits"), ("model", "small-cnn"), ("model", "deep-cnn"),
    }  # fmt: skip
    table = aubench("plugins", "list", "--kind", "attack").out
    first = next(line.split() for line in table.splitlines() if line.split()[:1] == ["attack"])
    assert first == ["attack", "a1", "many-kinds", "1.0", "installed", "An", "attack,", "in", "two", "lines."]
    assert "d1" not in table


def test_an_editable_distribution_says_so(site):
    module = distribution(site, "in-work", HEAD + SOUND)
    direct = {"url": "file:///src", "dir_info": {"editable": True}}
    (site / "in_work-1.0.dist-info" / "direct_url.json").write_text(json.dumps(direct), encoding="utf-8")
    importlib.invalidate_caches()
    assert Registry.discover().find("attack", "sound").origin == "editable", module


LIST = """
import sys
from autoshield_bench.cli.main import main
code = main(["plugins", "list", *sys.argv[1:]])
heavy = sorted({"torch", "numpy", "pydantic", "heavy_factory"} & set(sys.modules))
assert not heavy, heavy
sys.exit(code)
"""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_listing_imports_neither_torch_nor_any_factory(tmp_path, options):
    (tmp_path / "heavy_factory.py").write_text("import torch", encoding="utf-8")
    distribution(tmp_path, "heavy", HEAD + SOUND.replace("{module}:", "heavy_factory:"))
    done = python(LIST, *options, cwd=tmp_path, PYTHONPATH=path_with(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "A sound attack." in done.stdout


# -- broken plugins ---------------------------------------------------------------------------------------------------

SPEC = 'AttackSpec(name="lost", factory="x:X", summary="s", norms=("linf",))'

BROKEN = {
    "import-error": ("import gizmo_that_is_nowhere", "ModuleNotFoundError: No module named 'gizmo_that_is_nowhere'"),
    "syntax-error": ("def (:", "SyntaxError"),
    "exits": ("import sys; sys.exit('has left')", "SystemExit: has left"),
    "yields-a-string": (HEAD + "@hookimpl\ndef aubench_attacks(): yield 'lost'", "yielded 'str' where AttackSpec"),
    "returns-no-list": (HEAD + f"@hookimpl\ndef aubench_attacks(): return {SPEC}", "TypeError"),
    "wrong-hook": (HEAD + f"@hookimpl\ndef aubench_defenses(): yield {SPEC}", "where DefenseSpec belongs"),
    "raises-midway": (
        HEAD + f"@hookimpl\ndef aubench_attacks():\n    yield {SPEC}\n    raise RuntimeError('out of ideas')",
        "RuntimeError: out of ideas",
    ),
    "wrong-signature": (HEAD + "@hookimpl\ndef aubench_attacks(config): yield 1", "config"),
    "no-contract": (HEAD.replace("CONTRACT = 1", "") + SOUND, "CONTRACT"),
    "later-contract": (HEAD.replace("= 1", "= 99") + SOUND, "contract 99"),
    "bad-name": (HEAD + SOUND.replace("sound", "Sound It!"), "'Sound It!'"),
    "number-as-name": (HEAD + SOUND.replace('"sound"', "7"), "name 7"),
    "bad-factory": (HEAD + SOUND.replace("{module}:Sound", "no colon"), "'no colon'"),
    "no-summary": (HEAD + SOUND.replace('"A sound attack."', "None"), "summary"),
    "no-norms": (HEAD + SOUND.replace('("linf",)', "()"), "norms"),
    "unknown-norm": (HEAD + SOUND.replace('("linf",)', '("l0",)'), "norms"),
    "forgotten-comma": (HEAD + SOUND.replace('("linf",)', '("linf")'), "norms"),
    "norms-not-a-tuple": (HEAD + SOUND.replace('("linf",)', "None"), "norms"),
    "unknown-need": (HEAD + SOUND.replace("norms=", 'needs="score", norms='), "needs='score'; give 'gradients' or"),
    "no-bool": (HEAD + SOUND.replace("norms=", 'strong="yes", norms='), "strong='yes'; give True or False"),
    "library-not-a-tuple": (HEAD + SOUND.replace("norms=", 'libraries="torch", norms='), "libraries 'torch'"),
    "taken-name": (HEAD + SOUND.replace('"sound"', '"pgd"'), "'pgd', taken by autoshield-bench"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_named_and_the_others_go_on(site, name):
    code, message = BROKEN[name]
    distribution(site, f"dist-{name}", code)
    distribution(site, "quite-sound", HEAD + SOUND.replace('"sound"', '"unharmed"'))
    done = aubench("plugins", "list", "--json")
    assert done.code == 0
    listed = json.loads(done.out)
    assert {"unharmed", "fgsm"} <= {row["name"] for row in listed["plugins"]}
    (warning,) = done.warnings
    assert f"dist-{name}" in warning
    assert message in warning
    (problem,) = listed["problems"]
    assert problem["distribution"] == f"dist-{name}"
    assert message in problem["message"]


def test_many_broken_plugins_are_all_named(site):
    for name, (code, _message) in BROKEN.items():
        distribution(site, f"dist-{name}", code)
    done = aubench("plugins", "list")
    assert done.code == 0
    assert len(done.warnings) == len(done.err.splitlines())
    for name in BROKEN:
        assert any(f"dist-{name}" in line for line in done.warnings), name
    assert "pgd" in done.out


def test_a_distribution_without_metadata_takes_nothing_down(site):
    distribution(site, "nameless", HEAD + SOUND, metadata=False)
    done = aubench("plugins", "list", "--json")
    assert done.code == 0
    assert "fgsm" in {row["name"] for row in json.loads(done.out)["plugins"]}


def test_what_a_plugin_prints_does_not_reach_standard_output(site):
    distribution(
        site,
        "chatty",
        "print('import chatter')\n" + HEAD + SOUND.replace("    yield", "    print('hook chatter')\n    yield"),
    )
    done = aubench("plugins", "list", "--json")
    assert "sound" in {row["name"] for row in json.loads(done.out)["plugins"]}
    assert "import chatter" in done.err
    assert "hook chatter" in done.err


@pytest.mark.parametrize("name", ["import-error", "exits", "raises-midway", "no-contract", "later-contract"])
def test_asking_for_what_a_broken_plugin_would_provide_shows_why_it_failed(site, tmp_path, name):
    code, message = BROKEN[name]
    distribution(site, f"dist-{name}", code)
    done = aubench("run", suite_with(tmp_path, "lost"), "--results-dir", tmp_path / "results")
    assert done.code == 2
    (error,) = done.errors
    assert error.startswith(f"error: {tmp_path / 'suite.toml'}:13: ")
    assert "no attack 'lost'" in error
    assert f"dist-{name}" in error
    assert message in error
    assert not (tmp_path / "results").exists()


def test_a_broken_plugin_does_not_stop_a_suite_that_does_not_ask_for_it(site, tmp_path):
    distribution(site, "dist-broken", BROKEN["import-error"][0])
    done = aubench("plan", suite_with(tmp_path, "fgsm"))
    assert done.code == 0
    assert "dist-broken" in done.warnings[0]


def test_a_termination_while_plugins_load_ends_the_program(tmp_path):
    distribution(tmp_path, "killer", "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n" + HEAD + SOUND)
    script = "import sys; from autoshield_bench.cli.main import main; sys.exit(main(['plugins', 'list']))"
    done = python(script, cwd=tmp_path, PYTHONPATH=path_with(tmp_path))
    assert done.returncode == 143
    assert done.stdout == ""


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_name_that_two_claim_must_say_whose(site, tmp_path):
    distribution(site, "Rival.Plugins", HEAD + SOUND.replace('"sound"', '"pgd"'))
    registry = Registry.discover()
    with pytest.raises(PluginError, match=r"pgd.*more than one") as caught:
        registry.find("attack", "pgd")
    assert "autoshield-bench/pgd" in str(caught.value)
    assert "Rival.Plugins/pgd" in str(caught.value)
    assert registry.find("attack", "autoshield-bench/pgd").origin == "built-in"
    assert registry.find("attack", "rival-plugins/pgd").origin == "installed"
    assert aubench("plan", suite_with(tmp_path, "autoshield-bench/pgd")).code == 0
    done = aubench("plan", suite_with(tmp_path, "pgd"))
    assert done.code == 2
    assert "autoshield-bench/pgd" in done.errors[0]


def test_an_unknown_name_suggests_the_nearest(site):
    with pytest.raises(PluginError, match='did you mean "fgsm"'):
        Registry.discover().find("attack", "fsgm")
    with pytest.raises(PluginError, match="known: "):
        Registry.discover().find("attack", "zzzzzzzz")


def test_third_party_plugins_can_be_turned_off(site, monkeypatch):
    distribution(site, "quite-sound", HEAD + SOUND)
    distribution(site, "dist-broken", BROKEN["exits"][0])
    monkeypatch.setenv("AUBENCH_DISABLE_PLUGINS", "1")
    registry = Registry.discover()
    assert {plugin.origin for plugin in registry.plugins} == {"built-in"}
    assert registry.problems == ()
    monkeypatch.setenv("AUBENCH_DISABLE_PLUGINS", "0")
    assert Registry.discover().find("attack", "sound").distribution == "quite-sound"


# -- factories and parameters -----------------------------------------------------------------------------------------

FACTORY = """
from dataclasses import dataclass
from autoshield_bench.contracts import Attack, Defense
from autoshield_bench.errors import ParameterError
function = len
@dataclass(kw_only=True)
class WrongBase(Defense):
    pass
class NoDataclass(Attack):
    def run(self, request): return request.images
@dataclass(kw_only=True)
class Abstract(Attack):
    pass
@dataclass(kw_only=True)
class Dial(Attack):
    steps: int = 3
    size: float = 0.5
    pair: tuple[float, float] = (0.0, 1.0)
    needed: str
    def __post_init__(self):
        if self.steps > 100:
            raise ParameterError("steps", f"{self.steps} is more than 100")
        if self.needed == "trouble":
            raise RuntimeError("made of trouble")
    def run(self, request): return request.images
"""


def dial(site, name, factory="{module}:Dial"):
    distribution(site, f"dist-{name}", HEAD + FACTORY + SOUND.replace("{module}:Sound", factory))
    registry = Registry.discover()
    return registry, registry.find("attack", "sound")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nowhere.at_all:X", "cannot be imported"),
        ("{module}:Missing", "has no Missing"),
        ("{module}:function", "not a subclass of Attack"),
        ("{module}:WrongBase", "not a subclass of Attack"),
        ("{module}:NoDataclass", "not a dataclass"),
    ],
)
def test_a_factory_that_is_none_is_an_error_naming_plugin_and_distribution(site, tmp_path, factory, message):
    registry, plugin = dial(site, "dial", factory)
    with pytest.raises(PluginError, match=message) as caught:
        registry.load(plugin)
    assert "'sound'" in str(caught.value)
    assert "dist-dial" in str(caught.value)
    (error,) = aubench("run", suite_with(tmp_path, "sound")).errors
    assert message in error
    assert "dist-dial" in error


def test_a_factory_that_cannot_be_made_is_an_error_naming_plugin_and_distribution(site):
    registry, plugin = dial(site, "dial", "{module}:Abstract")
    ((key, message),) = registry.check_params(plugin, {})
    assert key == ""
    assert "dist-dial" in message


@pytest.mark.parametrize(
    ("params", "key", "words"),
    [
        ({"needed": "x", "stepz": 1}, "stepz", ["no parameter 'stepz'", 'did you mean "steps"']),
        ({"needed": "x", "steps": "3"}, "steps", ["integer", "'3'"]),
        ({"needed": "x", "steps": 2.5}, "steps", ["integer"]),
        ({"needed": "x", "steps": True}, "steps", ["integer"]),
        ({"needed": "x", "size": float("nan")}, "size", ["nan", "not a finite number"]),
        ({"needed": "x", "size": float("inf")}, "size", ["inf", "not a finite number"]),
        ({"needed": "x", "pair": [0.5]}, "pair", []),
        ({"needed": "x", "pair": [0.5, "y"]}, "pair", []),
        ({"needed": "x", "steps": 101}, "steps", ["101 is more than 100"]),
        ({"needed": "trouble"}, "", ["made of trouble", "dist-dial"]),
        ({}, "needed", ["needs the parameter 'needed'"]),
    ],
)
def test_a_wrong_parameter_is_named(site, params, key, words):
    registry, plugin = dial(site, "dial")
    ((found, message),) = registry.check_params(plugin, params)
    assert found == key
    assert "'sound'" in message
    for word in words:
        assert word in message


def test_right_parameters_arrive_as_their_types(site):
    registry, plugin = dial(site, "dial")
    params = {"needed": "x", "size": 1, "pair": [0.25, 1]}
    assert registry.check_params(plugin, params) == []
    made = registry.make(plugin, params)
    assert (made.steps, made.size, made.pair, made.needed) == (3, 1.0, (0.25, 1.0), "x")
    assert registry.filled_params(plugin, params) == {"steps": 3, "size": 1.0, "pair": [0.25, 1.0], "needed": "x"}


@pytest.mark.parametrize("default", ["float('inf')", "float('nan')", "len", "object()"])
def test_a_default_that_cannot_be_recorded_is_an_error_naming_the_plugin(site, tmp_path, default):
    code = FACTORY + f"@dataclass(kw_only=True)\nclass Odd(Dial):\n    needed: str = 'x'\n    odd: object = {default}\n"
    distribution(site, "odd-one", HEAD + code + SOUND.replace("{module}:Sound", "{module}:Odd").replace("sound", "odd"))
    done = aubench("plan", suite_with(tmp_path, "odd"))
    assert done.code == 2
    assert "'odd'" in done.errors[0]
    assert "odd-one" in done.errors[0]


def test_a_suite_shows_every_wrong_parameter_with_its_line(site, tmp_path):
    dial(site, "dial")
    suite = suite_with(tmp_path, "sound", "[attacks.params]\nstepz = 1\nsize = 'x'\n")
    done = aubench("run", suite, "--results-dir", tmp_path / "results")
    assert done.code == 2
    where = [line.removeprefix(f"error: {suite}:").partition(": ")[0] for line in done.errors]
    assert {"16", "17"} <= set(where)
    assert any('did you mean "steps"?' in line for line in done.errors)


# -- keys -------------------------------------------------------------------------------------------------------------


def test_an_edited_plugin_is_another_plugin(site):
    module = distribution(site, "in-work", HEAD + SOUND)
    before = Registry.discover().find("attack", "sound").identity({})
    assert Registry.discover().find("attack", "sound").identity({}) == before
    file = site / f"{module}.py"
    file.write_text(file.read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")
    after = Registry.discover().find("attack", "sound").identity({})
    assert {key for key in before if before[key] != after[key]} == {"source"}


def test_editing_the_module_of_a_factory_makes_it_another_plugin(tmp_path, monkeypatch):
    """The manifest of a flat, editable plugin is one file, the factory it names another."""
    (tmp_path / "flat_defense.py").write_text("SHIFT = 0.0\n")
    manifest = "CONTRACT = 1\n" + textwrap.dedent("""
        from autoshield_bench.contracts import DefenseSpec
        from autoshield_bench.hookspecs import hookimpl

        @hookimpl
        def aubench_defenses():
            yield DefenseSpec(name="flat", factory="flat_defense:Flat", summary="Flat.")
    """)
    (tmp_path / "flat_manifest.py").write_text(manifest)
    monkeypatch.syspath_prepend(str(tmp_path))
    sources = []
    for shift in ("0.0", "0.9"):
        (tmp_path / "flat_defense.py").write_text(f"SHIFT = {shift}\n")
        registry = Registry.discover([importlib.import_module("flat_manifest")])
        sources.append(registry.find("defense", "flat").identity({})["source"])
    assert sources[0] != sources[1]


def test_an_installed_plugin_is_known_by_its_record_and_not_by_its_place(tmp_path, monkeypatch):
    identities = []
    for place, lines in (
        ("a", ("m.py,sha256=1,1", "../../bin/x,sha256=2,1", "__pycache__/m.pyc,,")),
        ("b", ("__pycache__/m.pyc,sha256=9,1", "m.py,sha256=1,1")),
        ("c", ("m.py,sha256=3,1",)),
    ):
        folder = tmp_path / place
        folder.mkdir()
        distribution(folder, "wheel-made", HEAD + SOUND, files=lines)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            identities.append(Registry.discover().find("attack", "sound").identity({}))
        importlib.invalidate_caches()
    assert identities[0] == identities[1]
    assert identities[0]["source"] != identities[2]["source"]


def test_timings_name_the_manifest_that_imports_torch(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    distribution(folder, "light-plugin", HEAD + SOUND)
    distribution(folder, "heavy-plugin", "import torch\n" + HEAD + SOUND.replace("sound", "weighty"))
    script = "import sys; from autoshield_bench.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = python(script, "plugins", "list", "--timings", cwd=tmp_path, PYTHONPATH=path_with(folder))
    assert done.returncode == 0
    (heavy,) = [line for line in done.stdout.splitlines() if "imports torch" in line]
    assert "of heavy-plugin" in heavy
    assert any("of light-plugin" in line for line in done.stdout.splitlines())
    done = python(script, "plugins", "list", "--timings", "--json", cwd=tmp_path, PYTHONPATH=path_with(folder))
    timings = {entry["distribution"]: entry for entry in json.loads(done.stdout)["timings"]}
    assert timings["heavy-plugin"]["imported_torch"]
    assert not timings["light-plugin"]["imported_torch"]
    assert timings["heavy-plugin"]["seconds"] > timings["light-plugin"]["seconds"] > 0
