"""Gradients in bfloat16: where they are taken, what stays in float32, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_access import Plugins
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench import load_suite, run
from autoshield_bench.builtin.attacks.pgd import PGD
from autoshield_bench.builtin.defenses.networks import build
from autoshield_bench.builtin.layers import InputConvolution, OutputConvolution
from autoshield_bench.builtin.models.networks import small_cnn
from autoshield_bench.contracts import Attack, AttackRequest, Defense, Precision, ThreatModel
from autoshield_bench.engine.access import GradientTarget
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline
from autoshield_bench.errors import SuiteError
from autoshield_bench.leaderboard import build as leaderboards
from autoshield_bench.provenance import attack_differences
from autoshield_bench.results import ResultSet
from autoshield_bench.seeding import ImageRandom

pytestmark = pytest.mark.usefixtures("one_thread")


class Purifier(Defense):
    def __init__(self, architecture: str) -> None:
        self.network = build(architecture, 1, 8).eval()

    def purify(self, x: Tensor, rng: object) -> Tensor:
        purified: Tensor = self.network(x)
        return purified

    def surrogate(self, x: Tensor) -> Tensor:
        return x


def stage(architecture: str, *, differentiable: bool) -> FittedStage:
    torch.manual_seed(1)
    defense = Purifier(architecture)
    return FittedStage(component="stage", defense=defense, differentiable=differentiable, stochastic=False)


def target_of(stages: tuple[FittedStage, ...], precision: Precision, count: int) -> GradientTarget:
    torch.manual_seed(0)
    pipeline = Pipeline(small_cnn(1, 28, 28, 10, 8), stages, PassCounter())
    return GradientTarget(pipeline, ImageRandom(0, range(count)), classes=10, eot=1, precision=precision)


@pytest.mark.parametrize("architecture", [None, "conv", "unet", "bottleneck"])
@pytest.mark.parametrize("differentiable", [True, False])
def test_gradients_point_the_same_way_and_judgements_stay_in_float32(
    architecture: str | None, differentiable: bool
) -> None:
    stages = () if architecture is None else (stage(architecture, differentiable=differentiable),)
    full, low = (target_of(stages, precision, 8) for precision in ("float32", "bf16"))
    torch.manual_seed(2)
    x, labels = torch.rand(8, 1, 28, 28), torch.arange(8)

    def loss(logits: Tensor) -> Tensor:
        assert logits.dtype == torch.float32
        return functional.cross_entropy(logits, labels, reduction="none")

    exact, found = (target.loss_gradient(x, loss) for target in (full, low))
    assert {found.gradient.dtype, found.logits.dtype, found.loss.dtype} == {torch.float32}
    assert not torch.equal(found.logits, exact.logits)
    alike = functional.cosine_similarity(found.gradient.flatten(1), exact.gradient.flatten(1))
    # Rounding turns a ReLU on or off here and there; on layers without kinks the directions agree to 1e-3 (below).
    assert float(alike.min()) > 0.5
    with torch.no_grad():
        assert torch.equal(low.logits(x), full.logits(x))
        assert torch.equal(low.labels(x), full.labels(x))
    # An attack that differentiates by itself, as adapted libraries do.
    point = x.clone().requires_grad_()
    output = low.output(point)
    assert {output.logits.dtype, output.purified.dtype} == {torch.float32}
    assert not torch.equal(output.logits.detach(), exact.logits)
    (own,) = torch.autograd.grad(loss(output.logits).sum(), point)
    torch.testing.assert_close(own, found.gradient)


def attack_of(attack: Attack, precision: Precision, x: Tensor, labels: Tensor) -> Tensor:
    target = target_of((), precision, len(x))
    rng = ImageRandom(0, range(len(x)))
    request = AttackRequest(images=x, labels=labels, threat=ThreatModel(norm="linf", eps=0.03), target=target, rng=rng)
    return attack.run(request)


def test_pgd_finds_as_much() -> None:
    torch.manual_seed(3)
    x = torch.rand(200, 1, 28, 28)
    with torch.no_grad():
        logits = target_of((), "float32", len(x)).logits(x)
    labels = logits.argmax(1)
    values = []
    for precision in ("float32", "bf16"):
        found = attack_of(PGD(steps=10), precision, x, labels)
        assert float((found - x).abs().max()) <= 0.03
        with torch.no_grad():
            reached = target_of((), "float32", len(x)).logits(found)
        values.append(functional.cross_entropy(reached, labels, reduction="none"))
    clean = functional.cross_entropy(logits, labels, reduction="none")
    gained = [float((value - clean).mean()) for value in values]
    assert gained[0] > 0
    assert gained[1] > 0.98 * gained[0]


def go(folder: Path, attacks: list[str], **options: Any) -> ResultSet:
    lines = ["schema = 1", 'name = "precision"', '[dataset]\nuse = "digits"', '[model]\nuse = "nearest-mean"']
    lines += ['[[threats]]\nnorm = "linf"\neps = [0.1]', '[[defenses]]\nuse = "soften"']
    lines += [f"[[attacks]]\n{attack}" for attack in attacks]
    file = folder / "precision.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    folders = {"results_dir": folder / "results", "cache_dir": folder / "cache", "data_dir": folder}
    return run(load_suite(file, plugins=[Plugins()]), **{"device": "cpu", "evidence": "off", **folders, **options})


def test_a_suite_asks_for_it_and_the_table_says_so(tmp_path: Path) -> None:
    pgd = 'use = "pgd"\naccess = ["gray-box", "white-box"]\nimages = 100\nparams = { steps = 5 }'
    results = go(tmp_path, [pgd, f'{pgd}\nlabel = "fast"\nprecision = "bf16"'])
    for access in ("gray-box", "white-box"):
        ((one,), (two,)) = (results.select(f"*/soften/{name}/{access}/*") for name in ("pgd", "fast"))
        assert {one.status, two.status} == {"ok"}
        assert [own.facts["attack"]["precision"] for own in (one, two)] == ["float32", "bf16"]
        assert one.facts["attack"]["key"] != two.facts["attack"]["key"]
        assert "precision: float32 in A, bf16 in B" in attack_differences(one, two)
        assert abs(one.outcomes.correct - two.outcomes.correct) <= 2
    (board,) = leaderboards(results)
    assert [line for line in board.remarks if "bfloat16" in line] == [
        f"fast/{access} takes its gradients in bfloat16; what it finds is scored in float32."
        for access in ("gray-box", "white-box")
    ]


def test_an_attack_without_gradients_has_no_use_for_it(tmp_path: Path) -> None:
    attack = 'use = "square"\naccess = "black-box"\nprecision = "bf16"'
    with pytest.raises(SuiteError, match="attack 'square' takes no gradients; drop precision"):
        go(tmp_path, [attack])
    with pytest.raises(SuiteError, match=r'precision: "half" is not known; known: bf16, float32'):
        go(tmp_path, ['use = "pgd"\naccess = "white-box"\nprecision = "half"'])


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize(("precision", "close"), [(torch.bfloat16, 0.02), (torch.float32, 1e-5)])
def test_a_grey_image_is_put_together_as_torch_does(
    kernel: int, stride: int | tuple[int, int], precision: torch.dtype, close: float
) -> None:
    torch.manual_seed(0)
    for padding in range((kernel + 1) // 2):
        for extra in (0, 1) if stride == 2 else (0,):
            layer = nn.ConvTranspose2d(3, 1, kernel, stride, padding, extra).to(precision)
            layer.requires_grad_(requires_grad=False)
            ours = OutputConvolution(3, 1, kernel, stride, padding, extra).to(precision)
            ours.load_state_dict(layer.state_dict())
            ours.requires_grad_(requires_grad=False)
            x = torch.rand(2, 3, 6, 5).to(precision)
            exact = layer.float()(x.float())
            found = ours(x)
            assert found.shape == exact.shape
            torch.testing.assert_close(found.float(), exact, rtol=close, atol=close)


def test_layers_of_grey_images_pass_bfloat16_on() -> None:
    torch.manual_seed(0)
    ends = (InputConvolution(1, 8, 3, 2, 1), nn.Tanh(), OutputConvolution(8, 1, 4, 2, 1), nn.Sigmoid())
    network = nn.Sequential(*ends).requires_grad_(requires_grad=False)
    x = torch.rand(4, 1, 28, 28, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(x)
    (slope,) = torch.autograd.grad(output.float().sum(), x)
    (exact,) = torch.autograd.grad(network(x).sum(), x)
    assert slope.dtype == torch.float32
    assert float(functional.cosine_similarity(slope.flatten(), exact.flatten(), dim=0)) > 0.999
