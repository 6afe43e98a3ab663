"""What this distribution offers. Imports nothing heavy: listing plugins imports this module."""

from __future__ import annotations

from collections.abc import Iterator

from autoshield_bench.contracts import MetricSpec
from autoshield_bench.hookspecs import hookimpl

CONTRACT = 1


@hookimpl
def aubench_metrics() -> Iterator[MetricSpec]:
    """Yield the metric."""
    yield MetricSpec(
        name="stlpips",
        factory="aubench_stlpips.metric:Stlpips",
        summary="Shift-tolerant LPIPS; its weights come with the wheel, nothing is downloaded.",
        looks_at="pair",
        direction="lower",
        # A bound, met by no image: features are not negative and of length 1 at most, so a layer adds no more than
        # twice its largest weight, which comes to 2.683 (alex) and 2.158 (vgg); no weight is negative.
        range=(0, 2.7),
        libraries=("stlpips-pytorch",),
        reference="Ghildyal and Liu 2022, arXiv:2207.13686",
    )
