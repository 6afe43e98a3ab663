"""What a library user relies on: the example in the docstring is true, and importing the package costs nothing."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys

import pytest

import autoshield_bench


def test_the_docstring_example_is_true(tmp_path, monkeypatch):
    monkeypatch.setenv("AUBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(autoshield_bench, raise_on_error=False, verbose=False)
    assert found.attempted >= 5
    assert found.failed == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


LAZY = """
import sys
import autoshield_bench
assert not {"torch", "numpy", "pydantic", "pluggy"} & set(sys.modules)
from autoshield_bench import *
for name in autoshield_bench.__all__:
    assert getattr(autoshield_bench, name) is globals()[name], name
assert callable(run) and callable(load_suite) and callable(load_results)
suite = load_suite("quick")
assert suite.suite.name == "quick"
assert "torch" not in sys.modules
"""


def test_public_names_arrive_without_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LAZY],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="runn"):
        autoshield_bench.runn  # noqa: B018
