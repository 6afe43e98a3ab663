"""The canaries' manifest: handed to the registry by the trial alone, so that no user meets them among the plugins."""

from __future__ import annotations

from collections.abc import Iterator

from autoshield_bench.canaries.catalogue import CANARIES, SOUND
from autoshield_bench.contracts import DatasetSpec, DefenseSpec
from autoshield_bench.hookspecs import hookimpl

CONTRACT = 1


@hookimpl
def aubench_defenses() -> Iterator[DefenseSpec]:
    """Yield the canaries and the sound defenses that are not built in."""
    for entry in (*CANARIES, *SOUND):
        yield from entry.specs()


@hookimpl
def aubench_datasets() -> Iterator[DatasetSpec]:
    """Yield their images."""
    yield DatasetSpec(
        name="canary-digits",
        factory="autoshield_bench.canaries.data:CanaryDigits",
        summary="scikit-learn's digits in a split of their own: 1,197 for training, 600 for testing.",
    )
