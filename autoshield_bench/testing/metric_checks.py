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
    AGREEMENT,
    batch,
    defined_mean,
    extremes,
    growing,
    make,
    measured,
    metric_spec,
    numbers,
    raw,
    require_same,
    steady,
)
from autoshield_bench.testing.outcome import ContractViolation, NotJudged, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, World, changed, global_state, random_state

LONGEST_UNIT = 12


# What is declared -------------------------------------------------------------------------------------------------


@check(
    "metric",
    "declaration",
    meaning=f"Direction, range (ascending) and unit (printable, {LONGEST_UNIT} characters at most) are well formed.",
    catches="range=(1, 0), or a whole sentence as the unit.",
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
)
def empty_input(subject: Subject, world: World) -> None:
    """Check no images, no values, and undefined values alone."""
    metric = make(subject)
    measured(metric, batch(subject, world))
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


# What is left alone, and what must not matter ---------------------------------------------------------------------


@check(
    "metric",
    "inputs-untouched",
    meaning="What is handed in is what it was.",
    catches="reference.sub_(other).",
)
def inputs_untouched(subject: Subject, world: World) -> None:
    """Check the inputs after a call."""
    inputs = batch(subject, world)
    before = [tensor.clone() for tensor in inputs]
    raw(make(subject), inputs)
    moved = [
        position for position, (now, then) in enumerate(zip(inputs, before, strict=True)) if not torch.equal(now, then)
    ]
    require(not moved, f"changed argument {', '.join(str(position + 1) for position in moved)} in place")


@check(
    "metric",
    "known-answers",
    meaning="Where its author gives values that are known from elsewhere, it returns them.",
    catches="PSNR with a natural logarithm: every other property holds, and the numbers are those of nobody else.",
)
def known_answers(subject: Subject, world: World) -> None:
    """Check the values against those that the author's test gives."""
    if not subject.answers:
        raise NotJudged("no known answers are given; override the fixture known_answers of MetricContract")
    metric = make(subject)
    for answer in subject.answers:
        values, defined = measured(metric, tuple(tensor.to(world.device) for tensor in answer.inputs))
        require(
            len(answer.values) == len(values), f"{answer.source}: {len(answer.values)} values for {len(values)} images"
        )
        for image, expected in enumerate(answer.values):
            found = float(values[image]) if defined[image] else None
            if expected is None or found is None:
                require(expected is found, f"{answer.source}: image {image} is {found}, known to be {expected}")
                continue
            room = answer.tolerance * max(1.0, abs(expected))
            require(
                abs(found - expected) <= room,
                f"{answer.source}: image {image} is {found:.7g}, known to be {expected:.7g} (tolerance {room:.2g})",
            )


@check(
    "metric",
    "deterministic",
    meaning="Two calls give the same values bit by bit, and the global generators neither matter nor move.",
    catches="Random projections or crops that are drawn anew in every call.",
)
def deterministic(subject: Subject, world: World) -> None:
    """Check two calls under different global seeds."""
    metric, results = make(subject), []
    for seed in (1, 2):
        with global_state(seed):
            before = random_state()
            results.append(measured(metric, batch(subject, world)))
            moved = changed(before, random_state())
        require(not moved, f"advanced or seeded the global generator of {moved}")
    (first, defined), (second, _defined) = results
    differing = int((first != second)[defined].sum())
    require(differing == 0, f"two calls on the same images differ in {differing} of {IMAGES} values")


@check(
    "metric",
    "permutation",
    meaning=f"Other order of images, the same values in that order, to {AGREEMENT:g}.",
    catches="Values are sorted, or an index is off by one.",
)
def permutation(subject: Subject, world: World) -> None:
    """Check the reverse order."""
    metric = make(subject)
    whole, defined = steady(subject, world)
    values, again = measured(metric, batch(subject, world, rows=list(reversed(range(IMAGES)))))
    require_same((whole, defined), (values.flip(0), again.flip(0)), "in reverse order")


@check(
    "metric",
    "chunked",
    meaning=f"Images measured in parts give the same values as all at once, to {AGREEMENT:g}.",
    catches="Values are normalised by the largest of the batch.",
)
def chunked(subject: Subject, world: World) -> None:
    """Check three parts against the whole."""
    metric = make(subject)
    whole = steady(subject, world)
    parts = [
        measured(metric, batch(subject, world, rows=list(range(start, start + 4)))) for start in range(0, IMAGES, 4)
    ]
    joined = torch.cat([values for values, _ in parts]), torch.cat([defined for _, defined in parts])
    require_same(whole, joined, "in three parts")


@check(
    "metric",
    "dtype",
    meaning="float64 inputs give the values of float32 ones, to one part in a thousand.",
    catches="A hard-coded float32 window that refuses float64 images.",
)
def dtype_tolerance(subject: Subject, world: World) -> None:
    """Check float64 against float32 inputs."""
    metric = make(subject)
    whole = steady(subject, world)
    inputs = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in batch(subject, world))
    try:
        other = measured(metric, inputs)
    except (RuntimeError, TypeError) as error:
        raise ContractViolation(
            f"float64 inputs raise {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    require_same(whole, other, "as float64", 1e-3)


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
