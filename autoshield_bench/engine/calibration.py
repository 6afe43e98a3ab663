"""Thresholds of a defense's detecting stages, from their scores on the clean validation images."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from autoshield_bench.detection import RATES, threshold, too_small
from autoshield_bench.engine.pipeline import Threshold

Calibration = tuple[dict[str, dict[str, Threshold]], dict[str, str]]
"""Thresholds by rate, then component; and by rate why there are none."""


def calibrate(scores: Mapping[str, Tensor]) -> Calibration:
    """Return the thresholds of every rate for which the scores of the stages ``[N]`` give one."""
    found: dict[str, dict[str, Threshold]] = {}
    missing: dict[str, str] = {}
    flat = [name for name, own in scores.items() if float(own.max()) == float(own.min())]
    for rate in RATES:
        small = [why for own in scores.values() if (why := too_small(len(own), rate, len(scores))) is not None]
        if flat:
            level = float(scores[flat[0]].max())
            missing[str(rate)] = f"{flat[0]} gives every validation image the score {level:.6g}: it tells nothing apart"
        elif small:
            missing[str(rate)] = small[0]
        else:
            found[str(rate)] = {
                name: Threshold(value=threshold(own.tolist(), rate, len(scores)), scale=_spread(own))
                for name, own in scores.items()
            }
    return found, missing


def _spread(scores: Tensor) -> float:
    low, high = scores.double().quantile(scores.double().new_tensor([0.25, 0.75])).tolist()
    return float(high - low) or float(scores.max() - scores.min())
