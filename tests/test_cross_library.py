"""Four implementations of one attack agree: the suite across libraries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from autoshield_bench import load_results
from autoshield_bench.statistics import wilson

ROOT = Path(__file__).parents[1]
LIBRARIES = ("", "foolbox-", "torchattacks-", "art-")
NEEDED = ("aubench-foolbox", "aubench-torchattacks", "aubench-art")


def agree(results) -> None:
    """Each library's robust accuracy lies within the built-in's 95 % interval, and the built-in's within its."""
    assert (results.failed, results.missing) == ((), ())
    for attack in ("fgsm", "pgd"):
        counts = {}
        for library in LIBRARIES:
            (record,) = results.select(f"mnist/small-cnn/none/{library}{attack}/white-box/*")
            counts[library] = (record.outcomes.hits, record.outcomes.n)
            assert record.outcomes.n == 1000
            # Not the same images by chance: each of them kept to the ball and used it.
            assert record.metrics["linf"].pairs["clean-adversarial"]["value"] == pytest.approx(0.1, abs=1e-3)
        low, high = wilson(*counts[""])
        for library, (hits, n) in counts.items():
            assert low <= hits / n <= high, f"{library}{attack}: {hits / n} outside {low:.3f} to {high:.3f}"
            assert wilson(hits, n)[0] <= counts[""][0] / 1000 <= wilson(hits, n)[1]
        assert 0.1 < counts[""][0] / 1000 < 0.95


def test_the_committed_run_agrees():
    agree(load_results(ROOT / "results" / "cross-library"))


def test_the_document_shows_the_committed_run():
    report = (ROOT / "results" / "cross-library" / "derived" / "leaderboard.md").read_text(encoding="utf-8")
    table = next(part for part in report.split("\n\n") if part.startswith("| Rank"))
    document = (ROOT / "docs" / "cross-library.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- table: results/cross-library -->\n(.*?)<!-- end -->", document, re.DOTALL)[1]
    assert table.strip() in shown


@pytest.mark.slow
def test_a_run_of_the_suite_agrees(tmp_path):
    for name in NEEDED:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"needs {name}: pip install ./plugins/{name}")
    if not (Path(os.environ.get("AUBENCH_DATA", "")) / "MNIST").is_dir():
        pytest.skip("needs MNIST below AUBENCH_DATA")
    command = [Path(sys.executable).with_name("aubench"), "run", "cross-library", "--results-dir", tmp_path, "--quiet"]
    environment = {**os.environ, "AUBENCH_CACHE": str(tmp_path / "cache")}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=1200)
    agree(load_results(tmp_path / "cross-library"))
