"""What makes a step cheaper changes nothing: networks that the harness rearranges, layers of built-in networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench.builtin.defenses.networks import build
from autoshield_bench.builtin.layers import InputConvolution, OutputConvolution
from autoshield_bench.builtin.models.networks import small_cnn
from autoshield_bench.contracts import Recipe
from autoshield_bench.engine.lean import lean
from autoshield_bench.engine.training import train_classifier

LAYOUTS = (torch.contiguous_format, torch.channels_last)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels-last"])


def gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    point = x.clone().requires_grad_()
    output = network(point)
    labels = torch.arange(len(x)) % 10
    (slope,) = torch.autograd.grad(functional.cross_entropy(output.flatten(1), labels, reduction="sum"), point)
    return output.detach(), slope


def pooled(kernel: int, stride: int | None = None, padding: int = 0) -> nn.Sequential:
    # Coarse weights and images, so that windows hold many equal values.
    inner = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(kernel, stride, padding))
    network = nn.Sequential(inner, nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    with torch.no_grad():
        network(torch.zeros(1, 2, 16, 16))
        for parameter in network.parameters():
            parameter.copy_((parameter * 64).round() / 64 + (0.125 if parameter.dim() == 1 else 0))
    return network


@both_layouts
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, None, 0), (3, 2, 1), (3, 1, 0)])
def test_a_rearranged_network_computes_the_same_bits(
    kernel: int, stride: int | None, padding: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    network = pooled(kernel, stride, padding).to(memory_format=layout).eval().requires_grad_(requires_grad=False)
    x = (torch.rand(20, 2, 16, 16) * 3).round() / 3
    ours, theirs = gradient(lean(network), x), gradient(network, x)
    assert str(lean(network)) != str(network)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert float(theirs[1].abs().max()) > 0


def test_the_small_classifier_computes_the_same_bits_in_training_mode_too() -> None:
    torch.manual_seed(0)
    network = small_cnn(1, 28, 28, 10, 24).to(memory_format=torch.channels_last)
    x = torch.rand(10, 1, 28, 28)
    for mode in (False, True):
        network.train(mode)
        arranged = lean(network)
        assert arranged.training is mode
        torch.manual_seed(1)
        theirs = gradient(network, x)
        torch.manual_seed(1)
        ours = gradient(arranged, x)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_training_leads_to_the_same_weights() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(300, 1, 28, 28), torch.randint(0, 10, (300,))
    recipe = Recipe(epochs=2, batch_size=64, learning_rate=2e-3, weight_decay=0.05)
    first = small_cnn(1, 28, 28, 10, 8)
    ours, theirs = copy.deepcopy(first), copy.deepcopy(first)
    theirs[3].register_forward_hook(lambda *_: None)  # watched: nothing is rearranged
    assert str(lean(ours)) != str(lean(theirs))
    for network in (ours, theirs):
        torch.manual_seed(1)
        train_classifier(network, images, labels, recipe, torch.Generator().manual_seed(2), "cpu", lambda *_: None)
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[name])
        assert not torch.equal(weight, first.state_dict()[name])


def test_layers_are_shared_and_watched_ones_stay() -> None:
    network = pooled(2)
    assert {id(own) for own in lean(network).parameters()} == {id(own) for own in network.parameters()}
    seen: list[Tensor] = []
    network[0][1].register_forward_hook(lambda _module, _given, output: seen.append(output))  # type: ignore[union-attr, index]
    lean(network)(torch.rand(3, 2, 16, 16))
    assert seen[0].shape == (3, 6, 16, 16)

    class Own(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    own = Own(*network)
    assert lean(own) is own


# Layers of the built-in networks ----------------------------------------------------------------------------------


def pairs() -> list[tuple[nn.Module, nn.Module, tuple[int, ...]]]:
    return [
        (InputConvolution(1, 6, 5, 2, 2), nn.Conv2d(1, 6, 5, 2, 2), (1, 28, 28)),
        (InputConvolution(1, 6, 3, 1, 1, bias=False), nn.Conv2d(1, 6, 3, 1, 1, bias=False), (1, 9, 12)),
        (InputConvolution(3, 6, 3, 2, 1), nn.Conv2d(3, 6, 3, 2, 1), (3, 11, 10)),
        (OutputConvolution(6, 1, 4, 2, 1), nn.ConvTranspose2d(6, 1, 4, 2, 1), (6, 7, 5)),
        (OutputConvolution(6, 1, 3, 2, 1, 1, bias=False), nn.ConvTranspose2d(6, 1, 3, 2, 1, 1, bias=False), (6, 7, 7)),
        (OutputConvolution(6, 3, 4, 2, 1), nn.ConvTranspose2d(6, 3, 4, 2, 1), (6, 7, 7)),
    ]


@both_layouts
@pytest.mark.parametrize("number", range(len(pairs())))
def test_layers_compute_what_torchs_do(number: int, layout: torch.memory_format) -> None:
    torch.manual_seed(number)
    ours, theirs, shape = pairs()[number]
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(8, *shape)
    for frozen in (True, False):
        for layer in (ours, theirs):
            layer.to(memory_format=layout).requires_grad_(requires_grad=not frozen)
        weigh = torch.randn(theirs(x).shape)
        results = []
        for layer in (ours, theirs):
            point = x.clone().requires_grad_()
            output = layer(point)
            wanted = (point,) if frozen else (point, *layer.parameters())
            results.append([output.detach(), *torch.autograd.grad((output * weigh).sum(), wanted)])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
            if not frozen:
                assert torch.equal(one, other)


def test_layers_take_weights_of_torchs_and_other_precisions() -> None:
    torch.manual_seed(0)
    network = build("conv", 1, 8).requires_grad_(requires_grad=False)
    assert {type(layer) for layer in network.modules()} >= {InputConvolution, OutputConvolution}
    x = torch.rand(4, 1, 28, 28)
    precise = copy.deepcopy(network).double()
    torch.testing.assert_close(precise(x.double()).float(), network(x), rtol=1e-5, atol=1e-5)
    slopes = [
        torch.autograd.functional.jvp(own, x.to(kind), torch.ones_like(x).to(kind))[1].float()
        for own, kind in ((network, torch.float32), (precise, torch.float64))
    ]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-5)
