"""What purifiers of a given strength share: the strength itself, or the clean quality that it is to be matched to."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from autoshield_bench.contracts import Defense, FitRequest
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

    from autoshield_bench.seeding import ImageRandom

_BATCH = 250

_FEW = 16
"""So many strengths or fewer are all tried; of more the closest one is found by bisection."""


@dataclass(kw_only=True)
class MatchedPurifier(Defense):
    """Base class of purifiers that learn nothing but, where asked to, how strong to be.

    With ``clean_psnr``, ``fit`` takes the strength at which clean validation images come out closest to that PSNR, so
    that a table can set the purifier beside a learned one that changes clean images just as much.
    """

    clean_psnr: float | None = None
    """PSNR in dB between clean and purified validation images, from the mean MSE for a data range of 1, that the
    strength is chosen for, as near as it gets; not together with an explicit strength."""

    strength_parameter: ClassVar[str]
    """Name of the subclass's parameter that says how strong it is, None where it is not given."""

    default_strength: ClassVar[float]
    """What is taken where neither the strength nor ``clean_psnr`` is given."""

    _chosen: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.clean_psnr is not None:
            if self.given is not None:
                name = self.strength_parameter
                raise ParameterError("clean_psnr", f"give either {name} or clean_psnr, not both")
            if not 0 < self.clean_psnr < math.inf:
                raise ParameterError("clean_psnr", f"{self.clean_psnr:g} is not positive; give decibels, such as 25")

    @abstractmethod
    def transform(self, x: Tensor, strength: float) -> Tensor:
        """Return images purified with a strength."""

    @abstractmethod
    def strengths(self, height: int, width: int) -> Sequence[float]:
        """Return the strengths to choose from for images of a size, from the one that changes them least."""

    @property
    def given(self) -> float | None:
        """The strength as the suite gives it, None where it does not."""
        value: float | None = getattr(self, self.strength_parameter)
        return value

    @property
    def strength(self) -> float:
        """The strength in use. Raises RuntimeError where it is to be chosen and has not been."""
        if self.clean_psnr is None:
            return self.default_strength if self.given is None else self.given
        if self._chosen is None:
            raise RuntimeError(f"the {self.strength_parameter} has been neither chosen by fit nor loaded")
        return self._chosen

    def fit(self, request: FitRequest) -> None:
        """Choose the strength on the validation images; behind other stages, on what these make of them."""
        if self.clean_psnr is None:
            return
        import torch

        clean = request.validation_images
        upstream = torch.cat([request.upstream(part.to(request.device)) for part in torch.split(clean, _BATCH)])
        ladder = self.strengths(*clean.shape[-2:])
        asked, expected = 0, len(ladder) if len(ladder) <= _FEW else len(ladder).bit_length()

        def quality(strength: float) -> float:
            nonlocal asked
            asked += 1
            request.progress(min(asked, expected), expected)
            return _psnr(clean, upstream, lambda x: self.transform(x, strength))

        self._chosen = closest(ladder, quality, self.clean_psnr)

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the images purified with the strength that was given or chosen."""
        return self.transform(x, self.strength)

    def state(self) -> dict[str, Tensor]:
        """Return the strength that was chosen; nothing where it is given."""
        import torch

        if self.clean_psnr is None:
            return {}
        return {self.strength_parameter: torch.tensor(self.strength, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take a chosen strength back. Raises ValueError where the state does not fit."""
        expected = set() if self.clean_psnr is None else {self.strength_parameter}
        if set(state) != expected:
            raise ValueError(f"{type(self).__name__}: the state holds {sorted(state)}, not {sorted(expected)}")
        if expected:
            self._chosen = float(state[self.strength_parameter])


def closest(ladder: Sequence[float], quality: Callable[[float], float], wanted: float) -> float:
    """Return the strength whose quality is closest to ``wanted``, the weaker one where two are as close.

    Along a ladder of more than 16 strengths the quality falls, so bisection finds the two on either side of ``wanted``.
    """
    known: dict[int, float] = {}
    if len(ladder) <= _FEW:
        known = {position: quality(strength) for position, strength in enumerate(ladder)}
    else:
        below, above = -1, len(ladder)
        while above - below > 1:
            middle = (below + above) // 2
            known[middle] = quality(ladder[middle])
            below, above = (middle, above) if known[middle] > wanted else (below, middle)
    return ladder[min(sorted(known), key=lambda position: abs(known[position] - wanted))]


def _psnr(clean: Tensor, upstream: Tensor, purify: Callable[[Tensor], Tensor]) -> float:
    """Return the PSNR at the mean squared error over all images, in dB; infinity where nothing changes."""
    import torch

    total = 0.0
    with torch.no_grad():
        for reference, x in zip(torch.split(clean, _BATCH), torch.split(upstream, _BATCH), strict=True):
            total += float((purify(x).cpu().double() - reference.double()).square().sum())
    return -10.0 * math.log10(total / clean.numel()) if total else math.inf
