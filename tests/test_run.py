"""Runs from end to end on scikit-learn's digits: what is computed, what is kept, and what a broken plugin can do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from test_registry import HEAD, aubench, distribution, path_with, python

from autoshield_bench import load_results, load_suite, run
from autoshield_bench.builtin.models.networks import small_cnn
from autoshield_bench.contracts import (
    Attack,
    AttackSpec,
    Defense,
    DefenseSpec,
    MetricSpec,
    MetricValues,
    Model,
    ModelSpec,
    PredictionMetric,
)
from autoshield_bench.engine.progress import Silence
from autoshield_bench.errors import DataError, StoreError, UsageError
from autoshield_bench.hookspecs import hookimpl
from autoshield_bench.results import cell_path, samples_path
from autoshield_bench.store import content_key

MODEL = 'use = "small-cnn"\nparams = { epochs = 3, features = 4 }'
QUICK = "epochs = 2, width = 4"
AUTOENCODER = f'[[defenses]]\nuse = "autoencoder"\nparams = {{ {QUICK} }}\n'
STACKED = (
    f'[[defenses]]\nuse = "stacked-autoencoder"\n'
    f'params = {{ first = {{ {QUICK} }}, second = {{ {QUICK}, architecture = "unet" }} }}\n'
)
FGSM = '[[attacks]]\nuse = "fgsm"\naccess = ["gray-box", "white-box"]\n'
PGD = '[[attacks]]\nuse = "pgd"\naccess = ["gray-box", "white-box"]\nparams = { steps = 3 }\n'
SSIM = '[[metrics]]\nuse = "ssim"\n'
LIMIT = 60


def suite(folder, *sections, model=MODEL, seeds="[0]", eps="[0.2]", none=True, name="tiny"):
    """Write a suite: the undefended classifier (unless ``none`` is False) and these sections."""
    path = Path(folder) / f"{name}.toml"
    head = (
        f'schema = 1\nname = "{name}"\nseeds = {seeds}\n[dataset]\nuse = "digits"\n[model]\n{model}\n'
        f'[[threats]]\nnorm = "linf"\neps = {eps}\n'
    )
    undefended = '[[defenses]]\nuse = "none"\n' if none else ""
    path.write_text(head + undefended + "".join(sections), encoding="utf-8")
    return path


class Watch(Silence):
    """Remembers what a run told."""

    def __init__(self):
        self.finished, self.stages, self.cells, self.warnings = None, [], [], []

    def begin(self, cells, finished):
        self.finished = finished

    def stage(self, title, total):
        self.stages.append(title)

    def cell(self, record, seconds):
        self.cells.append(str(record.cell))

    def warn(self, message):
        self.warnings.append(message)

    def made(self, stage):
        """The titles of the stages of a kind; whatever is neither training nor fitting is an attack."""
        kinds = {"train": ("train ",), "fit": ("fit ",)}
        known = kinds["train"] + kinds["fit"]
        return [
            it for it in self.stages if (it.startswith(kinds[stage]) if stage in kinds else not it.startswith(known))
        ]


def go(source, folder, *, results="results", cache="cache", plugins=(), **options):
    """Run a suite below ``folder`` on one thread; return its results and what was told."""
    watch = Watch()
    loaded = load_suite(source, plugins=plugins)
    given = {"threads": 1, "limit": LIMIT, "evidence": "off", **options}
    found = run(loaded, results_dir=folder / results, cache_dir=folder / cache, progress=watch, **given)
    return found, watch


def home(folder, results="results"):
    """Where the results of the one suite that ran below ``folder`` lie."""
    (plan,) = (folder / results).rglob("plan.json")
    return plan.parent


def files(directory, below="cells"):
    """Every file below a directory of results, with its bytes."""
    return {path.relative_to(directory): path.read_bytes() for path in (directory / below).rglob("*") if path.is_file()}


def error_of(results, pattern):
    (record,) = results.select(pattern)
    assert record.status == "failed"
    assert record.outcomes is None
    assert "\n" not in record.error
    return record.error


@dataclass
class Done:
    folder: Path
    suite: Path
    results: object
    watch: Watch

    @property
    def home(self):
        return home(self.folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """One finished run of everything built in, which several tests look at and none changes."""
    folder = tmp_path_factory.mktemp("base")
    path = suite(folder, AUTOENCODER, STACKED, FGSM, PGD, SSIM, '[[metrics]]\nuse = "psnr"\n')
    results, watch = go(path, folder, evidence="fast")
    return Done(folder, path, results, watch)


@pytest.fixture
def copy(base, tmp_path):
    """A copy of that run, to change."""
    shutil.copytree(base.folder, tmp_path / "copy")
    return Done(tmp_path / "copy", base.suite, base.results, base.watch)


# -- what a run gives -------------------------------------------------------------------------------------------------


def test_every_cell_is_there_and_well(base):
    assert len(base.results) == 3 * (1 + 2 * 2)
    assert base.results.missing == ()
    assert base.results.failed == ()
    for record in base.results:
        assert record.outcomes.n == LIMIT
        assert record.outcomes.size == 360
        assert set(record.metrics) == {"ssim", "psnr"}
    assert load_results(base.home).records == base.results.records


def test_results_lie_where_the_design_says(base):
    results = base.home
    below = {"cells", "evidence", "samples", "env", "journal", "derived"}
    assert {path.name for path in results.iterdir()} == {"plan.json"} | below
    for judged in ("cells", "evidence"):
        assert {path.name for path in (results / judged).iterdir()} == {"none", "autoencoder", "stacked-autoencoder"}
    assert {path.name for path in (results / "derived").iterdir()} == {"leaderboard.md", "leaderboard.json"}
    assert len(list((results / "journal").iterdir())) == 1
    assert len(list((results / "env").iterdir())) == 1
    assert not [path for path in base.folder.rglob("*") if path.name.endswith(".tmp")]


def test_records_name_no_path_and_no_time(base):
    for data in (files(base.home) | files(base.home, "env") | files(base.home, "evidence")).values():
        assert str(base.folder).encode() not in data
        assert b"seconds" not in data


def test_per_image_arrays_agree_with_the_record(base):
    for record in base.results:
        arrays = base.results.arrays(record)
        index = arrays["index"].tolist()
        assert index == sorted(set(index))
        assert sum(1 << image for image in index) == record.outcomes.evaluated
        assert sum(1 << image for image, right in zip(index, arrays["correct"], strict=True) if right) == (
            record.outcomes.correct
        )
        assert ((arrays["prediction"] == arrays["label"]) == arrays["correct"]).all()
        for name in set(arrays) - {"index", "label", "clean_prediction", "prediction", "correct", "distance", "passes"}:
            metric, _, pair = name.partition("/")
            assert arrays[name].shape == (LIMIT,)
            assert np.isnan(arrays[name]).sum() == record.metrics[metric].pairs[pair]["undefined"]
        if record.cell.attack is None:
            assert (arrays["prediction"] == arrays["clean_prediction"]).all()


def test_records_are_selected_by_pattern(base):
    assert len(base.results.select("*/autoencoder/pgd/*")) == 2
    assert {record.cell.attack for record in base.results.select("*/none/clean/*")} == {None}
    assert base.results.select("nothing") == ()


def test_arrays_that_are_not_here_are_an_error_with_a_remedy(copy):
    results = load_results(copy.home)
    for path in (copy.home / "samples").iterdir():
        path.unlink()
    with pytest.raises(StoreError, match="run the suite on this machine"):
        results.arrays(results.records[0])


def test_what_gray_box_and_white_box_spend_is_counted_where_it_was_spent(base):
    (gray,) = base.results.select("*/stacked-autoencoder/pgd/gray-box/*")
    assert gray.passes["attack"] == {"classifier": {"forward": 4 * LIMIT, "backward": 3 * LIMIT}}
    (white,) = base.results.select("*/stacked-autoencoder/pgd/white-box/*")
    spent = {"forward": 4 * LIMIT, "backward": 3 * LIMIT}
    assert white.passes["attack"] == {"classifier": spent, "1:autoencoder": spent, "2:autoencoder": spent}


# -- what is computed once --------------------------------------------------------------------------------------------

WARM = """
import sys
from autoshield_bench.cli.main import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


