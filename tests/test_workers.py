"""Runs with worker processes: what plugins and accidents do to them costs nothing that is finished."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from autoshield_bench import load_suite
from autoshield_bench.cli.main import main
from autoshield_bench.engine import runner
from autoshield_bench.engine.driver import Driver
from autoshield_bench.engine.executors.local import Local
from autoshield_bench.engine.options import RunOptions, plan_for
from autoshield_bench.engine.progress import Silence
from autoshield_bench.engine.runner import run_plan
from autoshield_bench.results import load_results

TESTS = Path(__file__).parent

NASTY = """
import ctypes, os, signal, sys, threading, time
from dataclasses import dataclass
import torch
from torch import nn
from autoshield_bench.builtin.datasets.digits import Digits
from autoshield_bench.contracts import Attack, AttackSpec, Model, ModelSpec
from autoshield_bench.hookspecs import hookimpl
from pathlib import Path

CONTRACT = 1


@dataclass(frozen=True, kw_only=True)
class Means(Model):
    def build(self, image_shape, classes):
        split = Digits().load("train", Path())
        images, labels = torch.from_numpy(split.images).flatten(1), torch.from_numpy(split.labels)
        means = torch.stack([images[labels == label].mean(0) for label in range(classes)])
        linear = nn.Linear(means.shape[1], classes)
        with torch.no_grad():
            linear.weight.copy_(means)
            linear.bias.copy_(-means.square().sum(1) / 2)
        return nn.Sequential(nn.Flatten(), linear)

    def fingerprint(self):
        return "class means of the digits"


@dataclass(frozen=True, kw_only=True)
class Nasty(Attack):
    how: str

    def run(self, request):
        sys.stderr.write("about to " + self.how + "\\n")
        if self.how == "segfault":
            ctypes.string_at(0)
        if self.how == "exit":
            os._exit(0)
        if self.how == "hang":
            time.sleep(3600)
        if self.how == "thread":
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        if self.how == "print":
            sys.stdout.write("noise " * 10_000_000)
        return request.images


@hookimpl
def aubench_models():
    yield ModelSpec(name="means", factory="nasty:Means", summary="Class means.", trained=True)


@hookimpl
def aubench_attacks():
    yield AttackSpec(name="nasty", factory="nasty:Nasty", summary="Does harm.", norms=("linf",), linear_optimum=False)
