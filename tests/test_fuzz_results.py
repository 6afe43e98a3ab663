"""Whatever stands in a results directory, its readers answer with a result or with lines that name the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import cell, evidence, metric, record, result_set, write_results
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_registry import aubench

from autoshield_bench.store import write_json, write_sealed

KINDS = ("plan.json", "cells/none/clean-*.json", "cells/ae/pgd-*.json", "evidence/ae/*.json")

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(-1e300, 1e300),
    st.text(max_size=20),
    st.sampled_from(["", "..", "../../x", "a/b", "linf", "aubench.cell/1", "aubench.plan/99", "\x1b[31m", "0" * 64]),
)
JSON = st.recursive(
    SCALARS,
    lambda own: st.one_of(st.lists(own, max_size=3), st.dictionaries(st.text(max_size=8), own, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sound") / "results"
    clean, bare = record(cell("ae"), range(9)), record(cell("none"), range(8))
    attacked = record(cell("ae", "pgd", "white-box"), range(5), metrics={"psnr": metric({"clean-adversarial": 24.5})})
    write_results(directory, result_set(bare, clean, attacked, evidence=(evidence("ae"),), evidence_level="fast"))
    assert aubench("show", directory, "--json").code == 0
    return directory


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container below a value, with each key or index in it."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        own = waiting.pop()
        for key in own if isinstance(own, dict) else range(len(own)):
            found.append((own, key))
            if isinstance(own[key], dict | list):
                waiting.append(own[key])
    return found


def answers(directory: Path) -> None:
    """Ask all who read results, and require answers of them."""
    for command in (
        ("show", directory),
        ("show", directory, "--json"),
        ("show", directory, "--evidence", "--format", "markdown"),
        ("show", directory, "--cost"),
        ("compare", f"{directory}:none", f"{directory}:ae"),
        ("merge", directory, directory, "--into", directory.parent / "merged"),
    ):
        # A traceback would come out of `aubench` here as an exception.
        done = aubench(*command)
        assert done.code in (0, 1, 2, 3), command
        assert (done.code in (2, 3)) <= bool(done.err), command
        assert "\x1b" not in done.out + done.err
        shutil.rmtree(directory.parent / "merged", ignore_errors=True)


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(data=st.data(), pattern=st.sampled_from(KINDS))
def test_a_value_that_is_another_one(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: Any, pattern: str
) -> None:
    directory = tmp_path_factory.mktemp("fuzz") / "results"
    shutil.copytree(sound, directory)
    (path, *_others) = sorted(directory.glob(pattern))
    value = json.loads(path.read_text(encoding="utf-8"))
    container, key = data.draw(st.sampled_from(places(value)))
    if data.draw(st.booleans()):
        container[key] = data.draw(JSON)
    else:
        del container[key]
    value.pop("sha256", None)
    # Whoever edits a record can write the sum that fits: what is behind it must hold out as well.
    (write_json if pattern == "plan.json" else write_sealed)(path, value)
    answers(directory)


@FUZZ
@given(data=st.data(), pattern=st.sampled_from([*KINDS, "journal/*.jsonl", "env/*.json"]))
def test_bytes_that_are_others(sound: Path, tmp_path_factory: pytest.TempPathFactory, data: Any, pattern: str) -> None:
    directory = tmp_path_factory.mktemp("fuzz") / "results"
    shutil.copytree(sound, directory)
    path = next(iter(sorted(directory.glob(pattern))), directory / pattern.replace("*", "x-1-20260101T000000Z"))
    path.parent.mkdir(exist_ok=True)
    before = path.read_bytes() if path.exists() else b'{"event": "cell", "seconds": 1.0}\n'
    at = data.draw(st.integers(0, len(before)))
    path.write_bytes(
        data.draw(
            st.one_of(
                st.binary(max_size=200),
                st.just(before[:at]),
                st.binary(min_size=1, max_size=4).map(lambda own: before[:at] + own + before[at + len(own) :]),
            )
        )
    )
    answers(directory)
