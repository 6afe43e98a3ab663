"""What a run needs of the cache is known before it begins, so that nobody prunes it."""

from __future__ import annotations

import pytest

from autoshield_bench.cache import contents
from autoshield_bench.engine.needs import needs
from autoshield_bench.engine.progress import Silence
from autoshield_bench.engine.runner import RunOptions, plan_for, run_plan
from autoshield_bench.suite_check import load_suite

SUITE = """
schema = 1
name = "needs"
[dataset]
use = "digits"
[model]
use = "small-cnn"
params = { epochs = 1 }
[[threats]]
norm = "linf"
eps = [0.2]
[[defenses]]
use = "none"
[[defenses]]
use = "autoencoder-detector"
params = { epochs = 1 }
[[attacks]]
use = "fgsm"
access = ["gray-box", "white-box", "transfer"]
"""


@pytest.mark.usefixtures("one_thread")
def test_every_artifact_of_a_run_was_known_to_be_needed(tmp_path):
    file = tmp_path / "suite.toml"
    file.write_text(SUITE, encoding="utf-8")
    places = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache"}
    options = RunOptions(**places, device="cpu", limit=20, evidence="off")
    loaded = load_suite(file)
    plan = plan_for(loaded, options)
    assert not run_plan(plan, loaded, options, Silence()).failed
    made = {(entry.stage, entry.key) for entry in contents(tmp_path / "cache").entries}
    assert {stage for stage, _key in made} == {"train", "fit", "attack", "calibrate"}
    assert made <= needs(plan)
