"""Plugins that break what they may not touch: each costs its own cells, is named in one line, and changes no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_executors import gone
from test_workers import PGD, SUITE, aubench, cells

from autoshield_bench.results import load_results

UNRULY = '''
import ctypes, os, signal, subprocess, sys, time
from dataclasses import dataclass
import numpy as np
import torch
from autoshield_bench.contracts import (
    Attack, AttackSpec, Defense, DefenseSpec, MetricSpec, MetricValues, PredictionMetric)
from autoshield_bench.hookspecs import hookimpl
from nasty import Means

CONTRACT = 1


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("and no message either")


class Outside(BaseException):
    """What Python's own machinery raises past every ``except Exception``."""


def do(code, **names):
    known = {**globals(), **names}
    exec(code, known)
    return known


@dataclass(frozen=True, kw_only=True)
class Unruly(Attack):
    code: str
    again: bool = False

    def __post_init__(self):
        if self.again:
            raise Outside("on being made")

    def run(self, request):
        do(self.code, request=request)
        return request.images


@dataclass(frozen=True, kw_only=True)
class Stage(Defense):
    code: str

    def purify(self, x, rng):
        return do(self.code, x=x)["x"]

    def anomaly_score(self, x, classify, rng):
        return (x.flatten(1).mean(1).double() > 0.3) * 1e300


@dataclass(frozen=True, kw_only=True)
class Judge(PredictionMetric):
    code: str

    def per_image(self, labels, clean_logits, logits):
        do(self.code)
        return MetricValues(values=labels.float())


@hookimpl
def aubench_attacks():
    yield AttackSpec(name="unruly", factory="unruly:Unruly", summary="Harm.", norms=("linf",), linear_optimum=False)


@hookimpl
def aubench_defenses():
    yield DefenseSpec(name="stage", factory="unruly:Stage", summary="Harm.")


@hookimpl
def aubench_metrics():
    own = {"direction": "higher", "looks_at": "predictions", "range": (0, 1)}
    yield MetricSpec(name="judge", factory="unruly:Judge", summary="Harm.", **own)
