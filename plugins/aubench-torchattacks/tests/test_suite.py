"""Whole runs: every attack in small suites on the digits, at every access level that it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from autoshield_bench.engine.runner import run

HEAD = """
schema = 1
name = "{name}"

[dataset]
use = "digits"

[model]
use = "small-cnn"
params = {{ epochs = 4, features = 8 }}

[[threats]]
norm = "{norm}"
eps = [{eps}]

[[defenses]]
use = "none"

[[defenses]]
use = "autoencoder"
params = {{ epochs = 1, width = 4 }}
"""

ATTACK = """
[[attacks]]
use = "torchattacks-{name}"
access = {access}
params = {params}
{more}
"""

LINF = [
    ("fgsm", '["gray-box", "white-box"]', "{}", ""),
    ("pgd", '["gray-box", "white-box"]', "{ steps = 5 }", ""),
    ("pgd", '["white-box"]', "{ steps = 4 }", 'goal = "targeted"\nlabel = "aimed"'),
    ("eotpgd", '["white-box"]', "{ steps = 3 }", ""),
    ("mifgsm", '["gray-box"]', "{ steps = 3 }", ""),
    ("jitter", '["white-box"]', "{ steps = 3 }", ""),
    ("apgd", '["white-box"]', "{ steps = 5 }", ""),
    ("apgdt", '["white-box"]', "{ steps = 3 }", ""),
    ("square", '["black-box", "gray-box"]', "{ queries = 40 }", "queries = 30"),
    ("autoattack", '["white-box"]', "{ steps = 3, queries = 10 }", ""),
    ("fab", '["white-box"]', "{ steps = 3 }", ""),
]

L2 = [
    ("pgd", '["white-box"]', "{ steps = 5 }", ""),
    ("apgdt", '["gray-box"]', "{ steps = 3 }", ""),
    ("square", '["black-box"]', "{}", "queries = 30"),
    ("autoattack", '["gray-box"]', "{ steps = 3, queries = 10 }", ""),
    ("cw", '["gray-box", "white-box"]', "{ steps = 20, learning_rate = 0.1 }", ""),
    ("deepfool", '["white-box"]', "{ steps = 10 }", ""),
    ("fab", '["gray-box"]', "{ steps = 3 }", ""),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One for all: the networks are trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(("norm", "eps", "attacks"), [("linf", 0.15, LINF), ("l2", 1.0, L2)], ids=["linf", "l2"])
def test_a_suite_runs_without_a_failed_cell(norm, eps, attacks, tmp_path, cache):
    text = HEAD.format(name=norm, norm=norm, eps=eps)
    for name, access, params, more in attacks:
        text += ATTACK.format(name=name, access=access, params=params, more=more)
    path = Path(tmp_path / f"{norm}.toml")
    path.write_text(text)
    results = run(path, results_dir=tmp_path / "results", cache_dir=cache, limit=20, device="cpu", threads=1)
    assert {str(record.cell): record.error for record in results.failed} == {}
    levels = sum(access.count("-box") for _, access, _, _ in attacks)
    assert len(results.records) == 2 * (1 + levels)
    for record in results.select("*/torchattacks-square/black-box/*"):
        passes = record.passes["attack"]["classifier"]
        assert passes["backward"] == 0
        assert passes["forward"] <= 30 * 20
