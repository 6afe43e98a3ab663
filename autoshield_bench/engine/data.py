"""The data of a run: fitting, validation and test part, and the fixed order from which every subset is drawn."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoshield_bench.contracts import Dataset, DatasetInfo, Split
from autoshield_bench.engine.cost import fitting_size
from autoshield_bench.errors import DataError
from autoshield_bench.seeding import derive_seed


def stratified_order(
    labels: np.ndarray[tuple[int], np.dtype[np.int64]], purpose: str
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return a fixed random order of images in which every prefix holds each class in proportion, to one image.

    So subsets are nested: the first 500 belong to the first 1,000. A class's images are shuffled; which class comes
    next is decided as in Tijdeman 1980, "The chairman assignment problem" (Discrete Mathematics 32): of the classes
    that are due, the one whose deadline is nearest.
    """
    classes, counts = np.unique(labels, return_counts=True)
    members = []
    for label in classes:
        shuffle = np.random.Generator(np.random.Philox(derive_seed("stratified", purpose, int(label))))
        members.append(shuffle.permutation(np.flatnonzero(labels == label)))
    share, slack = counts / len(labels), 1 / max(2 * len(classes) - 2, 1)
    taken = np.zeros(len(classes), dtype=np.int64)
    order = np.empty(len(labels), dtype=np.int64)
    for position in range(len(labels)):
        owed = share * (position + 1) - taken
        deadline = np.where((owed >= slack - 1e-9) & (taken < counts), (1 - slack - owed) / share, np.inf)
        chosen = int(deadline.argmin())
        order[position] = members[chosen][taken[chosen]]
        taken[chosen] += 1
    return order


class Data:
    """One data set in memory, read on first use. Images stay as they are stored; ``images`` makes them float32."""

    def __init__(self, dataset: Dataset, data_dir: Path) -> None:
        self._dataset = dataset
        self._data_dir = data_dir
        self.info: DatasetInfo = dataset.info()

    @functools.cached_property
    def test_labels(self) -> Tensor:
        """Labels of all test images."""
        return torch.from_numpy(self._test.labels)

    def test_images(self, indices: Tensor) -> Tensor:
        """Return test images as float32 in [0, 1]."""
        return _as_float(torch.from_numpy(self._test.images)[indices])

    @functools.cached_property
    def test_order(self) -> Tensor:
        """The order from which every subset of the test images is taken."""
        return torch.from_numpy(stratified_order(self._test.labels, "test"))

    def test_subset(self, images: int) -> Tensor:
        """Return the indices, ascending, of the fixed stratified subset of ``images`` test images."""
        return self.test_order[:images].sort().values

    @functools.cached_property
    def parts(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(images, labels) of the fitting part and of the validation part."""
        train = self._checked("train", self.info.train_size)
        order = stratified_order(train.labels, "validation")
        cut = len(order) - fitting_size(self.info)
        validation, fitting = np.sort(order[:cut]), np.sort(order[cut:])
        images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
        return (
            (_as_float(images[fitting]), labels[fitting]),
            (_as_float(images[validation]), labels[validation]),
        )

    def release_training(self) -> None:
        """Drop the training part from memory; it is read again if something else has to be fitted."""
        self.__dict__.pop("parts", None)

    @functools.cached_property
    def _test(self) -> Split:
        return self._checked("test", self.info.test_size)

    def _checked(self, split: str, size: int) -> Split:
        loaded = self._dataset.load("train" if split == "train" else "test", self._data_dir)
        shape, labels = (size, *self.info.image_shape), loaded.labels
        name = type(self._dataset).__name__
        if loaded.images.shape != shape or labels.shape != (size,):
            raise DataError(f"{name}: {split} has shape {loaded.images.shape}, its info says {shape}")
        if loaded.images.dtype not in (np.uint8, np.float32):
            raise DataError(f"{name}: {split} images are {loaded.images.dtype}, not uint8 or float32")
        if labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= self.info.classes:
            raise DataError(f"{name}: {split} labels are not int64 from 0 to {self.info.classes - 1}")
        if loaded.images.dtype == np.float32 and not (0.0 <= loaded.images.min() <= loaded.images.max() <= 1.0):
            raise DataError(f"{name}: {split} images leave [0, 1]")
        return loaded


def _as_float(images: Tensor) -> Tensor:
    return images.float().div_(255.0) if images.dtype == torch.uint8 else images
