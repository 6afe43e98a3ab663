"""Digits in a split of another size: enough test images for checks that count them, and others to compare with."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoshield_bench.builtin.datasets.digits import Digits, split_rows
from autoshield_bench.contracts import Dataset, DatasetInfo, Split

TEST_SIZE = 600
_INFO = DatasetInfo(image_shape=(1, 8, 8), classes=10, train_size=1797 - TEST_SIZE, test_size=TEST_SIZE)


@dataclass(frozen=True, kw_only=True)
class CanaryDigits(Dataset):
    """The images of ``digits`` in a stratified split of their own: 1,197 for training and 600 for testing."""

    def info(self) -> DatasetInfo:
        """Return shape and sizes."""
        return _INFO

    def fetch(self, data_dir: Path) -> Path:
        """Verify the file that scikit-learn ships, and return its directory."""
        return Digits().fetch(data_dir)

    def fingerprint(self, data_dir: Path) -> str:
        """Return the hash of the content of ``digits``."""
        return Digits().fingerprint(data_dir)

    def load(self, split: Literal["train", "test"], data_dir: Path) -> Split:
        """Return float32 images ``[N, 1, 8, 8]`` in [0, 1] and labels."""
        images, labels, rows = _everything()
        return Split(images=images[rows[split]], labels=labels[rows[split]])


@functools.cache
def _everything() -> tuple[Any, Any, dict[str, list[int]]]:
    """Return all images, all labels and the rows of each split: read once, since every suite of the trial asks."""
    import numpy as np

    parts = [Digits().load(part, Path()) for part in ("train", "test")]
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    return images, labels, split_rows(labels.tolist(), TEST_SIZE)
