"""Counts behind cost estimates; the journal uses the same ones, so that measured rates fit what they are applied to."""

from __future__ import annotations

from autoshield_bench.contracts import DatasetInfo, Defense


def fitting_size(info: DatasetInfo) -> int:
    """Return the number of images of the fitting part."""
    return info.train_size - info.validation_size


def training_passes(images: int, epochs: int) -> int:
    """Return the image-passes, forward and backward, of training a classifier."""
    return 2 * images * epochs


def fit_passes(defense: Defense, stages_before: int, images: int) -> int:
    """Return the image-passes of fitting a stage: its own, and a forward one through each stage before it.

    A defense that learns in epochs says how many in a field of that name, and one that is trained on an attack the
    attack's ``steps``; any other counts as one epoch without an attack.
    """
    own = 2 * (1 + int(getattr(defense, "steps", 0)))
    return (own + stages_before) * images * int(getattr(defense, "epochs", 1))
