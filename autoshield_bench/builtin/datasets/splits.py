"""What the arrays of a split must look like before the host sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from autoshield_bench.contracts import DatasetInfo, Split
from autoshield_bench.errors import DataError

if TYPE_CHECKING:
    import numpy

SplitName = Literal["train", "test"]


def checked_split(
    images: numpy.ndarray[Any, Any], labels: numpy.ndarray[Any, Any], info: DatasetInfo, split: SplitName, name: str
) -> Split:
    """Return images and labels as a split, labels as int64.

    Raises ``DataError``, which calls the data ``name``, where shape, count or labels differ from what ``info`` says.
    """
    import numpy as np

    size = info.train_size if split == "train" else info.test_size
    if images.shape != (size, *info.image_shape) or labels.shape != (size,):
        raise DataError(
            f"{name}: {split} images are {images.shape} and labels {labels.shape}, expected "
            f"{(size, *info.image_shape)} and {(size,)}; delete the files and fetch them again"
        )
    labels = labels.astype(np.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= info.classes:
        raise DataError(
            f"{name}: {split} labels reach from {low} to {high}, expected 0 to {info.classes - 1}; "
            "delete the files and fetch them again"
        )
    return Split(images=images, labels=labels)
