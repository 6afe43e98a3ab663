"""Total variation minimisation, which ART calls total variance minimisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autoshield_bench.contracts import Defense
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from autoshield_bench.seeding import ImageRandom
    from torch import Tensor

EMPTY = 0.05
"""Added to the length of the difference of two rows in ``surrogate``, so that equal rows do not divide by zero."""

HOLD = 0.01
"""Least share of the values to which ``surrogate`` is held, so that a gradient is left where ``prob`` is zero."""


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Defense):
    """Smooths an image, held to a random part of its pixels: few iterations of a solver that starts at the image.

    It minimises ``|mask * (z - x)| + lamb * TV(z)`` for each channel, where ``TV`` sums the lengths of the differences
    of neighbouring rows and of neighbouring columns. Source: Guo et al. 2018, arXiv:1711.00117, section 4; computed by
    ``art.defences.preprocessor.TotalVarMin``, whose parameters and default values these are. ART hands its solver a
    gradient of ``TV`` that is ``norm`` times too long; with the paper's values (``prob`` 0.5, ``lamb`` 0.03) the solver
    stops where it starts, and images of digits come back as they were.
    """

    prob: float = 0.3
    """Share of the values to which the image is held, 0 to 1."""

    norm: Literal[1, 2] = 2
    """Which length of a difference of rows ``TV`` sums. ART takes larger ones too, with gradients of the wrong sign."""

    lamb: float = 0.5
    """Weight of ``TV``."""

    solver: Literal["L-BFGS-B", "CG", "Newton-CG"] = "L-BFGS-B"
    """Method of ``scipy.optimize.minimize``; Newton-CG takes several hundred times as long as the others."""

    max_iter: int = 10
    """Iterations of the solver at most."""

    def __post_init__(self) -> None:
        if not 0 <= self.prob <= 1:
            raise ParameterError("prob", f"{self.prob:g} is not between 0 and 1")
        if self.norm not in (1, 2):
            raise ParameterError("norm", f"{self.norm} is neither 1 nor 2")
        if not (self.lamb >= 0 and math.isfinite(self.lamb)):
            raise ParameterError("lamb", f"{self.lamb:g} is not a finite number of at least 0")
        if self.solver not in ("L-BFGS-B", "CG", "Newton-CG"):
            raise ParameterError("solver", f"{self.solver!r} is not one of L-BFGS-B, CG, Newton-CG")
        if self.max_iter < 1:
            raise ParameterError("max_iter", f"{self.max_iter} is too small; give at least 1")

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the smoothed images.

        This is ``TotalVarMin.__call__`` but for the mask, which ART draws from numpy's global generator.
        """
        import numpy as np
        from art.defences.preprocessor import TotalVarMin

        from aubench_art.arrays import as_array, as_images

        art = TotalVarMin(prob=self.prob, norm=self.norm, lamb=self.lamb, solver=self.solver, max_iter=self.max_iter)
        images = as_array(x.permute(0, 2, 3, 1))
        masks = (rng.uniform(images.shape[1:], "mask").numpy() < self.prob).astype("int")
        smoothed = np.empty_like(images)
        for place, (image, mask) in enumerate(zip(images, masks, strict=True)):
            smoothed[place] = art._minimize(image, mask)
        return as_images(np.clip(smoothed, 0.0, 1.0).transpose(0, 3, 1, 2), x)

    def surrogate(self, x: Tensor) -> Tensor:
        """Return one step of lagged diffusivity (Vogel and Oman 1996, doi:10.1137/0917016) from the image.

        The length of each difference of rows is replaced by a parabola with the slope that it has at ``x``, and the
        mask by its mean. What is left is linear in ``x``: it smooths where the image is smooth, keeps edges, and is
        solved in closed form, since its matrix is the sum of one for rows and one for columns.
        """
        import torch

        planes = x.flatten(0, 1)
        with torch.no_grad():
            rows, row_basis = torch.linalg.eigh(_laplacian(self._stiffness(planes)))
            columns, column_basis = torch.linalg.eigh(_laplacian(self._stiffness(planes.mT)))
            # Rounding can make the smallest eigenvalue, which is zero, negative.
            stiffness = rows.clamp_min(0)[:, :, None] + columns.clamp_min(0)[:, None, :]
            hold = max(self.prob, HOLD)
            kept = hold / (hold + stiffness)
        spectrum = (row_basis.mT @ planes @ column_basis) * kept
        smoothed: Tensor = row_basis @ spectrum @ column_basis.mT
        return smoothed.view_as(x)

    def _stiffness(self, planes: Tensor) -> Tensor:
        """Return the weight ``[P, H - 1]`` of each squared difference of neighbouring rows of planes ``[P, H, W]``."""
        lengths = (planes[:, 1:] - planes[:, :-1]).square().sum(2).sqrt()
        # ART's gradient is `norm` times too long; and a sum of W absolute values is about sqrt(W) Euclidean lengths.
        scale = 2.0 if self.norm == 2 else planes.shape[2] ** 0.5
        return self.lamb * scale / (lengths + EMPTY)


def _laplacian(weights: Tensor) -> Tensor:
    """Return the matrices ``[P, M, M]`` of ``sum_i w_i (z_{i+1} - z_i)^2`` from weights ``[P, M - 1]``."""
    from torch.nn import functional

    degrees = functional.pad(weights, (0, 1)) + functional.pad(weights, (1, 0))
    beside = weights.diag_embed(1)
    return degrees.diag_embed() - beside - beside.mT
