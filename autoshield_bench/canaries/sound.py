"""Sound defenses, small enough to be made in a second: every check must let them pass.

They need not be good. What they declare is true, and the attacks that they are run against are fit for them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

from autoshield_bench.contracts import Defense, FitRequest
from autoshield_bench.seeding import ImageRandom


@dataclass(kw_only=True)
class AdversariallyTrained(Defense):
    """The classifier, trained on further with the worst images that a short PGD finds in each step.

    Source: Madry et al. 2018, arXiv:1706.06083.
    """

    eps: float = 0.2
    """L-infinity radius in training."""
    epochs: int = 10
    """Passes over the fitting part."""
    steps: int = 4
    """Gradient steps per training image."""

    _state: Mapping[str, Tensor] | None = field(default=None, init=False, repr=False)

    def fit(self, request: FitRequest) -> None:
        """Train a copy of the classifier, by one thread: its steps are so small that two would wait for each other."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self._train(request)
        finally:
            torch.set_num_threads(threads)

    def _train(self, request: FitRequest) -> None:
        if request.classifier is None:
            raise ValueError("it needs the trained classifier")
        network = copy.deepcopy(request.classifier).requires_grad_()
        images, labels = request.images.to(request.device), request.labels.to(request.device)
        batch, rate = 64, 4e-3
        total = self.epochs * -(-len(images) // batch)
        optimiser = torch.optim.AdamW(network.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=total, pct_start=0.2)
        for epoch in range(self.epochs):
            # The radius grows: at full size from the start, training may settle at a constant answer.
            eps = self.eps * min(1.0, (epoch + 1) / (self.epochs / 2))
            for rows in torch.split(torch.randperm(len(images), generator=request.generator), batch):
                clean, wanted = images[rows], labels[rows]
                worst = self._worst(network.eval(), clean, wanted, eps, request.generator)
                loss = functional.cross_entropy(network.train()(worst), wanted)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
            request.progress(epoch + 1, self.epochs)
        self._state = network.eval().state_dict()

    def _worst(self, network: nn.Module, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
        found = low + (high - low) * torch.rand(x.shape, generator=generator).to(x.device)
        for _ in range(self.steps):
            point = found.requires_grad_()
            (gradient,) = torch.autograd.grad(functional.cross_entropy(network(point), y, reduction="sum"), point)
            found = (point.detach() + 2 * eps / self.steps * gradient.sign()).clamp(low, high)
        return found

    def defend(self, classifier: nn.Module) -> nn.Module:
        """Return the classifier with the weights that training left."""
        classifier.load_state_dict(dict(self.state()))
        return classifier

    def state(self) -> dict[str, Tensor]:
        """Return the weights."""
        if self._state is None:
            raise RuntimeError("it has neither been fitted nor loaded")
        return {name: tensor.detach() for name, tensor in self._state.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights back."""
        self._state = dict(state)


@dataclass(frozen=True, kw_only=True)
class Blur(Defense):
    """A Gaussian blur of 3x3 values: smooth, the same for every image, and weak."""

    deviation: float = 0.6
    """Standard deviation of the kernel, in pixels."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the blurred image."""
        blurred: Tensor = gaussian_blur(x, [3, 3], [self.deviation, self.deviation])
        return blurred.clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Detector(Defense):
    """Flags what a blur changes more than it changes clean images; purifies nothing."""

    deviation: float = 0.8
    """Standard deviation of the kernel, in pixels."""

    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        """Return the mean absolute change."""
        blurred: Tensor = gaussian_blur(x, [3, 3], [self.deviation, self.deviation])
        return (x - blurred).abs().flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class HonestQuantiser(Defense):
    """Rounds each value, and says that it cannot be differentiated."""

    steps: int = 4
    """Steps between 0 and 1."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the nearest values."""
        return (x * self.steps).round() / self.steps


@dataclass(frozen=True, kw_only=True)
class Smoother(Defense):
    """Adds Gaussian noise from the randomness that it is handed, and says so. Cohen et al. 2019, arXiv:1902.02918."""

    deviation: float = 0.05
    """Standard deviation of the noise."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the noisy image."""
        return (x + self.deviation * rng.normal(x.shape[1:], "noise").to(x.device)).clamp(0, 1)
