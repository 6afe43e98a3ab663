"""Digits: 1,797 handwritten digits of 8x8, the test part of UCI's optdigits, shipped inside scikit-learn's wheel.

It needs no network, and serves quick runs and tests. scikit-learn itself is neither imported nor run.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoshield_bench.builtin.datasets.files import read_bounded
from autoshield_bench.builtin.datasets.splits import checked_split
from autoshield_bench.contracts import Dataset, DatasetInfo, Split
from autoshield_bench.errors import DataError
from autoshield_bench.seeding import derive_seed

if TYPE_CHECKING:
    import numpy

_INFO = DatasetInfo(image_shape=(1, 8, 8), classes=10, train_size=1437, test_size=360)
_LIMIT = 1 << 20
_BRIGHTEST = 16


@dataclass(frozen=True, kw_only=True)
class Digits(Dataset):
    """Digits, with a fixed stratified split of our own, since the publishers give none.

    Each class gives its share of the 360 test images (by largest remainder): the rows that come first by
    ``derive_seed("digits", "test", row)``. Both splits are then put in the order of ``derive_seed("digits", "order",
    row)``.
    """

    def info(self) -> DatasetInfo:
        """Return shape and sizes."""
        return _INFO

    def fetch(self, data_dir: Path) -> Path:
        """Verify the file that scikit-learn ships, and return its directory."""
        _read_table()
        return _file().parent

    def fingerprint(self, data_dir: Path) -> str:
        """Return a hash of the file's uncompressed content."""
        return hashlib.sha256(_read_file()).hexdigest()

    def load(self, split: Literal["train", "test"], data_dir: Path) -> Split:
        """Return float32 images ``[N, 1, 8, 8]`` in [0, 1], multiples of 1/16, and labels."""
        import numpy as np

        table = _read_table()
        rows = split_rows(table[:, -1].tolist(), _INFO.test_size)[split]
        images = (table[rows, :-1].astype(np.float32) / _BRIGHTEST).reshape(-1, *_INFO.image_shape)
        return checked_split(images, table[rows, -1], _INFO, split, "digits")


def split_rows(labels: list[int], test_size: int) -> dict[str, list[int]]:
    """Return the rows of ``train`` and ``test``, in their shuffled order; the same on every machine and version."""
    members: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for row in sorted(range(len(labels)), key=lambda row: derive_seed("digits", "test", row)):
        members[labels[row]].append(row)
    quota = {label: len(rows) * test_size // len(labels) for label, rows in members.items()}
    remainder = {label: len(rows) * test_size % len(labels) for label, rows in members.items()}
    short = test_size - sum(quota.values())
    for label in sorted(members, key=lambda label: (-remainder[label], label))[:short]:
        quota[label] += 1
    # An order of its own: what is left of the one above begins with the classes that gave their share early.
    order = sorted(range(len(labels)), key=lambda row: derive_seed("digits", "order", row))
    test = {row for label, rows in members.items() for row in rows[: quota[label]]}
    return {"train": [row for row in order if row not in test], "test": [row for row in order if row in test]}


def _file() -> Path:
    found = importlib.util.find_spec("sklearn")
    for location in (found.submodule_search_locations or ()) if found else ():
        path = Path(location) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise DataError("digits: datasets/data/digits.csv.gz of scikit-learn is not installed; pip install scikit-learn")


def _read_file() -> bytes:
    try:
        return read_bounded(_file(), _LIMIT)
    except DataError as error:
        raise DataError(f"{error}; reinstall scikit-learn") from error


def _read_table() -> numpy.ndarray[Any, Any]:
    """Return ``[1797, 65]``: 64 values from 0 to 16, then the label."""
    import numpy as np

    path = _file()
    try:
        lines = _read_file().decode("ascii").split()
        table = np.array([line.split(",") for line in lines], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{path}: not a table of numbers ({error}); reinstall scikit-learn") from error
    rows = _INFO.train_size + _INFO.test_size
    if table.shape != (rows, 65) or table[:, :-1].min() < 0 or table[:, :-1].max() > _BRIGHTEST:
        raise DataError(
            f"{path}: table of {table.shape} with values from {table.min()} to {table.max()}, expected {(rows, 65)} "
            f"and 0 to {_BRIGHTEST}; reinstall scikit-learn"
        )
    return table
