"""A suite with every attack at every access level that it takes, through the runner."""

from __future__ import annotations

from pathlib import Path

from autoshield_bench import load_suite, run

SUITE = """
schema = 1
name = "foolbox"
[dataset]
use = "digits"
[model]
use = "small-cnn"
params = { epochs = 8, features = 8 }
[[threats]]
norm = "linf"
eps = [0.1]
[[threats]]
norm = "l2"
eps = [0.5, 1.0]
[[defenses]]
use = "none"
[[defenses]]
use = "autoencoder"
params = { epochs = 5 }
[[attacks]]
use = "foolbox-fgsm"
access = ["gray-box", "white-box"]
[[attacks]]
use = "foolbox-pgd"
access = ["gray-box", "white-box"]
goal = "targeted"
params = { steps = 5 }
[[attacks]]
use = "foolbox-mim"
access = ["gray-box", "white-box"]
[[attacks]]
use = "foolbox-deepfool"
access = ["gray-box", "white-box"]
params = { steps = 5 }
[[attacks]]
use = "foolbox-cw"
access = "white-box"
norms = ["l2"]
params = { steps = 20, step_size = 0.05 }
[[attacks]]
use = "foolbox-ddn"
access = "white-box"
norms = ["l2"]
params = { steps = 30 }
[[attacks]]
use = "foolbox-fmn"
access = "white-box"
norms = ["linf"]
params = { steps = 30 }
[[attacks]]
use = "foolbox-boundary"
access = ["gray-box", "black-box"]
norms = ["l2"]
queries = 150
params = { steps = 100 }
[[attacks]]
use = "foolbox-hop-skip-jump"
access = ["black-box"]
queries = 150
"""


def test_every_cell_of_a_suite_runs(tmp_path: Path) -> None:
    file = tmp_path / "foolbox.toml"
    file.write_text(SUITE, encoding="utf-8")
    results = run(
        load_suite(file),
        results_dir=tmp_path / "results",
        cache_dir=tmp_path / "cache",
        data_dir=tmp_path / "data",
        device="cpu",
        limit=20,
    )
    assert not [(str(own.cell), own.error) for own in results.records if own.status != "ok"]
    assert not results.missing
    black = [own for own in results.records if own.cell.access == "black-box"]
    assert black
    for own in black:
        assert own.passes["attack"]["classifier"]["backward"] == 0
        assert own.passes["attack"]["classifier"]["forward"] <= 20 * 150
