"""What plugins may not change while they have their turn, and what becomes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from test_access import Plugins
from torch import Tensor, nn

from autoshield_bench import load_suite, run
from autoshield_bench.contracts import (
    Attack,
    AttackRequest,
    AttackSpec,
    Defense,
    DefenseSpec,
    MetricSpec,
    MetricValues,
    PredictionMetric,
)
from autoshield_bench.engine.integrity import fenced, kept
from autoshield_bench.engine.progress import Silence
from autoshield_bench.errors import Unavailable
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


@dataclass(frozen=True, kw_only=True)
class Meddling(PredictionMetric):
    """Changes the grad mode, or says what cannot be written down."""

    way: str

    def notes(self) -> Any:
        return {"surrogate": "\ud800", "number": 3}.get(self.way, "")

    def per_image(self, labels: Tensor, clean_logits: Tensor, logits: Tensor) -> MetricValues:
        if self.way == "grad":
            torch.set_grad_enabled(not torch.is_grad_enabled())
        if self.way == "reason":
            raise Unavailable("no\ud800")
        return MetricValues(values=(logits.argmax(1) == labels).float())


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

    @hookimpl
    def aubench_metrics(self) -> Iterator[MetricSpec]:
        yield MetricSpec(
            name="meddling",
            factory=f"{__name__}:Meddling",
            summary="Harm.",
            looks_at="predictions",
            direction="higher",
            range=(0, 1),
        )


class Heard(Silence):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def run_suite(tmp_path: Path) -> Runner:
    def run_it(defense: str, attack: str, eps: Sequence[float] = (0.1,), **options: Any) -> tuple[ResultSet, list[str]]:
        lines = ["schema = 1", 'name = "integrity"', '[dataset]\nuse = "digits"', '[model]\nuse = "nearest-mean"']
        lines += [
            f'[[threats]]\nnorm = "linf"\neps = {list(eps)}',
            f"[[defenses]]\n{defense}",
            f"[[attacks]]\n{attack}",
        ]
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


def test_metrics_change_nothing_that_is_shared(run_suite: Runner) -> None:
    metric = '[[metrics]]\nuse = "meddling"\nparams = { way = "grad" }'
    before = torch.is_grad_enabled()
    results, warnings = run_suite('use = "none"', f'use = "fgsm"\naccess = "white-box"\nimages = 20\n{metric}')
    assert not results.failed
    assert "metric 'meddling' changed the grad mode; put back" in warnings
    assert torch.is_grad_enabled() == before


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("surrogate", "notes() returned a text that is no Unicode (surrogates not allowed)"),
        ("number", "notes() returned int where a text belongs"),
        ("reason", "why it is unavailable returned a text that is no Unicode (surrogates not allowed)"),
    ],
)
def test_what_a_metric_says_must_be_a_text_that_can_be_written(run_suite: Runner, way: str, said: str) -> None:
    metric = f'[[metrics]]\nuse = "meddling"\nparams = {{ way = "{way}" }}'
    results, _ = run_suite('use = "none"', f'use = "fgsm"\naccess = "white-box"\nimages = 20\n{metric}')
    assert {record.status for record in results} == {"failed"}
    for record in results:
        assert f"metric 'meddling' of in-process: {said}" in record.error


def test_evidence_does_not_depend_on_the_evidence_taken_before_it(run_suite: Runner, tmp_path: Path) -> None:
    """A defense that drifts is asked by two checks in a row, and by the second alone."""
    attack = 'use = "pgd"\naccess = "white-box"\nparams = { steps = 5 }\nimages = 60'
    first, _ = run_suite('use = "counting"', attack, evidence="full", limit=60, eps=[0.1, 0.3])
    (last,) = (tmp_path / "results").rglob("evidence/counting/linf-0.3-*.json")
    last.unlink()
    again, _ = run_suite('use = "counting"', attack, evidence="full", limit=60, eps=[0.1, 0.3])
    assert [one.verdicts for one in again.evidence] == [one.verdicts for one in first.evidence]


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


def _other_weight(network: nn.Sequential) -> None:
    network[0].weight = nn.Parameter(torch.zeros(2, 2))


def _other_buffer(network: nn.Sequential) -> None:
    network[1].running_mean = torch.full((2,), 9.0)


def _other_layer(network: nn.Sequential) -> None:
    network[0] = nn.Linear(2, 2)


def _more_layers(network: nn.Sequential) -> None:
    network.append(nn.Linear(2, 2))


def _other_forward(network: nn.Sequential) -> None:
    network.forward = lambda x: x * 0  # type: ignore[method-assign]


def _other_shape(network: nn.Sequential) -> None:
    network[0].bias.data = torch.zeros(3)


def _parametrised(network: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(network[0])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_other_weight, "parameters of 0 of it"),
        (_other_buffer, "buffers of 1 of it"),
        (_other_layer, "layers of the network of it"),
        (_more_layers, "layers of the network of it"),
        (_other_forward, "forward of the network of it"),
        (_other_shape, "0.bias of it"),
        (_parametrised, "class of 0 of it"),
    ],
)
def test_what_takes_the_place_of_a_networks_parts_is_put_back(harm: Callable[[nn.Sequential], None], said: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    points = torch.rand(5, 2)
    before, names = network(points), list(network.state_dict())
    changed: list[str] = []
    with kept({"it": network}, changed.append):
        harm(network)
    assert said in changed
    assert torch.equal(network(points), before)
    assert list(network.state_dict()) == names
    again: list[str] = []
    with kept({"it": network}, again.append):
        network(points)
    assert again == []


def test_hooks_of_all_modules_are_taken_away() -> None:
    said: list[str] = []
    layer = nn.Linear(2, 2)
    points = torch.rand(5, 2)
    before = layer(points)
    with fenced("it", said.append):
        nn.modules.module.register_module_forward_hook(lambda _module, _inputs, output: output * 0)
    assert said == ["it changed hooks of all modules; put back"]
    assert torch.equal(layer(points), before)


def test_what_changes_nothing_is_not_mentioned() -> None:
    said: list[str] = []
    with fenced("it", said.append):
        torch.rand(3)
    assert said == []
