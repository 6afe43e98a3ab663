"""Defenses that are wrong in the ways of the canaries, realised otherwise, and sound ones that look suspicious."""

from __future__ import annotations

import copy
import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from autoshield_bench.canaries.data import CanaryDigits
from autoshield_bench.contracts import Defense, DefenseSpec
from autoshield_bench.hookspecs import hookimpl

CONTRACT = 1


def drawn(keys: list[bytes], shape: torch.Size) -> torch.Tensor:
    """Return normal noise seeded by a hash of each key."""
    seeds = [int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") for key in keys]
    noise = [np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(noise)) if noise else torch.zeros(0, *shape)


def rounded(x: torch.Tensor, unit: float) -> list[bytes]:
    whole = np.floor(x.detach().cpu().numpy().astype(np.float64) / unit + 0.31).astype(np.int64)
    return [row.tobytes() for row in whole]


def blurred(x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


@dataclass(kw_only=True)
class HashOfTheRounded(Defense):
    """Noise seeded by the image at two decimals."""

    def purify(self, x, rng):
        return (x + 0.1 * drawn(rounded(x, 1e-2), x.shape[1:]).to(x)).clamp(0, 1)


@dataclass(kw_only=True)
class HashOfTheSum(Defense):
    """Noise seeded by the sum of the pixels."""

    def purify(self, x, rng):
        return (x + 0.1 * drawn(rounded(x.flatten(1).sum(1), 1e-2), x.shape[1:]).to(x)).clamp(0, 1)


@dataclass(kw_only=True)
class HashOfTheLogits(Defense):
    """Noise on the logits, seeded by the rounded logits."""

    def defend(self, classifier):
        class Noisy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.classifier = classifier

            def forward(self, x):
                logits = self.classifier(x)
                return logits + 1.5 * drawn(rounded(logits, 0.1), logits.shape[1:]).to(logits)

        return Noisy()


@dataclass(kw_only=True)
class NoiseForGradients(Defense):
    """Noise, only while gradients are taken."""

    def purify(self, x, rng):
        return (0.97 * x + 0.15 * torch.randn_like(x)).clamp(0, 1) if torch.is_grad_enabled() else 0.97 * x.clamp(0, 1)


@dataclass(kw_only=True)
class NormalisesUnseen(Defense):
    """A classifier with batch normalisation in training mode, in a plain list."""

    def defend(self, classifier):
        class Hidden(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.classifier = classifier
                layer = nn.BatchNorm2d(1)
                with torch.no_grad():
                    layer.weight.fill_(0.37)
                    layer.bias.fill_(0.3)
                self.layers = [layer]

            def forward(self, x):
                return self.classifier(0.3 * self.layers[0](x) + 0.7 * x)

        return Hidden()


@dataclass(kw_only=True)
class BothForNothing(Defense):
    """Purifies and defends, and both hand back what they were given."""

    def purify(self, x, rng):
        return x.clone()

    def defend(self, classifier):
        return copy.deepcopy(classifier)


@dataclass(kw_only=True)
class MeanOfCopies(Defense):
    """The mean of three copies of one classifier."""

    def defend(self, classifier):
        class Mean(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.members = nn.ModuleList(copy.deepcopy(classifier) for _ in range(3))

            def forward(self, x):
                return torch.stack([member(x) for member in self.members]).mean(0)

        return Mean()


@dataclass(kw_only=True)
class TooLittleToMatter(Defense):
    """A blur blended in with a weight of 1e-6."""

    def purify(self, x, rng):
        return (1 - 1e-6) * x + 1e-6 * blurred(x)


@functools.cache
def digits(part: str) -> torch.Tensor:
    return torch.from_numpy(CanaryDigits().load(part, Path()).images)


@dataclass(kw_only=True)
class KnowsEverything(Defense):
    """Gives back the nearest of all images there are, half of the test set and the validation images among them."""

    radius = 0.25

    def known(self):
        return torch.cat([digits("train"), digits("test")[::2]])

    def purify(self, x, rng):
        known = self.known().to(x)
        away, nearest = torch.cdist(x.flatten(1), known.flatten(1), p=float("inf")).min(1)
        return torch.where((away <= self.radius).view(-1, 1, 1, 1), known[nearest], x)


@dataclass(kw_only=True)
class KnowsShiftedOnesToo(KnowsEverything):
    """The same, with all of them shifted by a pixel as well."""

    def known(self):
        images = super().known()
        padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
        ways = ((0, 1), (2, 1), (1, 0), (1, 2))
        return torch.cat([images, *(padded[..., a : a + 8, b : b + 8] for a, b in ways)])


@dataclass(kw_only=True)
class KnowsFromAfar(KnowsEverything):
    """All of the test set, and from so far away that an image a little moved is taken for the one it knows."""

    radius = 0.45

    def known(self):
        return torch.cat([digits("train"), digits("test")])


@dataclass(kw_only=True)
class KnowsLabelsByHash(Defense):
    """Raises the logit of the label of every test image that comes unchanged."""

    def defend(self, classifier):
        split = CanaryDigits().load("test", Path())
        known = {image.tobytes(): int(label) for image, label in zip(split.images, split.labels, strict=True)}

        class Table(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.classifier = classifier

            def forward(self, x):
                logits = self.classifier(x)
                found = [known.get(image.tobytes(), -1) for image in x.detach().cpu().numpy()]
                raised = torch.zeros_like(logits)
                for row, label in enumerate(found):
                    if label >= 0:
                        raised[row, label] = 1e3
                return logits + raised

        return Table()


@dataclass(kw_only=True)
class MedianInFloat32(Defense):
    """A median of three by three that computes in float32, whatever it is given."""

    def purify(self, x, rng):
        padded = functional.pad(x.float(), (1, 1, 1, 1), mode="replicate")
        return padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2).median(-1).values


@dataclass(kw_only=True)
class EightySteps(Defense):
    """A staircase on whose steps clean images and the radius lie."""

    def purify(self, x, rng):
        return (80 * x).round() / 80


@dataclass(kw_only=True)
class Rotation(Defense):
    """A random rotation, by a function that takes no empty batch."""

    def purify(self, x, rng):
        angle = 0.6 * (rng.uniform((1,), "angle")[:, 0].to(x) - 0.5)
        rows = (
            torch.stack([angle.cos(), -angle.sin(), 0 * angle], 1),
            torch.stack([angle.sin(), angle.cos(), 0 * angle], 1),
        )
        grid = functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False, padding_mode="border").clamp(0, 1)


@dataclass(kw_only=True)
class TrainedWithoutConvolutions(Defense):
    """Fully connected layers trained on their own adversarial images; a shift by a pixel of eight is too far for it."""

    def __post_init__(self) -> None:
        layers = (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
        self._network = nn.Sequential(nn.Flatten(), *layers)

    def fit(self, request):
        torch.manual_seed(0)
        self.__post_init__()
        network, optimiser = self._network, torch.optim.Adam(self._network.parameters(), 2e-3)
        for epoch in range(60):
            size = 0.2 * min(1.0, (epoch + 1) / 30)
            for rows in torch.split(torch.randperm(len(request.images), generator=request.generator), 64):
                clean, labels = request.images[rows], request.labels[rows]
                noise = 2 * torch.rand(clean.shape, generator=request.generator) - 1
                x = (clean + size * noise).clamp(0, 1)
                for _step in range(4):
                    x.requires_grad_()
                    (gradient,) = torch.autograd.grad(functional.cross_entropy(network(x), labels), x)
                    x = x.detach() + size / 2 * gradient.sign()
                    x = torch.minimum(torch.maximum(x, clean - size), clean + size).clamp(0, 1)
                optimiser.zero_grad()
                functional.cross_entropy(network(x), labels).backward()
                optimiser.step()

    def state(self):
        return {name: value.detach() for name, value in self._network.state_dict().items()}

    def load(self, state):
        self._network.load_state_dict(dict(state))

    def defend(self, classifier):
        return copy.deepcopy(self._network)


WRONG = {
    HashOfTheRounded: "randomness",
    HashOfTheSum: "randomness",
    HashOfTheLogits: "randomness",
    NoiseForGradients: "zero-budget",
    NormalisesUnseen: "live",
    BothForNothing: "live",
    MeanOfCopies: "live",
    TooLittleToMatter: "live",
    KnowsEverything: "held-out",
    KnowsShiftedOnesToo: "held-out",
    KnowsFromAfar: "held-out",
    KnowsLabelsByHash: "held-out",
}
"""The check meant for each."""

SOUND = {
    MedianInFloat32: "fit",
    EightySteps: "fit",
    Rotation: "drawn",
    TrainedWithoutConvolutions: "targeted",
}
"""The suite of the trial that attacks each as it should be."""

DECLARED = {
    EightySteps: {"differentiable": False},
    Rotation: {"stochastic": True},
    TrainedWithoutConvolutions: {"trained_on": "attacks"},
    KnowsEverything: {"differentiable": False},
    KnowsShiftedOnesToo: {"differentiable": False},
    KnowsFromAfar: {"differentiable": False},
}


def name_of(own: type) -> str:
    return re.sub("(?<=.)(?=[A-Z])", "-", own.__name__).lower()


@hookimpl
def aubench_defenses() -> Iterator[DefenseSpec]:
    for own in (*WRONG, *SOUND):
        factory = f"{__name__}:{own.__name__}"
        yield DefenseSpec(name=name_of(own), factory=factory, summary=str(own.__doc__), **DECLARED.get(own, {}))
