"""For each image the nearest one of another class in the validation part: what a purifier may take it for."""

from __future__ import annotations

import torch
from torch import Tensor

from autoshield_bench.engine.data import Data

_CHUNK = 250


def decoys(data: Data, images: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Return images like ``images``: the nearest in L2 whose label differs, or is the target where there are targets.

    An image without any gets itself back.
    """
    _fitting, (pool, pool_labels) = data.parts
    pool = pool.to(images.device)
    found = []
    for rows in torch.split(torch.arange(len(images)), _CHUNK):
        true = labels[rows].cpu()[:, None]
        fits = pool_labels[None] != true if targets is None else pool_labels[None] == targets[rows].cpu()[:, None]
        away = torch.cdist(images[rows].flatten(1), pool.flatten(1))
        nearest = away.masked_fill(~fits.to(away.device), torch.inf).min(1)
        known = nearest.values.isfinite().view(-1, *[1] * (images.dim() - 1))
        found.append(torch.where(known, pool[nearest.indices], images[rows]))
    return torch.cat(found)
