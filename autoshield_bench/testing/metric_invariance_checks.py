"""What must not matter to a metric, and the values that it must come to: one more group of ``metric_checks``."""

from __future__ import annotations

import torch

from autoshield_bench.testing.checks import check
from autoshield_bench.testing.metric_runs import AGREEMENT, batch, make, measured, raw, require_same, steady
from autoshield_bench.testing.outcome import ContractViolation, NotJudged, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, World, changed, global_state, random_state


@check(
    "metric",
    "inputs-untouched",
    meaning="What is handed in is what it was.",
    catches="reference.sub_(other).",
    remedy="Use operations that return new tensors (`reference.sub(other)`, not `reference.sub_(other)`), and hand "
    "clones to a library that works in place.",
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
    remedy="Compare the definition with that of the source: data range (images reach to 1, not to 255), base of the "
    "logarithm, window, average over channels. Raise `KnownAnswer.tolerance` for rounding alone; where the source "
    "defines something else than the metric, take another source.",
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
    remedy="Draw projections, crops and weights once, in `__post_init__` or `prepare`, from "
    "`torch.Generator().manual_seed(0)`. Build networks there too, since their layers draw when they are made, and "
    "call `eval()` on them.",
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
    remedy="Return the values in the order in which the images came: `values[order.argsort()]` undoes a sort by "
    "`order`. Let neither an image's position nor its neighbours enter its value.",
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
    remedy="Take every maximum, mean and deviation within one image (`x.flatten(1).amax(1)`), or use the data range, "
    "which is 1. What is meant to run over all images belongs in `aggregate`.",
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
    remedy="Give windows and constants the dtype of the images (`window.to(reference)`), or begin with "
    "`reference.float()` where a network inside computes in float32. Values that differ point to a difference of "
    "nearly equal numbers: compute it in float64.",
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