'''

ATTACKS = {
    "mute": "raise Mute()",
    "outside": "raise Outside('gone')",
    "generator": "raise GeneratorExit",
    "autocast": "torch.autocast('cpu', torch.bfloat16).__enter__()",
    "inference": "held = torch.inference_mode(); held.__enter__(); torch.held = held",
    "device": "torch.set_default_device('meta')",
    "products": "torch.set_float32_matmul_precision('medium'); torch.backends.mkldnn.enabled = False",
    "process": "os.umask(0o077); sys.setrecursionlimit(5000); np.seterr(all='raise')",
    "timer": "signal.signal(signal.SIGALRM, lambda *_: 1 / 0); signal.setitimer(signal.ITIMER_REAL, 0.5)",
    "descriptors": "os.held = []\\nwhile True: os.held.append(os.open('/dev/null', os.O_RDONLY))",
}


def written(folder: Path, *tables: str, fresh: bool = True) -> None:
    from test_workers import NASTY

    (folder / "nasty.py").write_text(NASTY, encoding="utf-8")
    (folder / "unruly.py").write_text(UNRULY, encoding="utf-8")
    (folder / "harm.toml").write_text(SUITE.format(model="means") + "\n".join(tables), encoding="utf-8")


def attack(name: str, code: str) -> str:
    own = f'use = "unruly"\nlabel = "{name}"\naccess = "white-box"\nimages = 20\nparams = {{ code = "{code}" }}'
    return f"[[attacks]]\n{own}"


PLUGINS = ("--plugin", "nasty.py", "--plugin", "unruly.py", "--evidence", "off")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["workers", "in this process"])
def test_each_costs_its_own_cells_and_changes_no_other(tmp_path: Path, how: str) -> None:
    # What exhausts the descriptors of a process leaves only a worker's cell lost.
    names = [name for name in ATTACKS if how == "workers" or name != "descriptors"]
    own = ("--in-process",) if how != "workers" else ("--jobs", "1")
    (tmp_path / "calm").mkdir()
    (tmp_path / "wild").mkdir()
    written(tmp_path / "calm", f"[[attacks]]\n{PGD}")
    written(tmp_path / "wild", *[attack(name, ATTACKS[name]) for name in names], f"[[attacks]]\n{PGD}")
    calm = aubench(tmp_path / "calm", "run", "harm.toml", *PLUGINS, *own)
    wild = aubench(tmp_path / "wild", "run", "harm.toml", *PLUGINS, *own)
    assert calm.returncode == 0, calm.stderr
    assert wild.returncode == 1, wild.stderr
    assert not any(line.startswith("Traceback") for line in wild.stderr.splitlines())
    status = {
        (record.cell.defense, record.cell.attack): record for record in load_results(tmp_path / "wild/results/harm")
    }
    ends = {"mute": "failed", "outside": "failed", "generator": "failed", "descriptors": "crashed"}
    for name in names:
        for defense in ("none", "gaussian-blur"):
            assert status[defense, name].status == ends.get(name, "ok"), (name, status[defense, name].error)
    assert status["none", "mute"].error == "Mute: its message cannot be read"
    assert status["none", "outside"].error == "Outside: gone"
    for said in ("autocast on cpu", "inference mode", "default device", "oneDNN", "umask", "a timer"):
        assert said in wild.stderr
    first, second = (cells(tmp_path / name / "results/harm") for name in ("calm", "wild"))
    assert len(first) == 6
    assert {name: second[name] for name in first} == first


def test_scores_beyond_float32_and_metrics_without_words_fail_their_cells_alone(tmp_path: Path) -> None:
    stage = '[[defenses]]\nuse = "stage"\nparams = { code = "" }'
    judge = '[[metrics]]\nuse = "judge"\nparams = { code = "raise Mute()" }'
    written(tmp_path, stage, judge, f"[[attacks]]\n{PGD}")
    done = aubench(tmp_path, "run", "harm.toml", *PLUGINS)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    records = load_results(tmp_path / "results/harm")
    assert len(list(records)) == 9
    for record in records:
        assert record.status == "failed"
        told = "NaN, infinity or a number beyond float32" if record.cell.defense == "stage" else "Mute: its message"
        assert told in record.error


def test_what_is_raised_past_every_exception_on_being_made_is_one_line(tmp_path: Path) -> None:
    made = attack("made", "pass").replace('code = "pass"', 'code = "pass", again = true')
    written(tmp_path, made)
    done = aubench(tmp_path, "plan", "harm.toml", *PLUGINS[:4])
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == done.stderr.splitlines()
    assert "Outside: on being made" in done.stderr
    (tmp_path / "broken.py").write_text("class No(BaseException): pass\nraise No('at import')\n", encoding="utf-8")
    done = aubench(tmp_path, "plan", "quick", "--plugin", "broken.py")
    assert done.returncode == 2
    assert "No: at import" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_a_plugin_has_started_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = "open('child', 'w').write(str(subprocess.Popen(['sleep', '600']).pid)); time.sleep(600)"
    written(tmp_path, attack("starts", code))
    command = [sys.executable, "-m", "autoshield_bench", "run", "harm.toml", *PLUGINS]
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "AUBENCH_CACHE": str(tmp_path / "cache")}) as run:
        until = time.monotonic() + 60
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            assert time.monotonic() < until
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    assert gone(int((tmp_path / "child").read_text()))


# Streams that nobody reads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "away",
    [
        pytest.param("2>/dev/full", marks=pytest.mark.slow),
        pytest.param("2>&-", marks=pytest.mark.slow),
        "2>&1 >/dev/null | head -1",
    ],
)
def test_a_run_whose_chatter_nobody_reads_goes_on_to_its_end(tmp_path: Path, away: str) -> None:
    written(tmp_path, f"[[attacks]]\n{PGD}")
    command = f"set -o pipefail; {sys.executable} -m autoshield_bench run harm.toml {' '.join(PLUGINS)} {away}"
    environment = {**os.environ, "AUBENCH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    assert len(cells(tmp_path / "results/harm")) == 6
    assert (tmp_path / "results/harm/derived/leaderboard.json").exists()
    for closed in (">&-", ">/dev/full"):
        shown = f"{sys.executable} -m autoshield_bench show results/harm {closed}"
        done = subprocess.run(["bash", "-c", shown], cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert b"Traceback" not in done.stderr


# Numbers of a suite -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_numbers_of_many_digits_are_those_of_the_results(tmp_path: Path) -> None:
    written(tmp_path, f"[[attacks]]\n{PGD}".replace("steps = 5", "steps = 5, step_size = 0.0123456789012345"))
    suite = tmp_path / "harm.toml"
    suite.write_text(suite.read_text().replace("[0.1]", "[0.03137254901960784]"), encoding="utf-8")
    done = aubench(tmp_path, "run", "harm.toml", *PLUGINS)
    assert done.returncode == 0, done.stderr
    assert aubench(tmp_path, "show", "results/harm").returncode == 0
    assert json.loads((tmp_path / "results/harm/plan.json").read_text())["suite"]["threats"][0]["eps"] == [
        0.03137254902
    ]
    suite.write_text(suite.read_text().replace("[0.03137254901960784]", "[0.1, 0.1000000000001]"), encoding="utf-8")
    done = aubench(tmp_path, "plan", "harm.toml", *PLUGINS[:4])
    assert done.returncode == 2
    assert "harm.toml:9" in done.stderr


# Where a library lies ---------------------------------------------------------------------------------------------


def test_nothing_in_the_working_directory_is_taken_for_a_library(tmp_path: Path) -> None:
    (tmp_path / "pluggy.py").write_text("raise SystemExit('taken')\n", encoding="utf-8")
    done = aubench(tmp_path, "suites")
    assert done.returncode == 0, done.stderr
    assert "mnist" in done.stdout
