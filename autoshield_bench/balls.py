"""Geometry of the threat model: distances, projection and random starts, for the host, built-ins and plugins alike.

``project`` makes sure that the result lies in the ball when the distance is evaluated in float64, so that rounding to
float32 never buys an attack a little extra room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoshield_bench.contracts import Norm, ThreatModel

if TYPE_CHECKING:
    from torch import Tensor

    from autoshield_bench.seeding import ImageRandom


def distance(a: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """Return the distance of each pair of images ``[N, ...]``, evaluated in float64, as float64 ``[N]``."""
    import torch

    difference = (_double(a) - _double(b)).flatten(1)
    if difference.shape[1] == 0 or difference.shape[0] == 0:
        return torch.zeros(a.shape[0], dtype=torch.float64, device=a.device)
    return difference.abs().amax(1) if norm == "linf" else difference.norm(dim=1)


class Ball:
    """The points within ``threat.eps`` of each of a batch of images, and within [0, 1].

    The bounds are computed once; ``project`` is then cheap enough for every step of an attack.
    """

    def __init__(self, centre: Tensor, threat: ThreatModel) -> None:
        import torch

        self.centre = centre
        self.threat = threat
        zero, one = torch.zeros(()), torch.ones(())
        if threat.norm == "linf":
            precise = _double(centre)
            low, high = (precise - threat.eps).float(), (precise + threat.eps).float()
            # Rounding to float32 may step outside by one unit in the last place: step back inside.
            low = torch.where(precise - low.double() > threat.eps, torch.nextafter(low, one.to(low)), low)
            high = torch.where(high.double() - precise > threat.eps, torch.nextafter(high, zero.to(high)), high)
            self.low, self.high = low.clamp_(min=0.0).to(centre), high.clamp_(max=1.0).to(centre)
        else:
            self.low, self.high = zero.to(centre), one.to(centre)

    def select(self, rows: Tensor) -> Ball:
        """Return the balls around the images at ``rows`` (indices or a mask) of this one's batch."""
        chosen = Ball.__new__(Ball)
        chosen.centre, chosen.threat = self.centre[rows], self.threat
        whole = self.threat.norm != "linf"
        chosen.low, chosen.high = (own if whole else own[rows] for own in (self.low, self.high))
        return chosen

    def project(self, x: Tensor) -> Tensor:
        """Return the nearest point of the ball for L-infinity; for L2, first onto the sphere, then into [0, 1].

        Clipping to [0, 1] after scaling never leaves the L2 ball, since the centre lies in [0, 1].
        """
        import torch

        if self.threat.norm == "linf":
            return torch.minimum(torch.maximum(x, self.low), self.high)
        centre, point = _double(self.centre), _double(x)
        offset = point - centre
        lengths = _per_image(offset.flatten(1).norm(dim=1), offset)
        # A few float64 roundings of room, so that the length of the result cannot exceed eps by one of them.
        factor = (self.threat.eps * (1.0 - 1e-14) / lengths.clamp_min(1e-300)).clamp(max=1.0)
        exact = torch.where(factor < 1.0, centre + offset * factor, point)
        rounded = exact.float()
        # Rounding to float32 may lengthen a step: round each value towards the centre instead.
        longer = (rounded.double() - centre).abs() > (exact - centre).abs()
        return torch.where(longer, torch.nextafter(rounded, centre.float()), rounded).clamp(0.0, 1.0).to(x)

    def random_start(self, rng: ImageRandom, *purpose: str | int) -> Tensor:
        """Return a point of the ball per image: uniform for L-infinity and, by direction and radius, for L2."""
        shape = self.centre.shape[1:]
        if self.threat.norm == "linf":
            eps = self.threat.eps
            offset = rng.uniform(shape, *purpose, low=-eps, high=eps)
        else:
            direction = rng.normal(shape, *purpose, "direction").flatten(1)
            radius = rng.uniform((1,), *purpose, "radius") ** (1 / max(direction.shape[1], 1))
            lengths = direction.norm(dim=1, keepdim=True).clamp_min(1e-12)
            offset = (direction / lengths * radius * self.threat.eps).view(-1, *shape)
        return self.project(self.centre + offset.to(self.centre))


def _double(x: Tensor) -> Tensor:
    # Apple's GPUs have no float64: what must be exact is computed on the CPU there.
    return x.cpu().double() if x.device.type == "mps" else x.double()


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
