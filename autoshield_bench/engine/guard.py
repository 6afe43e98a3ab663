"""The host's checks of what a plugin returned. It verifies and never silently repairs; the message has the numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autoshield_bench.balls import distance
from autoshield_bench.contracts import MetricValues, ThreatModel
from autoshield_bench.errors import CellError

SLACK = 1e-6
"""Room outside the ball for the float32 rounding of third parties; built-in attacks need none."""


def check_shape(returned: object, clean: Tensor, who: str) -> Tensor:
    """Return ``returned`` if it is a tensor of the shape, dtype and device of ``clean``. Raises CellError."""
    if not isinstance(returned, Tensor):
        raise CellError(f"{who} returned {type(returned).__name__} where a tensor belongs")
    if returned.shape != clean.shape:
        raise CellError(f"{who} returned shape {tuple(returned.shape)} where {tuple(clean.shape)} belongs")
    if returned.dtype != clean.dtype:
        raise CellError(f"{who} returned {returned.dtype} where {clean.dtype} belongs")
    if returned.device != clean.device:
        raise CellError(f"{who} returned a tensor on {returned.device} where {clean.device} belongs")
    return returned


def check_images(returned: object, clean: Tensor, who: str) -> Tensor:
    """Return ``returned`` if it is a batch of images like ``clean``: shape, dtype, device, finite, in [0, 1].

    Raises CellError with the numbers.
    """
    returned = check_shape(returned, clean, who).detach()
    broken = int((~torch.isfinite(returned)).flatten(1).any(1).sum()) if returned.numel() else 0
    if broken:
        raise CellError(f"{who} returned NaN or infinity in {broken} of {len(returned)} images")
    if returned.numel():
        low, high = float(returned.min()), float(returned.max())
        if low < 0.0 or high > 1.0:
            outside = int(((returned < 0) | (returned > 1)).flatten(1).any(1).sum())
            raise CellError(
                f"{who} returned values from {low:.9g} to {high:.9g}, outside [0, 1], "
                f"in {outside} of {len(returned)} images"
            )
    return returned


def check_adversarial(returned: object, clean: Tensor, threat: ThreatModel, who: str) -> Tensor:
    """Return adversarial images if they are images and lie in the ball. Raises CellError with the numbers."""
    images = check_images(returned, clean, who)
    lengths = distance(images, clean, threat.norm)
    outside = lengths > threat.eps + SLACK
    if bool(outside.any()):
        raise CellError(
            f"{who} left the {threat.norm} ball of eps {threat.eps:g} in {int(outside.sum())} of {len(images)} images; "
            f"the farthest lies at {float(lengths.max()):.9g}"
        )
    return images


def check_logits(returned: object, images: int, classes: int, who: str) -> Tensor:
    """Return logits if they are finite and ``[images, classes]``. Raises CellError with the numbers."""
    if not isinstance(returned, Tensor):
        raise CellError(f"{who} returned {type(returned).__name__} where logits belong")
    if returned.shape != (images, classes):
        raise CellError(f"{who} returned logits of shape {tuple(returned.shape)} where {(images, classes)} belongs")
    if not bool(torch.isfinite(returned).all()):
        raise CellError(f"{who} returned NaN or infinite logits")
    return returned


def check_anomaly(returned: object, images: int, who: str) -> Tensor:
    """Return anomaly scores, in float32, if there is one finite float per image. Raises CellError with the numbers."""
    if not isinstance(returned, Tensor) or not returned.is_floating_point():
        what = returned.dtype if isinstance(returned, Tensor) else type(returned).__name__
        raise CellError(f"{who} returned {what} where a float tensor of anomaly scores belongs")
    if returned.shape != (images,):
        raise CellError(f"{who} returned anomaly scores of shape {tuple(returned.shape)} where ({images},) belongs")
    scores = returned.float()  # in the precision in which thresholds are fixed, which has fewer large numbers
    broken = int((~torch.isfinite(scores)).sum())
    if broken:
        what = "NaN, infinity or a number beyond float32"
        raise CellError(f"{who} returned {what} as the anomaly score of {broken} of {images} images")
    return scores


def check_values(returned: object, images: int, who: str) -> MetricValues:
    """Return a metric's values if there is one per image, finite wherever defined. Raises CellError."""
    if not isinstance(returned, MetricValues):
        raise CellError(f"{who} returned {type(returned).__name__} where MetricValues belongs")
    values = returned.values
    defined = returned.defined if returned.defined is not None else torch.ones(len(values), dtype=torch.bool)
    if values.shape != (images,) or defined.shape != (images,) or defined.dtype != torch.bool:
        raise CellError(f"{who} returned values of shape {tuple(values.shape)} where ({images},) belongs")
    if not bool(torch.isfinite(values[defined.to(values.device)]).all()):
        raise CellError(f"{who} returned NaN or infinity for an image it calls defined")
    return MetricValues(values=values.detach().cpu(), defined=defined.cpu())


def check_aggregate(returned: object, who: str) -> float | None:
    """Return an aggregated value if it is a finite number or None. Raises CellError."""
    if returned is None:
        return None
    if isinstance(returned, bool) or not isinstance(returned, int | float) or not math.isfinite(returned):
        raise CellError(
            f"{who} aggregated to the {type(returned).__name__} {returned!r} where a finite number or None belongs"
        )
    return float(returned)


def check_text(returned: object, who: str) -> str:
    """Return a text if it is one that can be written down. Raises CellError."""
    if not isinstance(returned, str):
        raise CellError(f"{who} returned {type(returned).__name__} where a text belongs")
    try:
        returned.encode()
    except UnicodeEncodeError as error:
        raise CellError(f"{who} returned a text that is no Unicode ({error.reason})") from error
    return returned
