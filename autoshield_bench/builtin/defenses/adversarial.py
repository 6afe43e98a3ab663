"""Adversarial training: a network trained on the points that an attack finds, in place of the classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from autoshield_bench.contracts import Defense, FitRequest
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

_SHAPE = "_shape"
"""Name, in the state, of the image's shape and the number of classes that the network was built for."""


@dataclass(kw_only=True)
class AdversarialTraining(Defense):
    """Projected gradient descent in every training step, in the L-infinity ball; robust in that norm and size alone.

    Random start, the cross-entropy as the loss of attack and training, a radius that grows from zero, a one-cycle
    learning rate, and weights averaged over the steps. Behind other stages it is trained in the ball around their
    output, which is not the ball around the image. Source: Madry et al. 2018, arXiv:1706.06083; the network and the few
    large steps after Wong et al. 2020, arXiv:2001.03994.
    """

    eps: float = 0.3
    """Radius of the L-infinity ball, in the units of the images: take the suite's."""

    network: Literal["small", "classifier"] = "small"
    """``small``: a network of its own, two strided convolutions and two fully connected layers. ``classifier``: the
    architecture of the classifier, from its trained weights; dropout is off and batch statistics stay as they are."""

    width: int = 16
    """Channels of the first convolution of ``small``; the second has twice as many."""

    epochs: int = 8
    """Passes over the fitting part."""

    steps: int = 4
    """Gradient steps of the attack in each training step."""

    relative_step_size: float = 0.4
    """Length of an attack's step in units of the radius."""

    warmup: float = 0.3
    """Share of the training during which the radius grows, linearly from zero to eps."""

    batch_size: int = 128
    """Images per training step."""

    learning_rate: float = 5e-3
    """Peak of the one-cycle schedule of AdamW."""

    averaging: float = 0.995
    """Decay of the exponential moving average of the weights; 0 keeps the last ones."""

    _weights: dict[str, Tensor] | None = field(default=None, init=False, repr=False)
    _built_for: tuple[int, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        for key in ("width", "epochs", "steps", "batch_size"):
            if getattr(self, key) < 1:
                raise ParameterError(key, f"{getattr(self, key)} is too small; give at least 1")
        if not 0 < self.eps <= 1:
            raise ParameterError("eps", f"{self.eps:g} is not above 0 and up to 1, the range of the images")
        for key in ("relative_step_size", "learning_rate"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ParameterError(key, f"{getattr(self, key):g} is not positive")
        if not 0 <= self.warmup <= 1:
            raise ParameterError("warmup", f"{self.warmup:g} is not a share between 0 and 1")
        if not 0 <= self.averaging < 1:
            raise ParameterError("averaging", f"{self.averaging:g} is not at least 0 and below 1")

    def fit(self, request: FitRequest) -> None:
        """Train on the fitting part. Raises FloatingPointError where the loss is no longer finite."""
        import torch
        from torch.nn import functional

        network, parameters = self._start(request)
        average = [parameter.detach().clone() for parameter in parameters]
        images, generator = request.images, request.generator
        total = self.epochs * -(-len(images) // self.batch_size)
        optimiser = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.learning_rate, total_steps=total, pct_start=0.3)
        done = 0
        for _epoch in range(self.epochs):
            for rows in torch.split(torch.randperm(len(images), generator=generator), self.batch_size):
                labels = request.labels[rows].to(request.device)
                clean = request.upstream(images[rows].to(request.device))
                radius = self.eps * min(1.0, done / (self.warmup * total)) if self.warmup else self.eps
                network.requires_grad_(requires_grad=False)  # an attack asks for no gradient of the weights
                attacked = self._attack(network, clean, labels, radius, generator)
                network.requires_grad_()
                loss = functional.cross_entropy(network(attacked), labels)
                if not bool(torch.isfinite(loss)):
                    raise FloatingPointError(f"the training loss is {loss.item()} at step {done} of {total}")
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                done += 1
                # Early on the average is short, or it would remember the untrained weights.
                decay = min(self.averaging, done / (done + 9))
                torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1.0 - decay)
                if done % 10 == 0 or done == total:
                    request.progress(done, total)
        with torch.no_grad():
            for parameter, value in zip(parameters, average, strict=True):
                parameter.copy_(value)
        self._weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    def defend(self, classifier: nn.Module) -> nn.Module:
        """Return the adversarially trained network; ``classifier`` itself is left as it is."""
        import torch

        if self._weights is None:
            raise RuntimeError("the network has neither been trained nor loaded")
        if self.network == "classifier":
            network = copy.deepcopy(classifier)
            network.load_state_dict(self._weights)
        else:
            network = self._filled(self._weights)
        device = next((parameter.device for parameter in classifier.parameters()), torch.device("cpu"))
        return network.to(device).to(memory_format=torch.channels_last).eval()

    def state(self) -> dict[str, Tensor]:
        """Return the weights, and what a network of its own was built for."""
        import torch

        if self._weights is None:
            raise RuntimeError("the network has neither been trained nor loaded")
        shape = {_SHAPE: torch.tensor(self._built_for)} if self.network == "small" else {}
        return {**self._weights, **shape}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights back. Raises ValueError where they do not fit."""
        weights = dict(state)
        if not weights or (_SHAPE in weights) != (self.network == "small"):
            raise ValueError(f"adversarial-training: the state is not one of network = {self.network!r}")
        if self.network == "small":
            self._built_for = tuple(weights.pop(_SHAPE).tolist())
            try:
                self._filled(weights)
            except RuntimeError as error:
                raise ValueError(f"adversarial-training: the state does not fit: {error}") from error
        self._weights = weights

    def _start(self, request: FitRequest) -> tuple[nn.Module, list[Tensor]]:
        """Return the network to train, in evaluation mode so that an attack and a step see the same one."""
        import torch

        from autoshield_bench.seeding import global_seed

        if request.classifier is None:
            raise ValueError("adversarial-training needs the classifier: its spec says needs_classifier=True")
        if self.network == "classifier":
            network = copy.deepcopy(request.classifier)
        else:
            with torch.no_grad():
                classes = request.classifier(request.images[:1].to(request.device)).shape[1]
            self._built_for = (*request.images.shape[1:], classes)
            with global_seed("network", int(torch.randint(2**62, (), generator=request.generator))):
                network = self._build()
        network.to(request.device).to(memory_format=torch.channels_last).eval().requires_grad_()
        return network, list(network.parameters())

    def _filled(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return a network of its own with these weights; nothing is drawn on the way."""
        import torch

        with torch.device("meta"):
            network = self._build()
        network.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
        return network

    def _build(self) -> nn.Module:
        from torch import nn

        from autoshield_bench.builtin.layers import InputConvolution

        channels, height, width, classes = self._built_for
        return nn.Sequential(
            InputConvolution(channels, self.width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(self.width, 2 * self.width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * self.width * (height // 4) * (width // 4), 100),
            nn.ReLU(),
            nn.Linear(100, classes),
        )

    def _attack(
        self,
        network: Callable[[Tensor], Tensor],
        clean: Tensor,
        labels: Tensor,
        radius: float,
        generator: Generator,
    ) -> Tensor:
        """Return the last point of projected gradient descent from a random one."""
        import torch
        from torch.nn import functional

        from autoshield_bench.balls import Ball
        from autoshield_bench.contracts import ThreatModel

        ball = Ball(clean, ThreatModel(norm="linf", eps=radius))
        offset = torch.rand(clean.shape, generator=generator).to(clean) * 2 - 1
        x = ball.project(clean + radius * offset)
        for _step in range(self.steps):
            x.requires_grad_()
            loss = functional.cross_entropy(network(x), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            x = ball.project(x.detach() + self.relative_step_size * radius * gradient.sign())
        return x
