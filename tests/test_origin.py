"""Every result says where it comes from, and nothing about who ran it."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from test_run import FGSM, files, go, suite

from autoshield_bench import load_results, load_suite
from autoshield_bench.engine.bench import _numeric_settings
from autoshield_bench.engine.repository import commit_of
from autoshield_bench.errors import StoreError
from autoshield_bench.numeric import instruction_set, numeric_class, short_class, torch_build
from autoshield_bench.results import samples_path
from autoshield_bench.source import harness_hash
from autoshield_bench.store import content_key, read_json

IMAGES = 30
SECRET = "a-value-of-the-environment"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One small run, with a secret in the environment."""
    folder = tmp_path_factory.mktemp("made")
    os.environ["AUBENCH_TEST_SECRET"] = SECRET
    try:
        results, _ = go(suite(folder, FGSM), folder, limit=IMAGES)
    finally:
        del os.environ["AUBENCH_TEST_SECRET"]
    return results


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


# -- what a record says -----------------------------------------------------------------------------------------------


def test_a_record_names_its_inputs_by_their_hashes(made):
    pictures = load_digits().images
    for record in made:
        inputs = record.facts["inputs"]
        arrays = made.arrays(record)
        assert inputs["labels"] == sha256(arrays["label"].astype("<i8"))
        assert (inputs["dataset"]["name"], inputs["dataset"]["distribution"]) == ("digits", "autoshield-bench")
    # The digits' own file knows which of its pictures are test images by their hash alone: find them again.
    assert len({record.facts["inputs"]["images"] for record in made}) == 1
    from autoshield_bench.builtin.datasets.digits import Digits

    test = Digits().load("test", Path())
    images = test.images[made.arrays(made.records[0])["index"]]
    images = images.astype("<f4") / np.float32(255) if images.dtype == np.uint8 else images.astype("<f4")
    assert made.records[0].facts["inputs"]["images"] == sha256(images)
    assert len(test.images) < len(pictures)


def test_a_record_names_its_output_by_its_hash(made):
    for record in made:
        data = (made.directory / samples_path(record.key)).read_bytes()
        assert record.samples == hashlib.sha256(data).hexdigest()


def test_arrays_that_are_not_the_records_are_refused(made, tmp_path):
    shutil.copytree(made.directory, tmp_path / "copy")
    results = load_results(tmp_path / "copy")
    first, second = (tmp_path / "copy" / samples_path(record.key) for record in results.records[:2])
    shutil.copyfile(second, first)
    with pytest.raises(StoreError, match="not the arrays of its record"):
        results.arrays(results.records[0])
    assert len(results.arrays(results.records[1])["index"]) == IMAGES


def test_a_record_names_code_machine_and_numeric_class(made):
    for record in made:
        assert record.facts["harness"]["source"] == harness_hash()
        assert record.numeric_class == numeric_class("cpu")
        env = read_json(made.directory / "env" / f"{record.env}.json")
        assert env["schema"] == "aubench.env/2"
        assert (env["threads"], env["device"], env["numeric_class"]) == (1, "cpu", record.numeric_class)
        assert env["libraries"]["torch"] == torch.__version__.partition("+")[0]
        assert env["torch"]["kernels"] == torch.backends.cpu.get_cpu_capability()
        assert env["precision"] == {"dtype": "float32", "matmul": "highest"}
        assert env["determinism"]["deterministic_algorithms"] is True


def test_the_plan_names_suite_data_and_every_plugin(made):
    plan = read_json(made.directory / "plan.json")
    assert plan["suite_sha256"] == content_key(plan["suite"])
    assert len(plan["data"]) == 64
    for identity in plan["plugins"].values():
        assert identity["distribution_version"]
        assert len(identity["source"]) == 64
    assert {name.partition(":")[0] for name in plan["plugins"]} == {"dataset", "model", "attack"}


