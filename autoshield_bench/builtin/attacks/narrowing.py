"""A request for some of its images, for attacks that leave fallen ones alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from autoshield_bench.contracts import AttackRequest

if TYPE_CHECKING:
    from torch import Tensor


def narrowed(request: AttackRequest, rows: Tensor, *purpose: str | int) -> AttackRequest:
    """Return the request for the images at ``rows``; each keeps its own draws, or others for a purpose named here."""
    decoys = request.decoys
    rng = request.rng.select(rows)
    return dataclasses.replace(
        request,
        images=request.images[rows],
        labels=request.labels[rows],
        target=request.target.select(rows),
        rng=rng.child(*purpose) if purpose else rng,
        targets=None if request.targets is None else request.targets[rows],
        decoys=None if decoys is None else lambda: decoys()[rows],
    )
