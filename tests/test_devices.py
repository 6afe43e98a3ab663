"""The same run on another device: nothing mixes tensors of two devices, and the same images stand.

No machine of these tests has a GPU; ``pretended_gpu`` refuses what CUDA refuses, and computes on the processor.
"""

from __future__ import annotations

import pytest
import torch
from pretended_gpu import NAME, pretended_gpu

from autoshield_bench.builtin.attacks.apgd import APGD
from autoshield_bench.builtin.attacks.refinement import Attempt, Refinement
from autoshield_bench.builtin.attacks.square import Square
from autoshield_bench.builtin.attacks.strong import Strong
from autoshield_bench.engine import environment, options
from autoshield_bench.engine.runner import run
from autoshield_bench.suite_check import load_suite
from autoshield_bench.verdicts import NOT_MADE

SMOOTHER = """
from dataclasses import dataclass

from autoshield_bench.contracts import Defense, DefenseSpec
from autoshield_bench.hookspecs import hookimpl

CONTRACT = 1


@hookimpl
def aubench_defenses():
    yield DefenseSpec(name="smoother", factory=__name__ + ":Smoother", summary="Noise.")


@dataclass(frozen=True, kw_only=True)
class Smoother(Defense):
    stochastic = True

    def purify(self, x, rng):
        return (x + 0.05 * rng.normal(x.shape[1:], "noise").to(x)).clamp(0, 1)
"""

SUITE = """
schema = 1
name = "everything"

[dataset]
use = "digits"

[model]
use = "small-cnn"
params = { epochs = 5 }

[[threats]]
norm = "linf"
eps = [0.1]

[[threats]]
norm = "l2"
eps = [0.8]
"""

DEFENSES = {
    "none": "",
    "adversarial-training": "epochs = 1",
    "stacked-autoencoder": "first = { width = 4, epochs = 1 }, second = { width = 4, epochs = 1 }",
    "autoencoder-detector": "width = 4, epochs = 4",
    "gaussian-blur": "clean_psnr = 25",
    "median": "",
    "bit-depth": "bits = 2",
    "jpeg": "quality = 75",
    "smoother": "",
}

ATTACKS = [
    ("fgsm", 'access = "gray-box"'),
    ("pgd", 'access = "transfer"\nparams = { steps = 3 }'),
    ("noise", 'access = "black-box"\nqueries = 10'),
    ("square", 'access = "black-box"\nqueries = 10\nparams = { queries = 10 }'),
    ("fgsm", 'access = "white-box"\nlabel = "fgsm-through"'),
    ("pgd", 'access = "white-box"\nlabel = "decoys"\nparams = { steps = 3, restarts = 2, loss = "reconstruction" }'),
    ("ddn", 'access = "white-box"\nnorms = ["l2"]\nparams = { steps = 3 }'),
    ("strong", 'access = "white-box"'),
    ("detector-pgd", 'access = "white-box"\nparams = { steps = 3, restarts = 1, rounds = 1, queries = 6 }'),
]


@pytest.fixture
def small_strong(monkeypatch):
    """The cascade with all its parts, each of a few steps."""
    members = [APGD(loss="margin", steps=3), APGD(loss="targeted-dlr", steps=3)]
    refinement = Refinement(rounds=2, square=Square(queries=6, initial_share=0.1), climb=APGD(loss="margin", steps=3))
    monkeypatch.setattr(Strong, "members", lambda *_: members)
    attempts = [Attempt(refinement=refinement), Attempt(refinement=refinement, towards=1, steps=3)]
    monkeypatch.setattr(Strong, "attempts", lambda _: attempts)


@pytest.fixture
def device(monkeypatch):
    """A device that takes itself for a GPU of this machine."""
    for module in (options, environment):
        monkeypatch.setattr(module, "resolve_device", lambda _wish: NAME)
    monkeypatch.setitem(options.BATCH_SIZES, NAME, options.BATCH_SIZES["cpu"])
    known = torch.is_autocast_enabled
    # torch has no such setting for the device that stands for a GPU here.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: kind != (NAME,) and known(*kind))
    with pretended_gpu():
        yield


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    file = tmp_path_factory.mktemp("plugins") / "smoother_for_devices.py"
    file.write_text(SMOOTHER, encoding="utf-8")
    return file


def figures(folder, text, plugin):
    """Run a suite; return which images were evaluated and which stood, per cell, and which checks were made where."""
    folder.mkdir()
    (folder / "suite.toml").write_text(text, encoding="utf-8")
    loaded = load_suite(folder / "suite.toml", plugins=[plugin])
    results = run(loaded, results_dir=folder / "results", cache_dir=folder / "cache", evidence="full")
    assert [record.error for record in results if record.error] == []
    # What mixes two devices raises, and a check that could not be made says so.
    assert [own.text for record in results.evidence for own in record.verdicts if own.text.startswith(NOT_MADE)] == []
    stood = {str(own.cell): (own.outcomes.evaluated, own.outcomes.correct) for own in results if own.outcomes}
    return stood, {str(own.where): [verdict.check for verdict in own.verdicts] for own in results.evidence}


def everything(images, defenses, attacks):
    tables = [f'[[defenses]]\nuse = "{name}"\nparams = {{ {own} }}' for name, own in defenses.items()]
    tables += [f'[[attacks]]\nuse = "{name}"\nimages = {images}\n{own}' for name, own in attacks]
    return SUITE + "\n\n".join([*tables, '[[metrics]]\nuse = "psnr"', '[[metrics]]\nuse = "ssim"'])


CASES = {
    "every plugin": lambda: everything(4, DEFENSES, ATTACKS),
    "all evidence": lambda: everything(
        100,
        {name: DEFENSES[name] for name in ("none", "autoencoder-detector", "smoother")},
        [("fgsm", 'access = "white-box"'), ("pgd", 'access = "white-box"\nparams = { steps = 20 }')],
    ),
}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "small_strong")
@pytest.mark.parametrize("case", CASES)
def test_a_run_on_another_device_finds_the_same(case, tmp_path, plugin, request):
    here, made_here = figures(tmp_path / "here", CASES[case](), plugin)
    request.getfixturevalue("device")
    away, made_away = figures(tmp_path / "away", CASES[case](), plugin)
    assert made_here == made_away
    assert here.keys() == away.keys()
    seen = changed = 0
    for cell, (evaluated, correct) in here.items():
        assert evaluated
        assert evaluated == away[cell][0]
        # Noise is drawn under the cell's key, which names the device.
        if "/smoother/" not in cell:
            seen += evaluated.bit_count()
            changed += (correct ^ away[cell][1]).bit_count()
    # Sums in another order move the last bits of a number, and now and then an image at the border.
    assert changed <= 0.01 * seen


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    with pretended_gpu():
        there, here = torch.ones(3).to(NAME), torch.ones(3)
        assert (there.device.type, (there + 1).tolist(), (there + torch.tensor(1.0)).tolist()) == (
            NAME,
            [2.0] * 3,
            [2.0] * 3,
        )
        assert there[torch.tensor([0])].cpu().numpy() == 1
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="same device"):
            torch.where(there > 0, here, there)
        with pytest.raises(TypeError, match="NumPy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=NAME, generator=torch.Generator())