def test_nothing_tells_who_where_or_in_which_environment(made):
    told = (
        b"".join(
            data for below in ("cells", "env", "evidence", "derived") for data in files(made.directory, below).values()
        )
        + (made.directory / "plan.json").read_bytes()
    )
    for secret in (SECRET, "AUBENCH_", str(Path.home()), str(made.directory), str(Path.cwd()), platform.node()):
        assert len(secret) < 3 or secret.encode() not in told
    # A user may be called as a part of a word is: look for the name as a whole value.
    assert json.dumps(getpass.getuser()).encode() not in told


# -- git --------------------------------------------------------------------------------------------------------------


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@e", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, "-C", folder, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "repository" / "suites"
    folder.mkdir(parents=True)
    suite(folder, FGSM)
    (folder / "notes.txt").write_text("a")
    git(folder.parent, "init", "--quiet")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "--quiet", "-m", "first")
    return folder


def test_the_suites_commit_is_told_and_whether_code_or_suite_were_changed(repository):
    head = git(repository, "rev-parse", "HEAD")
    assert commit_of(repository) == {"commit": head, "modified": False}
    (repository / "notes.txt").write_text("b")
    (repository / "new.py").write_text("b")
    assert commit_of(repository) == {"commit": head, "modified": False}  # what a run writes beside its suite, too
    (repository / "tiny.toml").write_text("b")
    assert commit_of(repository) == {"commit": head, "modified": True}


def test_the_environment_names_no_other_repository(repository, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    assert commit_of(outside) is None
    monkeypatch.setenv("GIT_DIR", str(repository.parent / ".git"))
    assert commit_of(outside) is None


def test_no_commit_no_git_and_no_answer_are_no_error(tmp_path, monkeypatch):
    if shutil.which("git") is not None:
        git(tmp_path, "init", "--quiet")
    assert commit_of(tmp_path) is None
    assert commit_of(tmp_path / "nowhere") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path) is None


def test_a_program_that_the_repository_names_is_not_run(repository, tmp_path):
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path / 'sprung'}\n")
    trap.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(trap))
    assert commit_of(repository)["modified"] is False
    assert not (tmp_path / "sprung").exists()


def test_a_run_records_the_commit_in_its_journal_and_its_numbers_do_not_depend_on_it(repository, made):
    results, _ = go(repository / "tiny.toml", repository.parent, limit=IMAGES)
    (path,) = (results.directory / "journal").glob("*.jsonl")
    (event,) = (own for line in path.read_text().splitlines() if (own := json.loads(line))["event"] == "run")
    assert event["git"] == {"commit": git(repository, "rev-parse", "HEAD"), "modified": False}
    assert list(results) == list(made)


# -- numeric class ----------------------------------------------------------------------------------------------------


def test_the_numeric_class_is_device_kind_instruction_set_and_torch_build(monkeypatch):
    assert numeric_class("cpu") == f"cpu/{instruction_set()}/{torch_build()}"
    assert torch_build() == torch.__version__
    widest = instruction_set()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert instruction_set() == f"{widest}-avx2"
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "/home/somebody; rm -rf")
    assert instruction_set() == widest


def test_a_class_has_a_short_name_that_fits_into_a_files():
    names = [short_class(own) for own in ("cpu/x86_64-avx2/2.15.0", "cpu/x86_64-avx512f/2.15.0", "../../x", "")]
    assert len(set(names)) == 4
    assert names[0].startswith("cpu-")
    assert all(name.replace("-", "").isalnum() for name in names)


def test_a_gpu_may_not_round_float32_to_fewer_bits():
    before = torch.backends.cudnn.allow_tf32
    with _numeric_settings(1):
        assert torch.backends.cudnn.allow_tf32 is False
        assert torch.backends.cuda.matmul.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 == before


def test_the_suites_folder_is_where_its_file_lies(tmp_path):
    assert load_suite(suite(tmp_path, FGSM)).folder == tmp_path
