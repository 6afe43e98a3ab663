"""What plugins may not change while they have their turn, and what becomes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from test_access import Plugins
from torch import Tensor, nn

from autoshield_bench import load_suite, run
from autoshield_bench.contracts import Attack, AttackRequest, AttackSpec, Defense, DefenseSpec
from autoshield_bench.engine.integrity import fenced, kept
from autoshield_bench.engine.progress import Silence
from autoshield_bench.hookspecs import hookimpl
from autoshield_bench.results import ResultSet

Runner = Callable[..., tuple[ResultSet, list[str]]]

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True, kw_only=True)
class Scribbler(Attack):
    """Writes into what it is handed."""

    where: str = "images"

    def run(self, request: AttackRequest) -> Tensor:
        found = request.images.clone()
        getattr(request, self.where)[0] = 0
        return found


@dataclass(frozen=True, kw_only=True)
class Vandal(Attack):
    """Changes the state that all plugins share."""

    def run(self, request: AttackRequest) -> Tensor:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.use_deterministic_algorithms(False)
        os.environ["VANDAL"] = "was here"
        os.chdir("/")
        return request.images.clone()


@dataclass(kw_only=True)
class Counting(Defense):
    """Counts its calls in a buffer that it does not list, and drifts with them."""

    network: nn.Module = field(default_factory=lambda: nn.BatchNorm2d(1, affine=False), init=False)

    def purify(self, x: Tensor, rng: object) -> Tensor:
        self.network.num_batches_tracked += 1
        return x * (1 - 1e-3 * min(int(self.network.num_batches_tracked), 100))


class Mine:
    CONTRACT = 1

    @hookimpl
    def aubench_attacks(self) -> Iterator[AttackSpec]:
        for name, cls in (("scribbler", "Scribbler"), ("vandal", "Vandal")):
            yield AttackSpec(
                name=name, factory=f"{__name__}:{cls}", summary="Harm.", norms=("linf",), linear_optimum=False
            )

    @hookimpl
    def aubench_defenses(self) -> Iterator[DefenseSpec]:
        yield DefenseSpec(name="counting", factory=f"{__name__}:Counting", summary="Drifts.")


class Heard(Silence):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def run_suite(tmp_path: Path) -> Runner:
    def run_it(defense: str, attack: str, **options: Any) -> tuple[ResultSet, list[str]]:
        lines = ["schema = 1", 'name = "integrity"', '[dataset]\nuse = "digits"', '[model]\nuse = "nearest-mean"']
        lines += ['[[threats]]\nnorm = "linf"\neps = [0.1]', f"[[defenses]]\n{defense}", f"[[attacks]]\n{attack}"]
        file = tmp_path / "integrity.toml"
        file.write_text("\n".join(lines), encoding="utf-8")
        folders = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", "data_dir": tmp_path}
        heard = Heard()
        suite = load_suite(file, plugins=[Plugins(), Mine()])
        results = run(suite, **{"device": "cpu", "evidence": "off", "progress": heard, **folders, **options})
        return results, heard.warnings

    return run_it


@pytest.mark.parametrize("where", ["images", "labels"])
def test_an_attack_that_writes_into_its_inputs_fails_and_harms_nobody(run_suite: Runner, where: str) -> None:
    attack = f'use = "scribbler"\naccess = "white-box"\nimages = 20\nparams = {{ where = "{where}" }}'
    results, _ = run_suite('use = "none"', attack)
    (failed,) = results.failed
    assert f"wrote into the {where} that it was handed; it must work on a copy" in failed.error


def test_shared_state_is_put_back_and_the_change_is_said(run_suite: Runner) -> None:
    before = (torch.get_default_dtype(), torch.get_num_threads(), Path.cwd(), dict(os.environ))
    results, warnings = run_suite('use = "none"', 'use = "vandal"\naccess = "white-box"\nimages = 20')
    assert not results.failed
    assert (torch.get_default_dtype(), torch.get_num_threads(), Path.cwd(), dict(os.environ)) == before
    assert torch.is_grad_enabled()
    (said,) = (text for text in warnings if "vandal" in text)
    for what in ("default dtype", "grad mode", "threads", "deterministic", "directory", "environment (VANDAL"):
        assert what in said


def test_networks_are_put_back_and_the_change_costs_the_rank(run_suite: Runner) -> None:
    attack = 'use = "pgd"\naccess = "white-box"\nparams = { steps = 5 }\nimages = 60'
    results, _ = run_suite('use = "counting"', attack, evidence="full", limit=60)
    for record in results:
        assert record.facts["changed"] == ["num_batches_tracked of 1:counting"]
    (evidence,) = results.evidence
    (live,) = (verdict for verdict in evidence.verdicts if verdict.check == "live")
    assert live.ruling == "fail"
    assert "which were put back: num_batches_tracked" in live.text


def test_everything_about_a_network_is_put_back() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).eval().requires_grad_(False)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    changed: list[str] = []

    def harm() -> None:
        network[2].train()
        network[0].weight.requires_grad_()
        network[0].register_forward_hook(lambda *_: None)
        with torch.no_grad():
            network[0].bias.data.add_(1)
            network[1].running_mean.fill_(torch.nan)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), kept({"it": network}, changed.append):
        harm()
    assert sorted(changed) == [
        "0.bias of it",
        "1.running_mean of it",
        "hooks of 0 of it",
        "requires_grad of 0.weight of it",
        "training flag of 2 of it",
    ]
    assert not network[2].training
    assert not network[0]._forward_hooks
    assert not network[0].weight.requires_grad
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    again: list[str] = []
    with kept({"it": network}, again.append):
        network(torch.zeros(1, 2))
    assert again == []


def test_what_changes_nothing_is_not_mentioned() -> None:
    said: list[str] = []
    with fenced("it", said.append):
        torch.rand(3)
    assert said == []