def test_a_second_run_computes_nothing_and_needs_no_torch(copy, tmp_path):
    before = files(copy.home, ".")
    options = ["--results-dir", copy.folder / "results", "--cache-dir", tmp_path / "empty", "--limit", LIMIT]
    done = python(WARM, "run", copy.suite, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "15 of them finished already" in done.stderr
    assert files(copy.home, ".") == before
    assert not (tmp_path / "empty").exists()


AGAIN = """
import sys
from autoshield_bench import load_suite, run
run(load_suite(sys.argv[1]), results_dir=sys.argv[2], cache_dir=sys.argv[3], threads=1, limit=int(sys.argv[4]))
"""


def test_the_same_seed_gives_the_same_bytes_in_another_process_and_place(base, tmp_path):
    elsewhere = tmp_path / "some where else"
    elsewhere.mkdir()
    done = python(
        AGAIN, base.suite, elsewhere / "r", elsewhere / "c", LIMIT, cwd=elsewhere, PYTHONHASHSEED="4", TZ="Asia/Tokyo"
    )
    assert done.returncode == 0, done.stderr
    for below in ("cells", "env", "evidence", "samples", "derived"):
        assert files(home(elsewhere, "r"), below) == files(base.home, below)
    assert (home(elsewhere, "r") / "plan.json").read_bytes() == (base.home / "plan.json").read_bytes()


@pytest.mark.parametrize("change", [{"batch_size": 17}, {"threads": 2}])
def test_batch_size_and_threads_hardly_change_a_prediction(base, tmp_path, change):
    whole, _ = go(base.suite, base.folder, results="whole", limit=None)
    # An empty cache: training, too, happens under the other setting.
    other, _ = go(base.suite, tmp_path, limit=None, **change)
    differing = total = 0
    for mine, theirs in zip(whole, other, strict=True):
        assert mine.key == theirs.key
        a, b = whole.arrays(mine), other.arrays(theirs)
        assert (a["index"] == b["index"]).all()
        differing += int((a["prediction"] != b["prediction"]).sum())
        total += len(a["prediction"])
    assert total == 15 * 360
    assert differing <= total / 1000


def test_a_changed_attack_parameter_runs_that_attack_alone(copy, tmp_path):
    changed = suite(tmp_path, AUTOENCODER, STACKED, FGSM, PGD.replace("3", "4"), SSIM, '[[metrics]]\nuse = "psnr"\n')
    before = files(copy.home)
    results, watch = go(changed, copy.folder)
    assert watch.finished == 9
    assert len(watch.cells) == 6
    assert all("/pgd/" in name for name in watch.cells)
    assert len(watch.made("attack")) == 4
    assert watch.stages == watch.made("attack")
    after = files(copy.home)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 6
    assert len(results) == 15


def test_a_gray_box_attack_is_crafted_once_for_all_defenses(base):
    assert len([title for title in base.watch.made("attack") if "gray-box" in title]) == 2
    assert len([title for title in base.watch.made("attack") if "white-box" in title]) == 6
    for attack in ("fgsm", "pgd"):
        records = base.results.select(f"*/{attack}/gray-box/*")
        assert len({record.facts["attack"]["key"] for record in records}) == 1
        values = [base.results.arrays(record)["ssim/clean-adversarial"].tolist() for record in records]
        assert values[0] == values[1] == values[2]


def test_a_further_metric_runs_no_attack(copy, tmp_path):
    more = suite(
        tmp_path, AUTOENCODER, STACKED, FGSM, PGD, SSIM, '[[metrics]]\nuse = "psnr"\n[[metrics]]\nuse = "l2"\n'
    )
    results, watch = go(more, copy.folder)
    assert watch.finished == 0
    assert len(watch.cells) == 15
    assert watch.stages == []
    for old, new in zip(copy.results, results, strict=True):
        assert new.outcomes == old.outcomes
        assert new.key == old.key
        assert {name: new.metrics[name] for name in old.metrics} == dict(old.metrics)
        assert "l2" in new.metrics


def test_the_first_of_two_autoencoders_is_the_single_one(base):
    assert len(base.watch.made("train")) == 1
    assert sorted(base.watch.made("fit")) == ["fit 1:autoencoder (seed 0)", "fit 2:autoencoder (seed 0)"]
    (single,) = base.results.select("*/autoencoder/clean/*")
    (double,) = base.results.select("*/stacked-autoencoder/clean/*")
    keys = [stage["key"] for stage in double.facts["defense"]]
    assert [stage["key"] for stage in single.facts["defense"]] == keys[:1]
    assert len(set(keys)) == 2


def test_force_computes_everything_again_once(copy):
    before = files(copy.home)
    _results, watch = go(copy.suite, copy.folder, force=True, evidence="fast")
    assert sorted(watch.stages) == sorted(copy.watch.stages)
    assert files(copy.home) == before


# -- parts of a suite -------------------------------------------------------------------------------------------------


def test_only_runs_what_matches_and_the_rest_follows(tmp_path):
    path = suite(tmp_path, AUTOENCODER, FGSM)
    results, watch = go(path, tmp_path, only="*/none/fgsm/*")
    assert len(results) == 2
    assert len(results.missing) == 4
    assert watch.made("fit") == []
    results, watch = go(path, tmp_path)
    assert (len(results), watch.finished, results.missing) == (6, 2, ())
    assert watch.made("train") == []
    with pytest.raises(UsageError, match="matches no cell"):
        go(path, tmp_path, only="zzz")


def test_a_limit_has_a_directory_of_its_own_and_a_nested_subset(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    only = "*/none/clean/*"
    for limit in (20, 40, None):
        run(base.suite, cache_dir=base.folder / "cache", limit=limit, only=only, threads=1)
    assert sorted(path.name for path in Path("results").iterdir()) == ["tiny", "tiny-limit20", "tiny-limit40"]
    masks = [
        load_results(Path("results") / name).records[0].outcomes for name in ("tiny-limit20", "tiny-limit40", "tiny")
    ]
    assert [mask.n for mask in masks] == [20, 40, 360]
    assert masks[0].evaluated & masks[1].evaluated == masks[0].evaluated
    assert masks[0].correct == masks[2].correct & masks[0].evaluated
    labels = load_results(Path("results/tiny-limit20"))
    assert np.bincount(labels.arrays(labels.records[0])["label"], minlength=10).tolist() == [2] * 10


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"batch_size": 0}, {"threads": -1}, {"seed": -1}, {"device": "tpu"}])
def test_a_setting_that_makes_no_sense_is_refused_before_anything_is_written(base, tmp_path, wrong):
    with pytest.raises(UsageError):
        go(base.suite, tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_seeds_are_trained_apart_and_one_can_be_chosen(tmp_path):
    path = suite(tmp_path, AUTOENCODER, FGSM, seeds="[0, 7]")
    results, watch = go(path, tmp_path)
    assert len(results) == 12
    assert (len(watch.made("train")), len(watch.made("fit"))) == (2, 2)
    assert len({record.key for record in results}) == 12
    assert len(watch.made("attack")) == 2 * 3
    (first, second) = results.select("*/none/clean/*")
    assert first.facts["model"]["key"] != second.facts["model"]["key"]
    alone, watch = go(path, tmp_path, results="alone", seed=7)
    assert watch.stages == []
    assert [record.key for record in alone] == [record.key for record in results if record.cell.seed == 7]


def test_no_room_changes_nothing(tmp_path):
    metrics = SSIM + '[[metrics]]\nuse = "psnr"\n[[metrics]]\nuse = "linf"\n'
    results, _ = go(suite(tmp_path, AUTOENCODER, FGSM, PGD, metrics, eps="[0, 0.1]"), tmp_path)
    assert results.failed == ()
    assert len(results) == 2 * (1 + 2 * 4)
    for record in results.select("*/linf-0/*"):
        (clean,) = results.select(f"*/{record.cell.defense}/clean/*")
        assert record.outcomes == clean.outcomes
        assert record.metrics["linf"].pairs["clean-adversarial"]["value"] == 0
        assert record.metrics["ssim"].pairs["clean-adversarial"]["value"] == pytest.approx(1)
        psnr = record.metrics["psnr"].pairs["clean-adversarial"]
        assert (psnr["value"], psnr["undefined"], psnr["n"]) == (None, LIMIT, LIMIT)
    for record in results.select("*/linf-0.1/*"):
        assert 0 < record.metrics["linf"].pairs["clean-adversarial"]["value"] <= 0.1


def test_both_norms_and_subsets_stand_side_by_side(tmp_path):
    l2 = '[[threats]]\nnorm = "l2"\neps = [0.8]\n'
    some = '[[attacks]]\nuse = "pgd"\nlabel = "some"\nnorms = ["l2"]\naccess = ["white-box"]\nimages = 10\n'
    some += "params = { steps = 2, restarts = 2 }\n"
    results, _ = go(suite(tmp_path, l2, FGSM, some, '[[metrics]]\nuse = "l2"\n'), tmp_path)
    assert results.failed == ()
    (few,) = results.select("*/some/*")
    assert (few.cell.norm, few.outcomes.n) == ("l2", 10)
    arrays = results.arrays(few)
    assert arrays["l2/clean-adversarial"].max() <= 0.8 + 1e-6
    assert arrays["l2/clean-adversarial"].min() > 0.4
    assert len(results.select("*/fgsm/*")) == 4


# -- models that come trained -----------------------------------------------------------------------------------------


def weights(features=4):
    torch.manual_seed(3)
    return small_cnn(1, 8, 8, 10, features).eval()


def test_a_checkpoint_is_used_as_it_is(tmp_path):
    from safetensors.torch import save_file

    network = weights()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    path = suite(tmp_path, AUTOENCODER, FGSM, model=MODEL + '\ncheckpoint = "net.safetensors"', seeds="[0, 1]")
    results, watch = go(path, tmp_path)
    assert results.failed == ()
    assert watch.made("train") == []
    assert len(watch.made("attack")) == 2 * 3
    (first, second) = results.select("*/none/clean/*")
    assert first.outcomes == second.outcomes
    # Its own predictions, on its own reading of the data set.
    from autoshield_bench.builtin.datasets.digits import Digits

    test = Digits().load("test", tmp_path)
    index = results.arrays(first)["index"]
    expected = network(torch.from_numpy(test.images[index])).argmax(1)
    assert results.arrays(first)["prediction"].tolist() == expected.tolist()
    # Other weights are another classifier.
    torch.nn.init.zeros_(network[0].weight)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    _results, watch = go(path, tmp_path)
    assert watch.finished == 0


def test_a_checkpoint_that_does_not_fit_is_one_line_and_exit_code_3(tmp_path):
    from safetensors.torch import save_file

    path = suite(tmp_path, FGSM, model=MODEL + '\ncheckpoint = "net.safetensors"')
    options = ["--results-dir", tmp_path / "r", "--cache-dir", tmp_path / "c", "--limit", 20]

    def complaint():
        done = aubench("run", path, *options)
        assert (done.code, done.out) == (3, "")
        (line,) = done.errors
        assert str(tmp_path / "net.safetensors") in line
        assert not list((tmp_path / "r").rglob("cells/*/*"))
        return line

    assert "no such checkpoint" in complaint()
    assert not (tmp_path / "r").exists()
    save_file(weights(features=6).state_dict(), tmp_path / "net.safetensors")
    assert "do not fit" in complaint()
    (tmp_path / "net.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:-5])
    assert "not a safetensors file" in complaint()
    with pytest.raises(DataError):
        go(path, tmp_path)


class Payload:
    """Runs as soon as it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_a_checkpoint_of_torch_is_read_where_the_suite_says_so(tmp_path):
    from safetensors.torch import save_file

    state = weights().state_dict()
    save_file(state, tmp_path / "net.safetensors")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "net.pt")
    plain, asked = 'checkpoint = "net.safetensors"', 'checkpoint = "net.pt"\ncheckpoint_format = "torch"'
    first, second = (
        go(suite(tmp_path, FGSM, model=f"{MODEL}\n{own}"), tmp_path / str(len(own)))[0] for own in (plain, asked)
    )
    assert [own.outcomes for own in first] == [own.outcomes for own in second]
    with pytest.raises(DataError, match='checkpoint_format = "torch"'):
        go(suite(tmp_path, FGSM, model=MODEL + '\ncheckpoint = "net.pt"'), tmp_path)


@pytest.mark.parametrize("where", ["value", "beside"])
def test_a_checkpoint_that_holds_a_program_is_refused_and_not_run(tmp_path, monkeypatch, where):
    state = weights().state_dict()
    monkeypatch.chdir(tmp_path)
    torch.save({**state, "more": Payload()} if where == "value" else {"state_dict": state, "by": Payload()}, "net.pt")
    path = suite(tmp_path, FGSM, model=MODEL + '\ncheckpoint = "net.pt"\ncheckpoint_format = "torch"')
    # Neither the environment nor what somebody else called safe is a way round.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.serialization.add_safe_globals([Path.touch, Payload])
    try:
        with pytest.raises(DataError, match="holds more than weights"):
            go(path, tmp_path)
    finally:
        torch.serialization.clear_safe_globals()
    assert not (tmp_path / "ran").exists()


@dataclass(frozen=True, kw_only=True)
class Ready(Model):
    """A model that comes trained."""

    def build(self, image_shape, classes):
        return weights()

    def fingerprint(self):
        return "ready-1"


class ReadyPlugin:
    CONTRACT = 1

    @hookimpl
    def aubench_models(self):
        yield ModelSpec(name="ready", factory=f"{__name__}:Ready", summary="Trained already.", trained=True)


def test_a_model_plugin_that_comes_trained_is_not_trained(tmp_path):
    path = suite(tmp_path, FGSM, model='use = "ready"', seeds="[0, 5]")
    results, watch = go(path, tmp_path, plugins=[ReadyPlugin()])
    assert results.failed == ()
    assert watch.made("train") == []
    (first, second) = results.select("*/none/clean/*")
    assert first.outcomes == second.outcomes
    assert first.facts["model"]["key"] == second.facts["model"]["key"]
    assert first.facts["model"]["trained_here"] is False


# -- plugins that break their promises --------------------------------------------------------------------------------

PRESSED: list[str] = []
SURROGATE = "cannot open \udcff.bin"


def spoil(x, way):
    """Return what a rogue plugin makes of ``x``."""
    match way:
        case "raise":
            raise ValueError("broken on\npurpose, 42 times")
        case "surrogate":
            raise OSError(SURROGATE)
        case "data-error":
            raise DataError("my own files are not there")
        case "store-error":
            raise StoreError("my own cache is gone")
        case "exit":
            sys.exit(3)
        case "memory":
            raise MemoryError("no room for 10 GiB")
        case "nothing":
            return None
        case "shape":
            return x[:, :, 1:]
        case "fewer":
            return x[1:]
        case "dtype":
            return x.double()
        case "nan":
            return torch.cat([x[:2] * torch.nan, x[2:]])
        case "infinite":
            return torch.cat([x[:2] + torch.inf, x[2:]])
        case "range":
            return torch.cat([x[:3] * 0 + 1.25, x[3:]])
        case "ball":
            return x + 0.3 * (0.5 - x).sign()
    return x


@dataclass(frozen=True, kw_only=True)
class RogueAttack(Attack):
    way: str

    def run(self, request):
        return spoil(request.images, self.way)


@dataclass(kw_only=True)
class RogueDefense(Defense):
    way: str

    def purify(self, x, rng):
        return spoil(x, self.way)


@dataclass(kw_only=True)
class RogueFit(Defense):
    way: str

    def fit(self, request):
        spoil(request.images, self.way)


@dataclass(kw_only=True)
class Clamp(Defense):
    def purify(self, x, rng):
        return x.clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class RogueMetric(PredictionMetric):
    way: str

    def per_image(self, labels, clean_logits, logits):
        values = (logits.argmax(1) == labels).double()
        if torch.equal(clean_logits, logits):
            return MetricValues(values=values)
        match self.way:
            case "shape":
                return MetricValues(values=values[:, None])
            case "not-values":
                return values
            case _:
                # A quarter more, by which ``aggregate`` knows them again.
                return MetricValues(values=spoil(values + 0.25, self.way))

    def aggregate(self, values, undefined):
        if min(values) in (0, 1):
            return super().aggregate(values, undefined)
        return {"aggregate-nan": float("nan"), "aggregate-tensor": torch.tensor(1.0)}[self.way]


@dataclass(frozen=True, kw_only=True)
class Interrupting(Attack):
    """Behaves as if somebody pressed Ctrl-C, while ``PRESSED`` holds anything."""

    def run(self, request):
        if PRESSED:
            raise KeyboardInterrupt
        return request.images


class Rogues:
    CONTRACT = 1

    @hookimpl
    def aubench_attacks(self):
        yield AttackSpec(name="rogue", factory=f"{__name__}:RogueAttack", summary="Breaks promises.", norms=("linf",))
        yield AttackSpec(name="interrupting", factory=f"{__name__}:Interrupting", summary="Ctrl-C.", norms=("linf",))

    @hookimpl
    def aubench_defenses(self):
        yield DefenseSpec(name="rogue", factory=f"{__name__}:RogueDefense", summary="Breaks promises.")
        yield DefenseSpec(name="rogue-fit", factory=f"{__name__}:RogueFit", summary="Breaks promises in training.")
        yield DefenseSpec(name="clamp", factory=f"{__name__}:Clamp", summary="Clips.")

    @hookimpl
    def aubench_metrics(self):
        yield MetricSpec(
            name="rogue", factory=f"{__name__}:RogueMetric", summary="Breaks promises.", looks_at="predictions",
            direction="higher", range=(0, 1),
        )  # fmt: skip


IMAGE, BATCH = f"({LIMIT}, 1, 8, 8)", f"of {LIMIT} images"
ATTACKS = {
    "raise": ["ValueError: broken on purpose, 42 times"],
    "surrogate": ["OSError: cannot open"],
    "data-error": ["my own files are not there"],
    "store-error": ["my own cache is gone"],
    "exit": ["SystemExit: 3"],
    "memory": ["MemoryError: no room for 10 GiB"],
    "nothing": ["NoneType"],
    "shape": [f"({LIMIT}, 1, 7, 8)", IMAGE],
    "fewer": [f"({LIMIT - 1}, 1, 8, 8)", IMAGE],
    "dtype": ["torch.float64", "torch.float32"],
    "nan": ["NaN", f"2 {BATCH}"],
    "infinite": ["infinity", f"2 {BATCH}"],
    "range": ["1.25", "[0, 1]", f"3 {BATCH}"],
    "ball": ["linf ball of eps 0.2", f"{LIMIT} {BATCH}", "0.3"],
}


def entries(section, use, ways, rest=""):
    return "".join(
        f'[[{section}]]\nuse = "{use}"\nlabel = "{way}"\nparams = {{ way = "{way}" }}\n{rest}' for way in ways
    )


ERRORS_OF_THE_HOST = ("data-error", "store-error")
"""Classes of the host's own, which a plugin may raise as well; each in a run of its own, since they once ended it."""

HARD = (*ERRORS_OF_THE_HOST, "surrogate")


@pytest.fixture(scope="module")
def rogue_attacks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rogue-attacks")
    ways = [way for way in ATTACKS if way not in HARD]
    path = suite(folder, AUTOENCODER, entries("attacks", "rogue", ways, 'access = ["gray-box"]\n'), FGSM)
    return go(path, folder, plugins=[Rogues()])[0]


@pytest.mark.parametrize("way", ATTACKS)
def test_an_attack_that_breaks_a_promise_fails_its_cells_with_the_numbers(rogue_attacks, tmp_path, way):
    results = rogue_attacks
    if way in HARD:
        path = suite(tmp_path, AUTOENCODER, entries("attacks", "rogue", [way], 'access = ["gray-box"]\n'), FGSM)
        results = go(path, tmp_path, plugins=[Rogues()])[0]
    for defense in ("none", "autoencoder"):
        error = error_of(results, f"*/{defense}/{way}/gray-box/*")
        for words in ATTACKS[way]:
            assert words in error
        if way not in ("raise", "surrogate", "exit", "memory", *ERRORS_OF_THE_HOST):
            assert f"'{way}' of in-process" in error
    assert {record.status for record in (*results.select("*/fgsm/*"), *results.select("*/clean/*"))} == {"ok"}
    assert len(results.select("*/fgsm/*")) == 4


def test_what_failed_once_is_not_tried_again_for_every_cell_that_needs_it(tmp_path):
    """The same gray-box examples serve every defense, and so does the error that kept them from being crafted."""
    path = suite(tmp_path, AUTOENCODER, entries("attacks", "rogue", ["raise"], 'access = ["gray-box"]\n'), FGSM)
    results, watch = go(path, tmp_path, plugins=[Rogues()])
    assert len(results.failed) == 2
    assert len([title for title in watch.made("attack") if title.startswith("raise ")]) == 1


DEFENSES = {
    "raise": ["ValueError: broken on purpose, 42 times"],
    "nothing": ["NoneType"],
    "shape": [f"({LIMIT}, 1, 7, 8)", IMAGE],
    "fewer": [f"({LIMIT - 1}, 1, 8, 8)", IMAGE],
    "dtype": ["torch.float64", "torch.float32"],
    "nan": ["NaN", f"2 {BATCH}"],
    "range": ["1.25", "[0, 1]", f"3 {BATCH}"],
}


@pytest.fixture(scope="module")
def rogue_defenses(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rogue-defenses")
    path = suite(folder, AUTOENCODER, entries("defenses", "rogue", DEFENSES), FGSM)
    return go(path, folder, plugins=[Rogues()])[0]


@pytest.mark.parametrize("way", DEFENSES)
def test_a_defense_that_breaks_a_promise_fails_its_cells_with_the_numbers(rogue_defenses, way):
    for tail in ("clean/*", "fgsm/gray-box/*", "fgsm/white-box/*"):
        error = error_of(rogue_defenses, f"*/{way}/{tail}")
        if "white-box" not in tail:
            for words in DEFENSES[way]:
                assert words in error
    for defense in ("none", "autoencoder"):
        assert [record.status for record in rogue_defenses.select(f"*/{defense}/*")] == ["ok"] * 3


def test_a_stage_in_the_middle_of_a_chain_is_checked_too(tmp_path):
    chain = '[[defenses]]\nuse = "chain"\n[[defenses.stages]]\nuse = "rogue"\nparams = { way = "range" }\n'
    chain += '[[defenses.stages]]\nuse = "clamp"\n'
    results, _ = go(suite(tmp_path, chain, FGSM), tmp_path, plugins=[Rogues()])
    assert "1.25" in error_of(results, "*/chain/clean/*")


@pytest.mark.parametrize("way", ["raise", "exit", "data-error"])
def test_a_defense_that_cannot_be_fitted_fails_alone(tmp_path, way):
    path = suite(tmp_path, entries("defenses", "rogue-fit", [way]), FGSM)
    results, _ = go(path, tmp_path, plugins=[Rogues()])
    assert ATTACKS[way][0] in error_of(results, f"*/{way}/clean/*")
    assert [record.status for record in results.select("*/none/*")] == ["ok"] * 3
    assert results.select(f"*/{way}/fgsm/gray-box/*")[0].status == "failed"


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("raise", "broken on purpose"),
        ("exit", "SystemExit"),
        ("nan", "NaN"),
        ("shape", f"({LIMIT}, 1)"),
        ("fewer", f"({LIMIT - 1},)"),
        ("not-values", "Tensor"),
        ("aggregate-nan", "nan"),
        ("aggregate-tensor", "Tensor"),
    ],
)
def test_a_metric_that_breaks_a_promise_fails_its_cells(base, tmp_path, way, words):
    path = suite(tmp_path, FGSM, f'[[metrics]]\nuse = "rogue"\nparams = {{ way = "{way}" }}\n')
    results, _ = go(path, base.folder, results=f"metric-{way}", plugins=[Rogues()])
    assert words in error_of(results, "*/none/fgsm/white-box/*")
    (clean,) = results.select("*/clean/*")
    assert clean.status == "ok"


def test_a_failed_cell_is_tried_again(tmp_path):
    path = suite(tmp_path, entries("attacks", "rogue", ["raise"], 'access = ["gray-box"]\n'), FGSM)
    go(path, tmp_path, plugins=[Rogues()])
    _results, watch = go(path, tmp_path, plugins=[Rogues()])
    assert watch.finished == 3
    assert watch.cells == ["digits/small-cnn/none/raise/gray-box/linf-0.2/seed-0"]


def test_a_failed_cell_makes_the_command_exit_with_1(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    code = HEAD + (
        "from dataclasses import dataclass\n"
        "from autoshield_bench.contracts import Attack\n"
        "@dataclass(kw_only=True)\n"
        "class Loud(Attack):\n"
        "    fail: bool\n"
        "    def run(self, request):\n"
        "        print('chatter of an attack')\n"
        "        if self.fail: raise ValueError('not 1 but 2')\n"
        "        return request.images\n"
        "@hookimpl\n"
        "def aubench_attacks():\n"
        '    yield AttackSpec(name="loud", factory="{module}:Loud", summary="s", norms=("linf",))\n'
    )
    distribution(site, "loud-attack", code)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", path_with(site))  # for the workers
    loud = '[[attacks]]\nuse = "loud"\naccess = ["gray-box"]\nparams = { fail = true }\n'
    results = tmp_path / "r"
    options = [
        "--results-dir",
        results / "results",
        "--cache-dir",
        tmp_path / "c",
        "--limit",
        20,
        "--threads",
        1,
        "--json",
    ]
    done = aubench("run", suite(tmp_path, loud, FGSM), *options)
    assert done.code == 1
    assert "FAILED: ValueError: not 1 but 2" in done.err
    assert aubench("show", home(results)).code == 1
    # What a plugin prints while it works is kept apart: the output is one JSON value.
    assert json.loads(done.out)["suite"] == "tiny"
    assert "chatter of an attack" not in done.err
    (log,) = home(results).glob("journal/worker-*.log")
    assert "chatter of an attack" in log.read_text(encoding="utf-8")
    done = aubench("run", suite(tmp_path, loud.replace("true", "false"), FGSM), *options)
    assert done.code == 0


# -- interruptions and damage -----------------------------------------------------------------------------------------


def test_after_an_interruption_the_next_run_goes_on(tmp_path):
    stop = '[[attacks]]\nuse = "interrupting"\naccess = ["white-box"]\n'
    path = suite(tmp_path, AUTOENCODER, FGSM, stop)
    PRESSED.append("Ctrl-C")
    try:
        with pytest.raises(KeyboardInterrupt):
            go(path, tmp_path, plugins=[Rogues()])
    finally:
        PRESSED.clear()
    kept = files(home(tmp_path))
    assert len(kept) == len(load_results(home(tmp_path))) > 0
    results, watch = go(path, tmp_path, plugins=[Rogues()])
    assert watch.finished == len(kept)
    assert len(watch.cells) == 8 - len(kept)
    assert watch.made("train") == []
    assert not any(title.startswith("fgsm gray-box") for title in watch.stages)
    assert (results.failed, results.missing) == ((), ())
    after = files(home(tmp_path))
    assert {name: after[name] for name in kept} == kept


# A shell that starts jobs in the background has them ignore SIGINT, and children inherit that.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from autoshield_bench.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_ends_the_command_and_keeps_what_is_finished(base, tmp_path, number, code, word):
    # The attack would take minutes: the signal always arrives in the middle of it.
    long = PGD.replace("3", "200000")
    path = suite(tmp_path, AUTOENCODER, FGSM, long)
    command = [sys.executable, "-c", INTERRUPTIBLE, "run", path, "--results-dir", tmp_path / "r"]
    command += ["--cache-dir", base.folder / "cache", "--limit", str(LIMIT), "--threads", "1"]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        for line in process.stderr:
            if line.startswith("[2/"):
                process.send_signal(getattr(signal, number))
                break
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"error: {word}; finished cells stay")
    results = load_results(home(tmp_path, "r"))
    assert len(results) >= 2
    assert {record.status for record in results} == {"ok"}
    assert not [entry for entry in tmp_path.rglob("*") if entry.name.endswith(".tmp")]
    plan = aubench(
        "plan", path, "--results-dir", tmp_path / "r", "--cache-dir", base.folder / "cache", "--limit", LIMIT
    )
    assert plan.out.count("finished  digits/") == len(results)


def _without(key):
    def damage(path):
        value = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**value, key: {}}), encoding="utf-8")

    return damage


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "not an object": lambda path: path.write_bytes(b"3\n"),
    "another cell's": lambda path: path.write_bytes(next(path.parent.parent.glob("autoencoder/clean-*")).read_bytes()),
    "no outcomes": _without("outcomes"),
    "no metrics": _without("metrics"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_record_is_computed_again(copy, name):
    before = files(copy.home)
    DAMAGE[name](next(copy.home.glob("cells/none/fgsm-gray-box-*.json")))
    results, watch = go(copy.suite, copy.folder)
    assert watch.cells == ["digits/small-cnn/none/fgsm/gray-box/linf-0.2/seed-0"]
    assert files(copy.home) == before
    assert results.damaged == ()
    assert name == "another cell's" or any("fgsm-gray-box-" in warning for warning in watch.warnings)


@pytest.mark.parametrize("size", [0, 10])
def test_per_image_arrays_that_were_cut_short_are_computed_again(copy, size):
    before = files(copy.home, "samples")
    record = next(record for record in load_results(copy.home).records if record.cell.defense == "autoencoder")
    os.truncate(copy.home / samples_path(record.key), size)
    _results, watch = go(copy.suite, copy.folder)
    assert watch.cells == [str(record.cell)]
    assert files(copy.home, "samples") == before


def test_damaged_artifacts_are_built_again_to_the_same_bytes(copy):
    before = files(copy.home)
    for stage in ("train", "fit", "attack"):
        for path in (copy.folder / "cache" / stage).rglob("tensors.safetensors"):
            path.write_bytes(path.read_bytes()[:-1])
    for path in copy.home.glob("cells/*/*.json"):
        path.unlink()
    results, watch = go(copy.suite, copy.folder, evidence="fast")
    assert sorted(watch.stages) == sorted(copy.watch.stages)
    assert files(copy.home) == before
    assert results.failed == ()


def test_a_cache_that_was_deleted_is_built_again(copy):
    shutil.rmtree(copy.folder / "cache")
    path = next(copy.home.glob("cells/stacked-autoencoder/fgsm-gray-box-*.json"))
    before = path.read_bytes()
    path.unlink()
    _results, watch = go(copy.suite, copy.folder)
    assert len(watch.stages) == 4
    assert path.read_bytes() == before


# -- metrics that cannot be had ---------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No weights and no network."""
    monkeypatch.delenv("AUBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)


def test_a_metric_without_its_weights_is_unavailable_and_the_run_goes_on(base, tmp_path, offline):
    path = suite(tmp_path, AUTOENCODER, FGSM, SSIM, '[[metrics]]\nuse = "lpips"\n')
    results, watch = go(path, base.folder, results="lpips")
    assert results.failed == ()
    assert len([line for line in watch.warnings if "AUBENCH_WEIGHTS" in line]) == 1
    for record in results:
        assert "AUBENCH_WEIGHTS" in record.metrics["lpips"].unavailable
        assert record.metrics["lpips"].pairs == {}
        assert record.metrics["ssim"].unavailable is None
    shown = aubench("show", results.directory)
    assert shown.code == 0
    assert "unavailable" in shown.out
    _results, watch = go(path, base.folder, results="lpips")
    assert watch.finished == len(results)


def test_a_metric_that_does_not_fit_the_images_is_computed_once(base, tmp_path):
    path = suite(tmp_path, FGSM, '[[metrics]]\nuse = "ssim"\nparams = { window = 11 }\n')
    results, _ = go(path, base.folder, results="window")
    assert results.failed == ()
    assert "set window to 7 or less" in results.select("*/fgsm/white-box/*")[0].metrics["ssim"].unavailable
    _results, watch = go(path, base.folder, results="window")
    assert watch.finished == len(results)


def test_keys_say_what_they_depend_on(base):
    plan = json.loads((base.home / "plan.json").read_text(encoding="utf-8"))
    assert [entry["key"] for entry in plan["cells"]] == [record.key for record in base.results]
    for record in base.results:
        assert (base.home / cell_path(record.key, record.cell)).is_file()
        assert record.facts["model"]["identity"]["params"] == {"epochs": 3, "features": 4}
    assert content_key(plan["suite"]) == content_key(dict(base.results.suite))
