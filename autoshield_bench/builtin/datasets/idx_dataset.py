"""What MNIST and Fashion-MNIST share: four IDX files of 28x28 images in ten classes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from autoshield_bench.builtin.datasets.idx import decode_idx
from autoshield_bench.builtin.datasets.published import (
    PublishedFile,
    Source,
    fetch_published,
    fingerprint_published,
    read_published,
)
from autoshield_bench.builtin.datasets.splits import checked_split
from autoshield_bench.contracts import Dataset, DatasetInfo, Split

_INFO = DatasetInfo(image_shape=(1, 28, 28), classes=10, train_size=60_000, test_size=10_000)


def idx_files(
    folder: str, *, train_images: str, train_labels: str, test_images: str, test_labels: str
) -> dict[str, PublishedFile]:
    """Return the four files below ``folder`` by role, given the MD5 of each, uncompressed."""
    roles = {
        "train-images": ("train-images-idx3-ubyte", train_images, 16 + 60_000 * 784),
        "train-labels": ("train-labels-idx1-ubyte", train_labels, 8 + 60_000),
        "test-images": ("t10k-images-idx3-ubyte", test_images, 16 + 10_000 * 784),
        "test-labels": ("t10k-labels-idx1-ubyte", test_labels, 8 + 10_000),
    }
    return {
        role: PublishedFile(path=f"{folder}/{name}", md5=md5, limit=limit) for role, (name, md5, limit) in roles.items()
    }


@dataclass(frozen=True, kw_only=True)
class IdxDataset(Dataset):
    """Base class of data sets of four IDX files."""

    name: ClassVar[str]
    folder: ClassVar[str]
    """Directory of the files, below the data directory."""
    files: ClassVar[dict[str, PublishedFile]]

    @abstractmethod
    def sources(self) -> tuple[Source, ...]:
        """Return where the files can be had from, in this order."""

    def info(self) -> DatasetInfo:
        """Return shape and sizes."""
        return _INFO

    def fetch(self, data_dir: Path) -> Path:
        """Verify the files, fetch those that are missing, and return their directory."""
        fetch_published(self.name, tuple(self.files.values()), data_dir, self.sources())
        return data_dir / self.folder

    def fingerprint(self, data_dir: Path) -> str:
        """Return a hash over the checksums of the files."""
        return fingerprint_published(tuple(self.files.values()))

    def load(self, split: Literal["train", "test"], data_dir: Path) -> Split:
        """Return uint8 images ``[N, 1, 28, 28]`` and labels."""
        images, labels = self.files[f"{split}-images"], self.files[f"{split}-labels"]
        pixels = decode_idx(read_published(images, data_dir), dimensions=3, name=images.path)
        classes = decode_idx(read_published(labels, data_dir), dimensions=1, name=labels.path)
        return checked_split(pixels[:, None], classes, self.info(), split, self.name)