"""

SUITE = """schema = 1
name = "harm"
[dataset]
use = "digits"
[model]
use = "{model}"
[[threats]]
norm = "linf"
eps = [0.1]
[[defenses]]
use = "none"
[[defenses]]
use = "gaussian-blur"
params = {{ sigma = 0.5 }}
"""


def suite_of(folder: Path, *attacks: str, model: str = "means", seeds: int = 1) -> Path:
    file = folder / "harm.toml"
    text = SUITE.format(model=model) + "".join(f"[[attacks]]\n{attack}\n" for attack in attacks)
    file.write_text(text.replace("[dataset]", f"seeds = {list(range(seeds))}\n[dataset]", 1), encoding="utf-8")
    (folder / "nasty.py").write_text(NASTY, encoding="utf-8")
    return file


def nasty(how: str, access: str = "white-box") -> str:
    return f'use = "nasty"\nlabel = "{how}"\naccess = "{access}"\nparams = {{ how = "{how}" }}\nimages = 20'


PGD = 'use = "pgd"\naccess = ["gray-box", "white-box"]\nimages = 40\nparams = { steps = 5 }'


def aubench(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoshield_bench", *arguments]
    environment = {**os.environ, "AUBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, **options)


def cells(results: Path) -> dict[str, bytes]:
    return {str(path.relative_to(results)): path.read_bytes() for path in sorted(results.glob("cells/**/*.json"))}


@pytest.mark.slow
def test_harm_costs_its_own_cells_and_nothing_else(tmp_path: Path) -> None:
    harm = ["segfault", "exit", "hang", "thread", "print"]
    suite = suite_of(tmp_path, PGD, *map(nasty, harm))
    done = aubench(tmp_path, "run", str(suite), "--plugin", "nasty.py", "--time-limit", "20s", "--only", "*/none/*")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    records = {record.cell.attack: record for record in load_results(tmp_path / "results" / "harm")}
    ends = {"segfault": "crashed", "exit": "crashed", "hang": "crashed", "thread": "ok", "print": "ok"}
    assert {name: records[name].status for name in harm} == {name: ends[name] for name in harm}
    assert records["segfault"].error.startswith("its worker was killed by SIGSEGV, 3 times; it had last written:")
    assert "about to segfault" in records["segfault"].error
    assert "left with exit code 0, 3 times" in records["exit"].error
    assert "stopped after 20 s, the time limit" in records["hang"].error
    assert "noise" not in done.stderr + done.stdout
    assert "crashed" in done.stderr or "SIGSEGV" in done.stdout

    # What is well is byte for byte what this process gives without workers, and stays where it is.
    alone = tmp_path / "alone"
    alone.mkdir()
    suite_of(alone, PGD, *map(nasty, harm))
    quiet = ["run", "harm.toml", "--plugin", "nasty.py", "--in-process", "--only", "*/none/pgd/*"]
    assert aubench(alone, *quiet).returncode == 0
    first, second = cells(tmp_path / "results" / "harm"), cells(alone / "results" / "harm")
    assert len(second) == 2
    assert {name: first[name] for name in second} == second


@pytest.mark.parametrize("jobs", ["2", pytest.param("1", marks=pytest.mark.slow)])
def test_the_number_of_workers_changes_no_byte(tmp_path: Path, jobs: str) -> None:
    found = []
    for name, how in (("a", ["--in-process"]), ("b", ["--jobs", jobs])):
        folder = tmp_path / name
        folder.mkdir()
        suite_of(folder, PGD, 'use = "fgsm"\naccess = ["gray-box", "white-box"]', model="small-cnn", seeds=2)
        options = ["--limit", "40", "--threads", "1", "--batch-size", "20"]
        (folder / "harm.toml").write_text(
            (folder / "harm.toml")
            .read_text()
            .replace('use = "small-cnn"', 'use = "small-cnn"\nparams = { epochs = 1 }')
        )
        done = aubench(folder, "run", "harm.toml", "--plugin", "nasty.py", *how, *options)
        assert done.returncode == 0, done.stderr
        results = folder / "results" / "harm-limit40"
        found.append(cells(results) | {"board": (results / "derived" / "leaderboard.json").read_bytes()})
    assert len(found[0]) > 10
    assert found[0] == found[1]


def test_an_interrupted_run_leaves_no_worker_and_goes_on(tmp_path: Path) -> None:
    suite_of(tmp_path, PGD, nasty("hang"))
    command = [sys.executable, "-m", "autoshield_bench", "run", "harm.toml", "--plugin", "nasty.py"]
    environment = {**os.environ, "AUBENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    # A shell that starts jobs in the background has them ignore SIGINT, and children inherit that.
    heeding = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, heeding)
    assert running.stderr is not None
    for line in running.stderr:
        if "/none/pgd/white-box" in line:
            break  # what follows is a cell that hangs
    while not (workers := children(running.pid)):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    rest = running.stderr.read()
    running.stderr.close()
    assert running.wait(30) == 130
    assert "finished cells stay" in rest
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    before = cells(tmp_path / "results" / "harm")
    assert len(before) >= 5
    done = aubench(tmp_path, "run", "harm.toml", "--plugin", "nasty.py", "--only", "*/pgd/*")
    assert done.returncode == 0
    assert "of them finished already" in done.stderr
    after = cells(tmp_path / "results" / "harm")
    assert {name: after[name] for name in before} == before
    assert len(after) == 6


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--jobs", "0"], "'0' is neither auto nor a number from 1 to 256"),
        (["--jobs", "many"], "'many' is neither auto nor a number"),
        (["--time-limit", "-3s"], "expected one argument"),
        (["--time-limit", "0"], "'0' is no time; give one such as 90s"),
        (["--time-limit", "nans"], "'nans' is no time"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(capsys, option: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["run", "quick", *option])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_what_the_harness_logs_in_a_worker_is_seen(tmp_path: Path) -> None:
    suite_of(tmp_path, PGD)
    first = aubench(tmp_path, "run", "harm.toml", "--plugin", "nasty.py", "--only", "*/none/pgd/gray-box/*")
    assert first.returncode == 0, first.stderr
    (artifact,) = (tmp_path / "cache" / "attack").glob("*/*/tensors.safetensors")
    artifact.write_bytes(artifact.read_bytes()[:-1])
    again = aubench(tmp_path, "run", "harm.toml", "--plugin", "nasty.py", "--only", "*/gaussian-blur/pgd/gray-box/*")
    assert again.returncode == 0, again.stderr
    assert "is damaged" in again.stderr
    assert "set aside and built anew" in again.stderr


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8")
    return [int(number) for number in found.split()]


# Without torch ----------------------------------------------------------------------------------------------------


class Accidents(Silence):
    """Kills workers as they tell where they are, until ``kills`` of them are dead."""

    def __init__(self, driver: Driver, kills: int, seed: int) -> None:
        self._driver = driver
        self._random = random.Random(seed)
        self.left = kills
        self.begun: Counter[str] = Counter()
        self.survived = 0

    def hear(self, ticket: int, message: str) -> None:
        value = json.loads(message)
        if "here" in value:
            self.begun[value["key"]] += 1
        place = next((name for name in ("here", "half", "written") if name in value), None)
        if place is None:
            self._driver.hear(ticket, message)
        elif self.left and self._random.random() < 0.3:
            self.left -= 1
            os.kill(value[place], self._random.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM]))


def drive(suite: Path, folder: Path, kills: int, seed: int = 0) -> tuple[dict[str, bytes], int, int]:
    """Return the cell files of a run, how many jobs were begun, and how many runs it took."""
    loaded = load_suite(suite)
    options = RunOptions(results_dir=folder, cache_dir=folder / "cache", jobs=2, device="cpu", evidence="off")
    plan = plan_for(loaded, options)
    begun = runs = 0
    left = kills
    environment = {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])}
    before = runner.Local

    def started(listener, **fields: Any) -> Local:
        nonlocal accidents
        accidents = Accidents(listener.__self__, left, seed + runs)
        return before(accidents.hear, **{**fields, "environment": environment, "answer": "worker_toys:compute"})

    accidents: Accidents
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Local", started)
        while True:
            results = run_plan(plan, loaded, options, Silence())
            runs += 1
            begun += sum(accidents.begun.values())
            left = accidents.left
            if not results.failed and not results.missing:
                return cells(results.directory), begun, runs


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_random_kills_lose_no_cell_and_cost_no_more_than_one_each(tmp_path: Path, kills: int) -> None:
    seeds = 3 if kills < 100 else 40
    suite = suite_of(tmp_path, PGD, 'use = "fgsm"\naccess = ["gray-box", "white-box"]', model="small-cnn", seeds=seeds)
    calm, begun, runs = drive(suite, tmp_path / "calm", 0)
    assert (begun, runs) == (len(calm), 1)
    assert len(calm) == 10 * seeds
    stormy, begun_again, _runs = drive(suite, tmp_path / "stormy", kills)
    assert stormy == calm
    assert len(calm) < begun_again <= len(calm) + kills
