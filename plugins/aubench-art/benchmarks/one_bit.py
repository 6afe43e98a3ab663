"""Is the accuracy that one bit per value keeps on MNIST real? PGD against a greedy search that needs no gradients.

Within an L-infinity ball only values within eps of one half can change their bit, so the search is over those bits: it
turns the one over that costs the classifier most, until none costs it anything.
"""

from __future__ import annotations

import argparse

import torch
from autoshield_bench.contracts import ThreatModel
from autoshield_bench.places import data_dir
from autoshield_bench.registry import Registry
from autoshield_bench.seeding import generator
from surrogates import classifier, kept
from torch import Tensor, nn


def stands(network: nn.Module, image: Tensor, label: int, free: Tensor) -> bool:
    """Return whether a classifier of black and white images is right whichever single bits the search turns over."""
    bits = image.round().flatten()
    best = -torch.inf
    while len(free):
        tried = bits.repeat(len(free), 1)
        rows = torch.arange(len(free))
        tried[rows, free] = 1 - tried[rows, free]
        logits = network(torch.cat([bits[None], tried]).view(-1, *image.shape))
        others = logits.clone()
        others[:, label] = -torch.inf
        margins = others.amax(1) - logits[:, label]
        if float(margins.max()) > 0:
            return False
        if float(margins.max()) <= max(best, float(margins[0])):
            return True
        best, bits = float(margins.max()), tried[int(margins[1:].argmax())]
    return int(network(bits.view(1, *image.shape)).argmax()) == label


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.15, 0.2, 0.3])
    given = parser.parse_args()
    registry = Registry.discover()
    mnist = registry.make(registry.find("dataset", "mnist"), {})
    mnist.fetch(data_dir())
    train, test = (mnist.load(part, data_dir()) for part in ("train", "test"))
    network = classifier(registry, torch.from_numpy(train.images.copy()).float() / 255, torch.from_numpy(train.labels))
    rows = torch.randperm(len(test.labels), generator=generator("subset"))[: given.images]
    images, labels = torch.from_numpy(test.images.copy())[rows].float() / 255, torch.from_numpy(test.labels)[rows]
    plugin = registry.find("defense", "aubench-art/art-feature-squeezing")
    defense = registry.make(plugin, {"bit_depth": 1})
    print(f"{'eps':>6}{'free bits':>11}{'pgd':>8}{'greedy':>8}")
    for eps in given.eps:
        _clean, pgd = kept(network, defense, plugin.spec, images, labels, ThreatModel(norm="linf", eps=eps), 1)
        near = ((images - 0.5).abs() < eps).flatten(1)
        with torch.no_grad():
            greedy = [
                stands(network, image, int(label), free.nonzero()[:, 0])
                for image, label, free in zip(images, labels, near, strict=True)
            ]
        print(
            f"{eps:6g}{float(near.double().sum(1).mean()):11.1f}{pgd:8.3f}{sum(greedy) / len(greedy):8.3f}", flush=True
        )


if __name__ == "__main__":
    main()
