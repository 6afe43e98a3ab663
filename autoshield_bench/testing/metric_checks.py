"""What a metric must do, one function per property; each raises ContractViolation with the numbers.

Checks that build on another one raise NotJudged where that one fails, so that a mistake shows once, under its own name.
"""

from __future__ import annotations

import json
import math
from typing import cast

import torch
from torch import Tensor

from autoshield_bench.contracts import MetricValues
from autoshield_bench.testing.checks import check
from autoshield_bench.testing.metric_runs import (
    batch,
    defined_mean,
    extremes,
    growing,
    make,
    measured,
    metric_spec,
    numbers,
    raw,
)
from autoshield_bench.testing.outcome import ContractViolation, NotJudged, must_not_raise, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, World

LONGEST_UNIT = 12


# What is declared -------------------------------------------------------------------------------------------------


@check(
    "metric",
    "declaration",
    meaning=f"Direction, range (ascending) and unit (printable, {LONGEST_UNIT} characters at most) are well formed.",
    catches="range=(1, 0), or a whole sentence as the unit.",
    remedy='Write `direction="higher"` or `direction="lower"`, and `range=(lowest, highest)` with a finite lowest '
    'value and with None where there is no highest one. The unit is a symbol such as `"dB"`; what needs a sentence '
    "goes into `notes()`.",
)
def declaration(subject: Subject, _world: World) -> None:
    """Check the spec itself."""
    wrong = _wrong_declaration(subject)
    require(wrong is None, f"{wrong}")


@check(
    "metric",
    "range",
    meaning="Every value, and the aggregated one, lies in the declared range.",
    catches="A similarity declared as 0 to 1 that falls below 0 for opposite images.",
    remedy="Declare the bounds that the formula has, also for images that are each other's negative: `range=(-1, 1)` "
    "for SSIM, None for no largest value. If the bounds are right, the mistake is in `per_image` or in `aggregate`; "
    "clip no more than a rounding error.",
)
def in_range(subject: Subject, world: World) -> None:
    """Check values on identical, noisy and opposite inputs."""
    if _wrong_declaration(subject):
        raise NotJudged("the declaration is not well formed (check 'declaration')")
    low, high = metric_spec(subject).range
    metric = make(subject)
    for name, inputs in extremes(subject, world):
        values, defined = measured(metric, inputs)
        found = values[defined][torch.isfinite(values[defined])].tolist()
        whole = metric.aggregate(found, 0) if found else None
        if isinstance(whole, float) and math.isfinite(whole):
            found.append(whole)
        outside = [value for value in found if not _inside(value, low, high)]
        bounds = f"[{low:g}, {'infinity' if high is None else f'{high:g}'}]"
        require(
            not outside, f"{name}: {len(outside)} values outside {bounds}, such as {outside[0] if outside else 0:.6g}"
        )


@check(
    "metric",
    "direction",
    meaning="What is better for the defense scores better, in the declared direction.",
    catches='direction="higher" on a distance.',
    remedy='Declare `direction="lower"` for a distance or an error, `direction="higher"` for a similarity or an '
    "accuracy. If the declaration is right, look for a sign that is turned around, or for `clean_logits` where "
    "`logits` belong.",
)
def direction(subject: Subject, world: World) -> None:
    """Check a good case against a bad one."""
    metric, spec = make(subject), metric_spec(subject)
    cases = growing(subject, world)
    good, bad = (defined_mean(metric, inputs) for inputs in (cases[0], cases[-1]))
    better = good > bad if spec.direction == "higher" else good < bad
    require(better, f"declared {spec.direction!r} is better: the good case scores {good:.6g}, the bad one {bad:.6g}")


# What is returned -------------------------------------------------------------------------------------------------


@check(
    "metric",
    "one-value-per-image",
    meaning="per_image returns MetricValues with floating values [N], and defined as booleans [N] or None.",
    catches="The mean over the batch is returned as one number.",
    remedy="Reduce over every dimension but the first, as in `MetricValues(values=difference.flatten(1).mean(1))`; "
    'functions of torch do so with `reduction="none"`. `defined` comes from a comparison per image, such as `error > '
    "0`.",
)
def one_value_per_image(subject: Subject, world: World) -> None:
    """Check type, shape and dtype of what is returned."""
    metric = make(subject)
    for name, inputs in extremes(subject, world):
        returned: object = raw(metric, inputs)
        if not isinstance(returned, MetricValues) or not isinstance(returned.values, Tensor):
            raise ContractViolation(f"{name}: returned {type(returned).__name__} where MetricValues of tensors belongs")
        shape, dtype = tuple(returned.values.shape), returned.values.dtype
        require(shape == (IMAGES,), f"{name}: values of shape {shape} where {(IMAGES,)} belongs")
        require(dtype.is_floating_point, f"{name}: values are {dtype}, not floating")
        if returned.defined is not None:
            wrong = returned.defined.shape != (IMAGES,) or returned.defined.dtype != torch.bool
            require(not wrong, f"{name}: defined is {returned.defined.dtype} of {tuple(returned.defined.shape)}")


