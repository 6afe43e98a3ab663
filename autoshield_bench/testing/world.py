"""The small world in which plugins are checked: images, a curved classifier, and a linear one with a known optimum.

Everything is drawn from fixed seeds and made in milliseconds. The classifiers compute in float64, so that the size of a
batch cannot change a bit of what they return, and a difference is the plugin's doing.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autoshield_bench.seeding import ImageRandom

SHAPE = (1, 8, 8)
CLASSES = 4
IMAGES = 12


class Curved(nn.Module):
    """A smooth classifier with weights, buffers and layers that behave differently in training mode."""

    def __init__(self, sharpness: float = 6.0, classes: int = CLASSES) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(11)
        values = SHAPE[0] * SHAPE[1] * SHAPE[2]
        self.normalise = nn.BatchNorm2d(SHAPE[0]).double()
        self.normalise.running_mean = torch.full((SHAPE[0],), 0.5, dtype=torch.float64)
        self.first = nn.Parameter(torch.randn(values, 16, generator=source).double() / values**0.5)
        self.second = nn.Parameter(sharpness * torch.randn(16, classes, generator=source).double() / 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(4 * self.normalise(x.double()).flatten(1) @ self.first)
        result: Tensor = (hidden @ self.second).to(x.dtype)
        return result


class Linear(nn.Module):
    """``logits = W x``; for two classes the worst point of a ball is known in closed form."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.classes = classes
        source = torch.Generator().manual_seed(13)
        values = SHAPE[0] * SHAPE[1] * SHAPE[2]
        self.weight = nn.Parameter(0.3 * torch.randn(classes, values, generator=source).double())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = ((x.double().flatten(1) - 0.5) @ self.weight.T).to(x.dtype)
        return result


@dataclass(frozen=True, kw_only=True)
class World:
    """Where plugins are checked. Every property and method returns fresh tensors and networks."""

    device: str = "cpu"
    """Where images and classifiers lie."""

    classes: int = CLASSES

    @property
    def images(self) -> Tensor:
        """Images ``[12, 1, 8, 8]``; a good part of their values is exactly 0 or 1, as in real ones."""
        return _images(IMAGES, seed=0).to(self.device)

    @property
    def labels(self) -> Tensor:
        """What ``classifier`` makes of ``images``: nothing is misclassified to begin with."""
        with torch.no_grad():
            labels: Tensor = self.classifier()(self.images).argmax(1)
        return labels

    @property
    def inner_images(self) -> Tensor:
        """Images ``[12, 1, 8, 8]`` with values from 0.35 to 0.65: room for a small ball on every side."""
        return _images(IMAGES, seed=1).mul_(0.3).add_(0.35).to(self.device)

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """Return images and labels of the ``fitting`` (48) or ``validation`` (16) part, on the CPU."""
        images = _images(48, seed=2) if name == "fitting" else _images(16, seed=3)
        with torch.no_grad():
            return images, _frozen(Curved())(images).argmax(1)

    def classifier(self, sharpness: float = 6.0) -> nn.Module:
        """Return the curved classifier, frozen; a sharp one is confident, and its gradients are small."""
        return _frozen(Curved(sharpness)).to(self.device)

    def linear(self) -> Linear:
        """Return the linear classifier of two classes, frozen."""
        model = Linear().to(self.device)
        model.eval().requires_grad_(requires_grad=False)
        return model

    def flat(self) -> Linear:
        """Return a classifier that takes every image for the first class, and whose gradients are zero; frozen."""
        model = Linear(self.classes).to(self.device)
        model.weight.data.zero_()
        model.eval().requires_grad_(requires_grad=False)
        return model

    def rng(self, seed: int = 7, indices: list[int] | None = None) -> ImageRandom:
        """Return the images' randomness, as the host hands it over."""
        return ImageRandom(seed, range(IMAGES) if indices is None else indices)


@contextlib.contextmanager
def global_state(seed: int) -> Iterator[None]:
    """Seed the global generators for the block, and give back state, grad mode and default dtype afterwards.

    A plugin that changes them must not change what the next check sees.
    """
    python, legacy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(torch_state)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)


def random_state() -> dict[str, object]:
    """Return a comparable picture of the global generators."""
    legacy = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(legacy),
        "random": random.getstate(),
    }


def changed(before: dict[str, object], after: dict[str, object]) -> str:
    """Return the names whose values differ, joined, or nothing."""
    return ", ".join(sorted(name for name in before | after if before.get(name) != after.get(name)))


def model_state(model: nn.Module) -> dict[str, object]:
    """Return a comparable picture of a network: weights, buffers, gradients, hooks and flags, each by name."""
    picture: dict[str, object] = {}
    for name, weight in model.named_parameters():
        picture[f"weight {name}"] = _bytes(weight)
        picture[f"gradient of {name}"] = None if weight.grad is None else _bytes(weight.grad)
        picture[f"requires_grad of {name}"] = weight.requires_grad
    for name, buffer in model.named_buffers():
        picture[f"buffer {name}"] = _bytes(buffer)
    for name, module in model.named_modules():
        where = name or "the network"
        picture[f"training flag of {where}"] = module.training
        picture[f"hooks of {where}"] = sum(
            len(getattr(module, kind, ()))
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        )
    return picture


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def _images(count: int, seed: int) -> Tensor:
    drawn = torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(seed))
    return (drawn * 1.6 - 0.3).clamp(0, 1)


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(requires_grad=False)
