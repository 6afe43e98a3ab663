"""Two numeric classes of one suite, cell by cell: how many images come out otherwise, and is that still rounding?

The last bits of a float32 sum differ between instruction sets and devices. Training and iterated attacks amplify them,
so that a network trained on another class is another network, and some images near a boundary come out otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoshield_bench.errors import StoreError
from autoshield_bench.plain_files import read_plain
from autoshield_bench.results import LARGEST_SAMPLES, CellId, CellRecord
from autoshield_bench.statistics import clopper_pearson

TOLERANCE = 0.05
"""Share of a cell's images that may come out otherwise in another numeric class.

In one trial, 2.8 % of the predictions under white-box attacks changed between AVX2 and AVX-512; this is not quite twice
as much (``docs/records.md`` says what else was measured). A count exceeds it only where its lower 99 % Clopper-Pearson
bound does, so that a small cell proves nothing.
"""

Compared = Literal["predictions", "outcomes"]

Cells = Mapping[CellId, CellRecord]

Arrays = Callable[[CellRecord], Path | None]
"""Says where a record's per-image arrays lie, where they are at hand."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One cell in two classes."""

    cell: CellId
    n: int
    """Images that both evaluated."""
    changed: int
    """Those whose prediction, or where per-image arrays are missing whose being right, differs."""
    compared: Compared
    right: tuple[float, float]
    """Share of them that each class gets right."""

    @property
    def share(self) -> float:
        """Changed share."""
        return self.changed / self.n if self.n else 0.0

    @property
    def beyond(self) -> bool:
        """Whether more changed than rounding explains."""
        return clopper_pearson(self.changed, self.n, confidence=0.98)[0] > TOLERANCE


@dataclass(frozen=True, kw_only=True)
class OtherClass:
    """A numeric class whose cells stand beside those of the leaderboard."""

    numeric_class: str
    short: str
    """Name of its plan below ``plans/``."""
    cells: int
    """Cells that it has a record of."""
    changes: tuple[Change, ...]
    """Cells that both classes have."""

    @property
    def beyond(self) -> tuple[Change, ...]:
        """Cells that differ more than the tolerance allows."""
        return tuple(change for change in self.changes if change.beyond)


def changes(leading: Cells, other: Cells, samples: Arrays) -> tuple[Change, ...]:
    """Compare every cell that both classes have outcomes for."""
    return tuple(
        change
        for cell, first in leading.items()
        if cell in other and (change := _change(first, other[cell], samples)) is not None
    )


def _change(first: CellRecord, second: CellRecord, samples: Arrays) -> Change | None:
    one, two = first.outcomes, second.outcomes
    if one is None or two is None:
        return None
    both = one.evaluated & two.evaluated
    n = both.bit_count()
    changed, compared = ((one.correct ^ two.correct) & both).bit_count(), "outcomes"
    predicted = [_predictions(path) if (path := samples(own)) is not None else None for own in (first, second)]
    if predicted[0] is not None and predicted[1] is not None:
        shared = predicted[0].keys() & predicted[1].keys()
        n, compared = len(shared), "predictions"
        changed = sum(predicted[0][image] != predicted[1][image] for image in shared)
    right = [(own.correct & both).bit_count() / both.bit_count() if both else 0.0 for own in (one, two)]
    return Change(
        cell=first.cell,
        n=n,
        changed=changed,
        compared="predictions" if compared == "predictions" else "outcomes",
        right=(right[0], right[1]),
    )


def _predictions(path: Path) -> dict[int, int] | None:
    """Return the predicted class by image; None where the file does not hold it."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(read_plain(path, LARGEST_SAMPLES))
        index, prediction = arrays["index"], arrays["prediction"]
    except (StoreError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    if not (index.ndim == prediction.ndim == 1 and len(index) == len(prediction)):
        return None
    if not (index.dtype.kind == prediction.dtype.kind == "i"):
        return None
    return dict(zip(index.tolist(), prediction.tolist(), strict=True))


def worst(found: Sequence[Change]) -> Change | None:
    """Return the cell of which the largest share changed."""
    return max(found, key=lambda change: change.share, default=None)
