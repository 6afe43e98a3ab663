"""CIFAR-10: 50,000 + 10,000 colour photographs in ten classes, 32x32 (Krizhevsky 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autoshield_bench.builtin.datasets.download import torchvision_download
from autoshield_bench.builtin.datasets.published import (
    PublishedFile,
    fetch_published,
    fingerprint_published,
    read_published,
)
from autoshield_bench.builtin.datasets.restricted import load_numbers
from autoshield_bench.builtin.datasets.splits import checked_split
from autoshield_bench.contracts import Dataset, DatasetInfo, Split
from autoshield_bench.errors import DataError

if TYPE_CHECKING:
    import numpy

_FOLDER = "cifar-10-batches-py"
_INFO = DatasetInfo(image_shape=(3, 32, 32), classes=10, train_size=50_000, test_size=10_000)


def _batch(name: str, md5: str) -> PublishedFile:
    # 30,720,000 bytes of pixels; the rest is labels and file names.
    return PublishedFile(path=f"{_FOLDER}/{name}", md5=md5, limit=32_000_000)


@dataclass(frozen=True, kw_only=True)
class Cifar10(Dataset):
    """CIFAR-10, from the data directory or torchvision's download, whose checksums these are."""

    batches: ClassVar[dict[str, tuple[PublishedFile, ...]]] = {
        "train": (
            _batch("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            _batch("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            _batch("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            _batch("data_batch_4", "634d18415352ddfa80567beed471001a"),
            _batch("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        "test": (_batch("test_batch", "40351d587109b95175f43aff81a1287e"),),
    }

    def info(self) -> DatasetInfo:
        """Return shape and sizes."""
        return _INFO

    def fetch(self, data_dir: Path) -> Path:
        """Verify the batches, fetch them where they are missing, and return their directory."""
        fetch_published("cifar10", self._files(), data_dir, (torchvision_download("CIFAR10"),))
        return data_dir / _FOLDER

    def fingerprint(self, data_dir: Path) -> str:
        """Return a hash over the checksums of the batches."""
        return fingerprint_published(self._files())

    def load(self, split: Literal["train", "test"], data_dir: Path) -> Split:
        """Return uint8 images ``[N, 3, 32, 32]`` and labels."""
        import numpy as np

        parts = [read_batch(read_published(file, data_dir), file.path) for file in self.batches[split]]
        images = np.concatenate([pixels for pixels, _ in parts])
        labels = np.concatenate([classes for _, classes in parts])
        return checked_split(images, labels, self.info(), split, "cifar10")

    def _files(self) -> tuple[PublishedFile, ...]:
        return self.batches["train"] + self.batches["test"]


def read_batch(payload: bytes, name: str) -> tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]:
    """Return uint8 images ``[N, 3, 32, 32]`` and int64 labels ``[N]`` of one pickled batch.

    Raises ``DataError``, which calls it ``name``, where the pickle holds anything else.
    """
    import numpy as np

    try:
        content = load_numbers(payload, name)
        content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels, labels = content["data"], np.array(content["labels"], dtype=np.int64)
        return pixels.astype(np.uint8, casting="safe").reshape(len(labels), 3, 32, 32), labels
    except (DataError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{name}: not a CIFAR-10 batch ({error}); delete the file and fetch it again") from error
