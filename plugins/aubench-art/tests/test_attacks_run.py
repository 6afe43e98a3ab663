"""A suite with every attack, from end to end on scikit-learn's digits."""

from __future__ import annotations

from autoshield_bench.engine.runner import run

from aubench_art.attack_specs import attack_specs

SUITE = """
schema = 1
name = "art"
seeds = [0]
[dataset]
use = "digits"
[model]
use = "small-cnn"
params = { epochs = 3, features = 4 }
[[threats]]
norm = "l2"
eps = [0.5, 1.0]
[[defenses]]
use = "none"
[[defenses]]
use = "autoencoder"
params = { epochs = 2, width = 4 }
"""
PARAMS = {
    "art-pgd": "steps = 4",
    "art-apgd": "steps = 5",
    "art-deepfool": "steps = 10",
    "art-cw": "search_steps = 2, steps = 2, initial_weight = 1.0",
    "art-square": "restarts = 1",
    "art-hop-skip-jump": "iterations = 3",
    "art-boundary": "iterations = 10",
}


def test_every_attack_runs_at_its_access_levels(tmp_path):
    parts, wanted = [SUITE], 0
    for spec in attack_specs():
        access = ["gray-box", "white-box"] if spec.needs == "gradients" else ["black-box"]
        queries = "" if spec.needs == "gradients" else "queries = 150\n"
        levels = ", ".join(f'"{level}"' for level in access)
        params = PARAMS.get(spec.name, "")
        parts.append(
            f'[[attacks]]\nuse = "{spec.name}"\naccess = [{levels}]\nimages = 6\n{queries}params = {{ {params} }}'
        )
        wanted += len(access)
    path = tmp_path / "art.toml"
    path.write_text("\n".join(parts), encoding="utf-8")
    results = run(path, results_dir=tmp_path / "results", cache_dir=tmp_path / "cache", limit=20, threads=1)
    assert (results.failed, results.missing, results.damaged) == ((), (), ())
    seen = {(record.cell.attack, record.cell.access) for record in results if record.cell.attack != "clean"}
    assert len(seen) >= wanted
