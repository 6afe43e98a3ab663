"""DeepFool, as torchattacks has it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

from aubench_torchattacks.library import finite_or_clean, part_of
from aubench_torchattacks.parameters import at_least

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """Steps to the nearest boundary of the linearised network, until it is crossed; image by image.

    The library lengthens each step by its overshoot. Where many pixels are 0 or 1, clipping takes more off a step than
    that: such an image comes ever nearer to the boundary, to the last digit, and never crosses it. There the whole
    change is lengthened, as in the paper, by each of ``stretches`` until the boundary is crossed. An image that does
    not cross even so, or for which the library divides by a gradient of zero, stands as it was.
    Source: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599.
    """

    steps: int = 50
    """Steps, at most."""

    overshoot: float = 0.02
    """How much longer a step is than to the boundary, as a share of its length."""

    stretches: tuple[float, ...] = (0.02, 0.1, 0.5)
    """How much longer the whole change is made where the boundary is not crossed; none: what the library does alone."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        for key, values in (("overshoot", (self.overshoot,)), ("stretches", self.stretches)):
            for value in values:
                if not 0 <= value < math.inf:
                    raise ParameterError(key, f"{value:g} is no finite number of at least 0")

    def run(self, request: AttackRequest) -> Tensor:
        """Return a point across the boundary for each image, and the clean image where there is none."""
        import torch

        images = request.images
        if not len(images):
            return images.clone()
        rows = torch.split(torch.arange(len(images)), 1)
        stopped = torch.cat([self._alone(part_of(request, row)) for row in rows])
        points, across = images.clone(), torch.zeros(len(images), dtype=torch.bool, device=images.device)
        for stretch in (0.0, *self.stretches):
            if bool(across.all()):
                break
            tried = (images + (1 + stretch) * (stopped - images)).clamp(0, 1) if stretch else stopped
            now = ~across & (request.target.labels(tried) != request.labels)
            points[now], across = tried[now], across | now
        return points

    def _alone(self, request: AttackRequest) -> Tensor:
        """Return where the library stops for an only image, and the image where that is not finite."""
        import torch
        import torchattacks
        from autoshield_bench.target_module import TargetModule

        attack = torchattacks.DeepFool(TargetModule(request), steps=self.steps, overshoot=self.overshoot)
        with torch.enable_grad():
            points = attack(request.images, request.labels).detach()
        return finite_or_clean(points, request.images)
