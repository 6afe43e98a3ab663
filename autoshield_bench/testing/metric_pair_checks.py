"""What a metric that compares two images must do besides: one more group of ``metric_checks``."""

from __future__ import annotations

import itertools
import math

import torch

from autoshield_bench.testing.checks import check
from autoshield_bench.testing.metric_runs import defined_mean, growing, make, measured, metric_spec
from autoshield_bench.testing.outcome import NotJudged, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import World


@check(
    "metric",
    "identical-best",
    meaning="Identical images score at the extreme: no image a little different scores beyond them.",
    catches="An offset inside the absolute value, which puts the optimum beside the clean image.",
    remedy="Prepare both images in the same way, and add offsets and constants outside the absolute value or the "
    "square. Where identical images have no value, say so with `MetricValues(values=values, defined=error > 0)`.",
)
def identical_best(subject: Subject, world: World) -> None:
    """Check identical images against images a little different."""
    if metric_spec(subject).looks_at != "pair":
        raise NotJudged("it does not compare images")
    metric, images = make(subject), world.inner_images
    same, same_defined = measured(metric, (images, images.clone()))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3)).to(images)
    others = [
        measured(metric, (images, images + shift)) for shift in (0.02, -0.02, 0.1, -0.1, 0.02 * noise, 0.05 * noise)
    ]
    judged = same_defined & torch.stack([defined for _, defined in others]).all(0)  # undefined is an explicit best
    best = same[judged]
    around = torch.stack([values[judged] for values, _ in others])
    slack = 1e-9 + 1e-6 * best.abs()
    lowest, highest = bool((best <= around + slack).all()), bool((best >= around - slack).all())
    require(
        lowest or highest,
        f"identical images score {float(best.mean()) if len(best) else math.nan:.6g}, and images a little different "
        f"from {float(around.min()) if around.numel() else math.nan:.6g} to "
        f"{float(around.max()) if around.numel() else math.nan:.6g}",
    )


@check(
    "metric",
    "monotone",
    meaning="Under growing noise the mean value moves one way only.",
    catches="Differences are taken modulo the range, or saturate and turn around.",
    remedy="Compute differences in floating point, where they do not wrap around as uint8 does, and let nothing "
    "saturate before the largest change. A measure for which more noise is not worse by design declares "
    "`monotone=False`.",
)
def monotone(subject: Subject, world: World) -> None:
    """Check the mean over images at six levels of noise, in either direction."""
    if metric_spec(subject).looks_at != "pair":
        raise NotJudged("it does not compare images")
    if not metric_spec(subject).monotone:
        raise NotJudged("it does not declare that it moves one way under growing noise")
    metric = make(subject)
    means = [defined_mean(metric, inputs) for inputs in growing(subject, world)]
    rising = all(a <= b for a, b in itertools.pairwise(means))
    falling = all(a >= b for a, b in itertools.pairwise(means))
    listed = ", ".join(f"{mean:.4g}" for mean in means)
    require(rising or falling, f"mean values under growing noise turn around: {listed}")