@check(
    "metric",
    "finite",
    meaning="A value is finite, or it is called undefined.",
    catches="-10 log10(0): infinity for identical images.",
    remedy="Return `MetricValues(values=values, defined=error > 0)`, or whatever tells for which images the value "
    "exists. Where it does exist, keep divisions and logarithms away from zero.",
)
def finite(subject: Subject, world: World) -> None:
    """Check values on identical, noisy and opposite inputs."""
    metric = make(subject)
    for name, inputs in extremes(subject, world):
        values, defined = measured(metric, inputs)
        broken = int((~torch.isfinite(values) & defined).sum())
        require(broken == 0, f"{name}: {broken} of {IMAGES} values are NaN or infinite and called defined")


@check(
    "metric",
    "json-safe",
    meaning="aggregate returns a finite int or float, or None; it is written to JSON as it is.",
    catches="A tensor of one element, or numpy's float32.",
    remedy="End `aggregate` with `float(...)`, or `value.item()` for a tensor, and return None where the result is "
    "not finite.",
)
def json_safe(subject: Subject, world: World) -> None:
    """Check the type of the aggregated value."""
    metric = make(subject)
    for name, inputs in extremes(subject, world):
        found = numbers(metric, inputs)
        if not found:
            continue
        whole: object = metric.aggregate(found, IMAGES - len(found))
        if whole is None:
            continue
        plain = isinstance(whole, int | float) and not isinstance(whole, bool)
        require(plain, f"{name}: aggregated to {type(whole).__name__} where a number or None belongs")
        require(math.isfinite(cast("float", whole)), f"{name}: aggregated to {whole}")
        json.dumps(whole, allow_nan=False)


@check(
    "metric",
    "empty-input",
    meaning="No images give no values, and no values aggregate to None: never to NaN, never to an error.",
    catches="sum(values) / len(values) of nothing.",
    remedy="Let `aggregate` begin with `if not values: return None`, and `per_image` return "
    "`MetricValues(values=torch.zeros(0))` where it is handed no images, before any reduction over the batch.",
)
def empty_input(subject: Subject, world: World) -> None:
    """Check no images, no values, and undefined values alone."""
    metric = make(subject)
    measured(metric, batch(subject, world))
    with must_not_raise("for no images per_image"):
        returned = raw(metric, batch(subject, world, rows=[]))
    shape = tuple(returned.values.shape) if isinstance(returned, MetricValues) else type(returned).__name__
    require(shape == (0,), f"no images give values of shape {shape} where (0,) belongs")
    for undefined in (0, 3):
        try:
            whole: object = metric.aggregate([], undefined)
        except Exception as error:
            raise ContractViolation(
                f"aggregate([], {undefined}) raised {type(error).__name__}: {error}; return None"
            ) from error
        require(whole is None, f"aggregate([], {undefined}) returned {whole!r} where None belongs")


# ------------------------------------------------------------------------------------------------------------------


def _wrong_declaration(subject: Subject) -> str | None:
    spec = metric_spec(subject)
    direction_, range_, unit = cast("tuple[object, object, object]", (spec.direction, spec.range, spec.unit))
    if direction_ not in ("higher", "lower"):
        return f"direction is {direction_!r}, not 'higher' or 'lower'"
    bounds = tuple(range_) if isinstance(range_, tuple | list) else ()
    if len(bounds) != 2 or not _is_number(bounds[0]) or not (bounds[1] is None or _is_number(bounds[1])):
        return f"range is {range_!r}, not (lowest, highest or None)"
    if bounds[1] is not None and not bounds[0] < bounds[1]:
        return f"range is {range_!r}: not ascending"
    if not isinstance(unit, str) or not unit.isprintable() or len(unit) > LONGEST_UNIT:
        return f"unit is {unit!r}: not printable, or longer than {LONGEST_UNIT} characters"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _inside(value: float, low: float, high: float | None) -> bool:
    slack = 1e-6 * max(1.0, abs(value))
    return value >= low - slack and (high is None or value <= high + slack)
