"""Fashion-MNIST: 60,000 + 10,000 articles of clothing, 28x28 (Xiao et al. 2017, arXiv:1708.07747)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autoshield_bench.builtin.datasets.download import torchvision_download
from autoshield_bench.builtin.datasets.idx_dataset import IdxDataset, idx_files
from autoshield_bench.builtin.datasets.published import PublishedFile, Source


@dataclass(frozen=True, kw_only=True)
class FashionMnist(IdxDataset):
    """Fashion-MNIST, from the data directory or torchvision's download.

    The checksums are those of the content of the ``.gz`` files whose own checksums torchvision publishes.
    """

    name: ClassVar[str] = "fashion-mnist"
    folder: ClassVar[str] = "FashionMNIST/raw"
    files: ClassVar[dict[str, PublishedFile]] = idx_files(
        folder,
        train_images="f4a8712d7a061bf5bd6d2ca38dc4d50a",
        train_labels="9018921c3c673c538a1fc5bad174d6f9",
        test_images="8181f5470baa50b63fa0f6fddb340f0a",
        test_labels="15d484375f8d13e6eb1aabb0c3f46965",
    )

    def sources(self) -> tuple[Source, ...]:
        """Return torchvision's download."""
        return (torchvision_download("FashionMNIST"),)
