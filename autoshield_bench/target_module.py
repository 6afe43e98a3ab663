"""A target dressed as the network that other attack libraries expect, for adapters around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench.balls import distance
from autoshield_bench.contracts import AttackRequest, Needs, Target
from autoshield_bench.errors import CellError

_ROOM = 1e-4
"""Distance outside the ball at which a point still belongs to an image: float32 rounding of third parties."""


class TargetModule(nn.Module):
    """An ``nn.Module`` whose ``forward`` asks the request's target; every call is counted and kept to its budget.

    ``needs`` is what the attack's spec declares: with ``gradients`` the logits are differentiable, with ``scores`` they
    are not, and with ``labels`` the output is the predicted class as one-hot scores.

    Whose points a batch holds: those of the request's images in their order, where there are as many; those of the only
    image, where the request has one. Any other batch is one that a library has cut down, and each point belongs to the
    nearest image in whose ball it lies. Raises CellError where it lies in none: such a library is run image by image.
    """

    def __init__(self, request: AttackRequest, needs: Needs = "gradients") -> None:
        super().__init__()
        self._target: Target = request.target
        self._clean = request.images.detach().clone()
        self._threat = request.threat
        self._needs = needs
        # Libraries look at the first parameter to find the device.
        self.device_of = nn.Parameter(torch.zeros(0, device=request.images.device), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]`` of points ``[N, C, H, W]``."""
        target = self._target if len(x) == len(self._clean) else self._target.select(self._owners(x))
        if self._needs == "labels":
            return functional.one_hot(target.labels(x), target.classes).to(x.dtype)
        return target.logits(x)

    def _owners(self, x: Tensor) -> Tensor:
        """Return the row of the image that each point belongs to."""
        if len(self._clean) == 1 or not len(x):
            return torch.zeros(len(x), dtype=torch.int64)
        away = torch.stack(
            [distance(x.detach(), one.expand_as(x), self._threat.norm) for one in self._clean.unsqueeze(1)], dim=1
        )
        nearest = away.min(dim=1)
        if bool((nearest.values > self._threat.eps + _ROOM).any()):
            raise CellError(
                f"a wrapped attack asked about {len(x)} points for a batch of {len(self._clean)} images, and some lie "
                f"in no image's ball; run it image by image"
            )
        return nearest.indices.cpu()
