"""The shipped suites and the repository's own results: what README promises a newcomer."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from autoshield_bench import load_results, load_suite
from autoshield_bench.shipped import shipped_suites

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def marked(name):
    return re.search(rf"<!-- {re.escape(name)} -->\n(.*?)<!-- end -->", README, re.DOTALL).group(1)


@pytest.mark.parametrize("name", ["mnist", "mnist-rigor", "mnist-detector", "mnist-sweep", "quick"])
def test_every_shipped_suite_is_sound_and_found_by_name(name):
    assert load_suite(name).suite.name == name
    assert shipped_suites()[name].name == f"{name}.toml"


def test_the_sweep_asks_the_studys_questions():
    suite = load_suite("mnist-sweep").suite
    radii = [eps for threat in suite.threats for eps in threat.eps]
    assert (min(radii), max(radii)) == (0.0, 0.4)
    assert {0.2, 0.3} <= set(radii)
    assert len(suite.seeds) == 3
    assert len(suite.models) == 2
    second = {defense.params.get("second", {}).get("architecture", "conv") for defense in suite.defenses}
    assert len(second) >= 2


@pytest.mark.parametrize("name", ["mnist", "mnist-rigor"])
def test_readme_shows_the_table_of_the_committed_run(name):
    report = (ROOT / "results" / name / "derived" / "leaderboard.md").read_text(encoding="utf-8")
    table = next(part for part in report.split("\n\n") if part.startswith("| Rank"))
    assert table.strip() in marked(f"table: results/{name}")


@pytest.mark.parametrize("name", ["mnist", "mnist-rigor", "mnist-detector", "mnist-sweep", "cross-library"])
def test_committed_results_are_whole(name):
    results = load_results(ROOT / "results" / name)
    assert len(results) > 0
    assert (results.missing, results.damaged, results.failed) == ((), (), ())


@pytest.mark.slow
def test_the_headline_suite_reaches_its_figures(tmp_path):
    """Two autoencoders against an attack that does not know them, and what is left once it does."""
    if not (Path(os.environ.get("AUBENCH_DATA", "")) / "MNIST").is_dir():
        pytest.skip("needs MNIST below AUBENCH_DATA")
    environment = {**os.environ, "AUBENCH_CACHE": str(tmp_path / "cache")}
    command = [Path(sys.executable).with_name("aubench"), "run", "mnist", "--results-dir", tmp_path, "--quiet"]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=1500)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak < 2.5 * 2**20, f"{peak / 2**20:.2f} GiB"

    results = load_results(tmp_path / "mnist")
    assert (results.missing, results.failed) == ((), ())

    def accuracy(pattern):
        (record,) = results.select(f"mnist/small-cnn/{pattern}/seed-0")
        assert record.outcomes.n == (1000 if "white-box" in pattern else 10_000)
        return record.outcomes.hits / record.outcomes.n

    assert accuracy("none/clean") >= 0.985
    assert min(accuracy("autoencoder/clean"), accuracy("stacked-autoencoder/clean")) >= 0.98
    for attack in ("fgsm", "pgd"):
        assert accuracy(f"autoencoder/{attack}/gray-box/linf-0.2") >= 0.90
        assert accuracy(f"stacked-autoencoder/{attack}/gray-box/linf-0.2") >= 0.915
    assert accuracy("none/pgd/white-box/linf-0.2") < 0.1
    assert accuracy("autoencoder/pgd/white-box/linf-0.2") < accuracy("autoencoder/pgd/gray-box/linf-0.2") - 0.3

    before = {path: path.read_bytes() for path in (tmp_path / "mnist").rglob("*") if path.is_file()}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=60)
    after = {path: path.read_bytes() for path in (tmp_path / "mnist").rglob("*") if path.is_file()}
    assert before == after, "an unchanged suite must compute and write nothing new"
