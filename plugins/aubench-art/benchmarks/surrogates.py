"""Accuracy that each defense keeps under white-box PGD: BPDA with the identity against the defense's own surrogate.

The lower figure is the nearer to the truth. On MNIST, and on MNIST in random colours, where chroma matters.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from autoshield_bench.contracts import AttackRequest, Defense, DefenseSpec, ThreatModel
from autoshield_bench.engine.access import GradientTarget
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline, frozen
from autoshield_bench.engine.training import train_classifier
from autoshield_bench.places import data_dir
from autoshield_bench.registry import Registry
from autoshield_bench.seeding import ImageRandom, generator, global_seed
from torch import Tensor, nn

CASES = [
    ("art-jpeg", {"quality": 10}),
    ("art-jpeg", {"quality": 50}),
    ("art-feature-squeezing", {"bit_depth": 1}),
    ("art-feature-squeezing", {"bit_depth": 4}),
    ("art-spatial-smoothing", {"window_size": 3}),
    ("art-total-variation", {}),
    ("art-total-variation", {"lamb": 0.1}),
]
THREATS = {1: [("linf", 0.15), ("l2", 1.5)], 3: [("linf", 0.03), ("l2", 0.4)]}
"""By number of channels: where neither of the two leaves all or none."""

DRAWS = 5
"""Fresh draws over which a stochastic defense is scored."""


class Identity(Defense):
    """Another defense, with the identity in place of its surrogate."""

    def __init__(self, inner: Defense) -> None:
        self._inner = inner

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return self._inner.purify(x, rng)


def coloured(grey: Tensor, name: str) -> Tensor:
    """Return images with a random colour for the digit and another for what lies around it."""
    ink, paper = torch.rand((2, len(grey), 3, 1, 1), generator=generator("colours", name))
    return ink * grey + paper * (1 - grey)


def classifier(registry: Registry, images: Tensor, labels: Tensor) -> nn.Module:
    """Return the built-in network, trained by the harness's recipe."""
    model = registry.make(registry.find("model", "small-cnn"), {})
    recipe = dataclasses.replace(model.recipe(), epochs=2)
    with global_seed("surrogates"):
        network: nn.Module = model.build(tuple(images.shape[1:]), 10)
        train_classifier(network, images, labels, recipe, generator("order"), "cpu", lambda _done, _total: None)
    return frozen(network)


def kept(
    network: nn.Module,
    defense: Defense,
    spec: DefenseSpec,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    eot: int,
) -> tuple[float, float]:
    """Return the accuracy without attack and under PGD."""
    registry = Registry.discover()
    stage = FittedStage(component="0", defense=defense, differentiable=False, stochastic=spec.stochastic)
    pipeline = Pipeline(network, [stage], PassCounter())
    rng = ImageRandom(0, range(len(images)))
    request = AttackRequest(
        images=images,
        labels=labels,
        threat=threat,
        target=GradientTarget(pipeline, rng.child("target"), classes=10, eot=eot),
        rng=rng.child("attack"),
    )
    adversarial = registry.make(registry.find("attack", "pgd"), {"steps": 20}).run(request)

    def accuracy(x: Tensor) -> float:
        draws = range(DRAWS if spec.stochastic else 1)
        with torch.no_grad():
            right = [
                (pipeline(x, rng.child("score", draw)).logits.argmax(1) == labels).double().mean() for draw in draws
            ]
        return float(torch.stack(right).mean())

    return accuracy(images), accuracy(adversarial)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--eot", type=int, default=5)
    parser.add_argument("--defense", help="take only this one, such as art-jpeg")
    given = parser.parse_args()
    registry = Registry.discover()
    mnist = registry.make(registry.find("dataset", "mnist"), {})
    mnist.fetch(data_dir())
    grey, labels = {}, {}
    for part in ("train", "test"):
        split = mnist.load(part, data_dir())
        grey[part], labels[part] = (
            torch.from_numpy(split.images.copy()).float() / 255,
            torch.from_numpy(split.labels.copy()),
        )
    rows = torch.randperm(len(grey["test"]), generator=generator("subset"))[: given.images]
    print(f"{'images':8}{'defense':44}{'threat':>12}{'clean':>8}{'identity':>10}{'own':>7}", flush=True)
    for channels, threats in THREATS.items():
        parts = {name: coloured(x, name) if channels == 3 else x for name, x in grey.items()}
        network = classifier(registry, parts["train"], labels["train"])
        for name, params in (case for case in CASES if given.defense in (None, case[0])):
            if channels == 3 and name == "art-total-variation":
                continue  # it takes the channels one by one: three times the time, and nothing new
            plugin = registry.find("defense", f"aubench-art/{name}")
            defense = registry.make(plugin, params)
            for norm, eps in threats:
                threat = ThreatModel(norm=norm, eps=eps)
                arguments = (parts["test"][rows], labels["test"][rows], threat, given.eot)
                clean, own = kept(network, defense, plugin.spec, *arguments)
                _same, identity = kept(network, Identity(defense), plugin.spec, *arguments)
                title = f"{name} {', '.join(f'{key}={value}' for key, value in params.items())}"
                where = "colour" if channels == 3 else "grey"
                print(f"{where:8}{title:44}{threat!s:>12}{clean:8.3f}{identity:10.3f}{own:7.3f}", flush=True)


if __name__ == "__main__":
    main()
