"""Requests as ART takes them, and the verification of what it returns. Imports no ART."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autoshield_bench.contracts import AttackRequest, Norm
from autoshield_bench.errors import CellError

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

ROOM = 1e-5
"""How far float32 arithmetic may carry ART out of the ball or out of [0, 1]; more is an error, less is rounded back."""


def order(norm: Norm) -> float:
    """Return the norm as ART names it."""
    return math.inf if norm == "linf" else 2


def points(images: Tensor) -> numpy.ndarray[Any, Any]:
    """Return images as the float32 array of its own that ART may write to."""
    return images.detach().cpu().numpy().copy()


def goal(request: AttackRequest) -> numpy.ndarray[Any, Any]:
    """Return the classes that ART is given, one-hot ``[N, classes]``: the targets, or else the true labels.

    One-hot, since ART takes class indices ``[N, 1]`` of two classes for scores.
    """
    from torch.nn import functional

    classes = request.labels if request.targets is None else request.targets
    return functional.one_hot(classes, request.target.classes).float().cpu().numpy()


def narrowed(request: AttackRequest, rows: Tensor) -> AttackRequest:
    """Return the request for the images at ``rows`` (indices) alone."""
    return dataclasses.replace(
        request,
        images=request.images[rows],
        labels=request.labels[rows],
        target=request.target.select(rows),
        rng=request.rng.select(rows),
        targets=None if request.targets is None else request.targets[rows],
    )


def one_by_one(request: AttackRequest) -> Iterator[AttackRequest]:
    """Yield the request of each image by itself."""
    import torch

    for row in range(len(request.images)):
        yield narrowed(request, torch.tensor([row], device=request.images.device))


def within_ball(result: numpy.ndarray[Any, Any], request: AttackRequest) -> Tensor:
    """Return ART's images of a fixed-budget attack, rounded into the ball; not finite ones are the clean images.

    Raises CellError where an image lies further out than float32 rounding explains.
    """
    from autoshield_bench.balls import Ball, distance

    images = within_range(result, request)
    lengths = distance(images, request.images, request.threat.norm)
    outside = lengths > request.threat.eps + ROOM
    if bool(outside.any()):
        raise CellError(
            f"ART left the {request.threat.norm} ball of eps {request.threat.eps:g} in {int(outside.sum())} of "
            f"{len(images)} images; the farthest lies at {float(lengths.max()):.9g}"
        )
    return Ball(request.images, request.threat).project(images)


def within_range(result: numpy.ndarray[Any, Any], request: AttackRequest) -> Tensor:
    """Return ART's images, rounded into [0, 1]; not finite ones are the clean images.

    Raises CellError where a value lies further out than float32 rounding explains.
    """
    import torch

    images = torch.from_numpy(result).to(request.images)
    finite = torch.isfinite(images).flatten(1).all(1)
    images = torch.where(finite.view(-1, 1, 1, 1), images, request.images)
    low, high = float(images.min()), float(images.max())
    if low < -ROOM or high > 1 + ROOM:
        raise CellError(f"ART returned values from {low:.9g} to {high:.9g}, outside [0, 1]")
    return images.clamp(0, 1)
