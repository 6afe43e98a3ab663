"""Canaries that draw at random and declare that they do not, so that nobody averages over their draws (EOT)."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from autoshield_bench.canaries.gradients import Strength
from autoshield_bench.contracts import Defense, FitRequest
from autoshield_bench.seeding import ImageRandom


@dataclass(frozen=True, kw_only=True)
class LatentNoise(Defense):
    """Puts fresh noise on what the classifier's last layer sees, drawn from torch's global generator."""

    strength: Strength = 2
    """Standard deviation of the noise relative to that of an image's own values there: mild 0.1, plain 0.4, gross 1."""

    def defend(self, classifier: nn.Module) -> nn.Module:
        """Return the classifier with noise before its last linear layer."""
        noisy = copy.deepcopy(classifier)
        linear = [name for name, module in noisy.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError("the classifier has no linear layer to put noise before")
        place, _, name = linear[-1].rpartition(".")
        parent = noisy.get_submodule(place)
        last = parent.get_submodule(name)
        setattr(parent, name, nn.Sequential(_Noise({1: 0.1, 2: 0.4, 3: 1.0}[self.strength]), last))
        return noisy


class _Noise(nn.Module):
    def __init__(self, relative: float) -> None:
        super().__init__()
        self.relative = relative

    def forward(self, x: Tensor) -> Tensor:
        return x + self.relative * x.std(1, keepdim=True).detach() * torch.randn_like(x)


@dataclass(frozen=True, kw_only=True)
class HashedNoise(Defense):
    """Adds noise whose seed is a hash of the image: the same image gives the same noise, the next one any other."""

    strength: Strength = 2
    """Standard deviation of the noise: mild 0.05, plain 0.1, gross 0.2."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the noisy image; ``rng`` is never asked."""
        values = x.detach().cpu().contiguous().numpy()
        noise = np.empty_like(values)
        for row, image in enumerate(values):
            digest = hashlib.blake2b(image.tobytes(), digest_size=8).digest()
            noise[row] = np.random.default_rng(int.from_bytes(digest, "big")).standard_normal(
                image.shape, dtype=np.float32
            )
        deviation = {1: 0.05, 2: 0.1, 3: 0.2}[self.strength]
        return (x + deviation * torch.from_numpy(noise).to(x.device)).clamp(0, 1)


@dataclass(kw_only=True)
class TrainingMode(Defense):
    """Purifies by a network that nobody has put in evaluation mode: it drops values, and normalises by the batch."""

    strength: Strength = 2
    """Share of values dropped: mild 0.02, plain 0.1, gross 0.3. The mild one's network is merely not named in
    ``modules``, so that the host cannot reach it; the others switch it back to training mode themselves."""

    _network: nn.Sequential | None = field(default=None, init=False, repr=False)

    def fit(self, request: FitRequest) -> None:
        """Set the normalisation so that clean images pass it unchanged on the average."""
        deviation, mean = torch.std_mean(request.images, (0, 2, 3))
        self._network = self._built(mean, deviation)

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the image, some of its values missing."""
        assert self._network is not None
        if self.strength > 1:
            self._network.train()
        result: Tensor = self._network.to(x.device)(x).clamp(0, 1)
        return result

    def state(self) -> dict[str, Tensor]:
        """Return mean and standard deviation of the training images."""
        assert self._network is not None
        normalise = self._network.get_submodule("0")
        assert isinstance(normalise, nn.BatchNorm2d)
        return {"mean": normalise.bias.detach().clone(), "deviation": normalise.weight.detach().clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self._network = self._built(state["mean"], state["deviation"])

    def modules(self) -> tuple[nn.Module, ...]:
        """Return the network, unless this is the mild one."""
        return (self._network,) if self._network is not None and self.strength > 1 else ()

    def _built(self, mean: Tensor, deviation: Tensor) -> nn.Sequential:
        normalise = nn.BatchNorm2d(len(mean))
        state = {"weight": deviation, "bias": mean, "running_mean": mean, "running_var": deviation**2}
        normalise.load_state_dict({**normalise.state_dict(), **state})
        return nn.Sequential(normalise, nn.Dropout({1: 0.02, 2: 0.1, 3: 0.3}[self.strength]))
