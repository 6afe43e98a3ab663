"""A convolutional denoising autoencoder in front of the classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from autoshield_bench.contracts import Defense, FitRequest
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autoshield_bench.builtin.defenses.networks import PurifyingNetwork
    from autoshield_bench.seeding import ImageRandom

_CHANNELS = "channels"


@dataclass(kw_only=True)
class Autoencoder(Defense):
    """Learns to give back the clean image from a noisy one, by binary cross-entropy per value.

    It sees neither the classifier nor an attack. Behind other stages it learns from their output on noisy images.
    Source: Vincent et al. 2008, doi:10.1145/1390156.1390294.
    """

    architecture: Literal["conv", "unet", "bottleneck"] = "conv"
    """``conv``; ``unet`` adds a connection past the code at half size; ``bottleneck`` has a narrow code."""

    width: int = 32
    """Channels of the outer layers; the inner ones have twice as many."""

    noise: Literal["smooth-sign", "sign", "uniform", "gaussian"] = "smooth-sign"
    """Kind of noise it is trained on; see ``noise.corrupt``."""

    noise_level: tuple[float, float] = (0.1, 0.45)
    """Smallest and largest amplitude of the noise, in the units of the images."""

    epochs: int = 2
    """Passes over the fitting part."""

    batch_size: int = 128
    """Images per training step."""

    learning_rate: float = 3e-3
    """Peak of the one-cycle schedule."""

    times: int = 1
    """How often an image passes the same autoencoder, in sequence; it is trained for one pass whatever this is."""

    _network: PurifyingNetwork | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for key in ("width", "epochs", "batch_size", "times"):
            if getattr(self, key) < 1:
                raise ParameterError(key, f"{getattr(self, key)} is too small; give at least 1")
        low, high = self.noise_level
        if not 0 <= low <= high <= 1:
            raise ParameterError("noise_level", f"[{low:g}, {high:g}] is not ascending within [0, 1]")
        if self.learning_rate <= 0:
            raise ParameterError("learning_rate", f"{self.learning_rate:g} is not positive")

    def fit(self, request: FitRequest) -> None:
        """Train on the fitting part: AdamW, one-cycle learning rate, fresh noise in every epoch."""
        import torch
        from torch.nn import functional

        from autoshield_bench.builtin.defenses.networks import build
        from autoshield_bench.builtin.defenses.noise import corrupt

        images, generator = request.images, request.generator
        network = build(self.architecture, images.shape[1], self.width)
        network.to(request.device).to(memory_format=torch.channels_last).train()
        steps = self.epochs * -(-len(images) // self.batch_size)
        optimiser = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.learning_rate, total_steps=steps, pct_start=0.2)
        done = 0
        for _epoch in range(self.epochs):
            for rows in torch.split(torch.randperm(len(images), generator=generator), self.batch_size):
                clean = images[rows]
                noisy = corrupt(clean, self.noise, *self.noise_level, generator).to(request.device)
                logits = network.logits(request.upstream(noisy))
                loss = functional.binary_cross_entropy_with_logits(logits, clean.to(request.device))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                done += 1
                if done % 10 == 0 or done == steps:
                    request.progress(done, steps)
        self._network = network.eval()

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the reconstruction."""
        return self.reconstruct(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the images after ``times`` passes."""
        network = self._fitted()
        for _pass in range(self.times):
            x = network(x)
        return x

    def state(self) -> dict[str, Tensor]:
        """Return the weights, and the number of channels that the network was built for."""
        import torch

        network = self._fitted()
        weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
        return {**weights, _CHANNELS: torch.tensor(network.channels)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights back. Raises ValueError where they do not fit."""
        from autoshield_bench.builtin.defenses.networks import build

        weights = dict(state)
        if _CHANNELS not in weights:
            raise ValueError(f"autoencoder: the state holds no {_CHANNELS!r}")
        network = build(self.architecture, int(weights.pop(_CHANNELS)), self.width)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"autoencoder: the state does not fit: {error}") from error
        self._network = network.eval()

    def modules(self) -> Sequence[nn.Module]:
        """Return the network, once there is one."""
        return () if self._network is None else (self._network,)

    def _fitted(self) -> PurifyingNetwork:
        if self._network is None:
            raise RuntimeError("the autoencoder has neither been fitted nor loaded")
        return self._network
