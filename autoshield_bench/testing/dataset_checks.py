"""What a data set must do, one function per property; each raises ContractViolation with the numbers.

The data are looked for where the harness looks, and never downloaded: what is not there is not judged.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any, Literal
from unittest import mock

import numpy as np

from autoshield_bench.contracts import Dataset, DatasetInfo, Split
from autoshield_bench.errors import DataError
from autoshield_bench.places import data_dir
from autoshield_bench.testing.checks import check
from autoshield_bench.testing.outcome import NotJudged, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import World

SHARED = 0.01
"""Share of test images that may also be training images, byte by byte: real data hold a few duplicates."""

_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


def _present(subject: Subject) -> Dataset:
    """Return the data set once its data are found. Raises NotJudged where they would have to be downloaded."""
    dataset: Dataset = subject.make()
    try:
        with _offline():
            dataset.fetch(data_dir())
    except DataError as error:
        raise NotJudged(f"the data are not here, and checks download nothing: {error}") from error
    return dataset


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    def refuse(*_arguments: Any, **_named: Any) -> Any:
        raise DataError("no network while plugins are checked")

    with (
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
        mock.patch.object(subprocess, "Popen", refuse),  # the built-in downloads run in processes of their own
        mock.patch.dict(os.environ, {"PIP_NO_INDEX": "1"}),
    ):
        yield


@check(
    "dataset",
    "info",
    meaning="info() gives positive sizes, three of them for an image, and at least two classes, without reading data.",
    catches="image_shape as (height, width) without channels.",
    remedy="Return `DatasetInfo(image_shape=(channels, height, width), ...)` with plain Python integers: grey images "
    "of 28 x 28 pixels have `(1, 28, 28)`.",
)
def info(subject: Subject, _world: World) -> None:
    """Check the numbers of ``info``."""
    known: DatasetInfo = subject.make().info()
    sizes = (*known.image_shape, known.train_size, known.test_size)
    require(len(known.image_shape) == 3, f"image_shape is {known.image_shape}, not (channels, height, width)")
    require(all(isinstance(size, int) and size > 0 for size in sizes), f"sizes are {sizes}, not all positive integers")
    require(known.classes >= 2, f"{known.classes} classes; at least two belong")


@check(
    "dataset",
    "splits",
    meaning="Both splits have the shapes and sizes of info(), int64 labels, and uint8 or float32 images in [0, 1].",
    catches="Images as [N, H, W], or as float64.",
    remedy="Add the missing dimension with `images[:, None]`, or bring channels forward with `images.transpose(0, 3, "
    '1, 2)`; leave images uint8 or write `(images / 255).astype("float32")`, and `labels.astype("int64")`. Where it '
    "is the number of images that differs, mend `info()`.",
)
def splits(subject: Subject, _world: World) -> None:
    """Check shapes, types and ranges."""
    dataset = _present(subject)
    known = dataset.info()
    for split in _SPLITS:
        loaded = dataset.load(split, data_dir())
        size = known.train_size if split == "train" else known.test_size
        expected = (size, *known.image_shape)
        require(loaded.images.shape == expected, f"{split}: images of shape {loaded.images.shape}, not {expected}")
        require(loaded.labels.shape == (size,), f"{split}: labels of shape {loaded.labels.shape}, not {(size,)}")
        require(loaded.labels.dtype == np.int64, f"{split}: labels are {loaded.labels.dtype}, not int64")
        require(loaded.images.dtype in (np.uint8, np.float32), f"{split}: images are {loaded.images.dtype}")
        if loaded.images.dtype == np.float32:
            low, high = float(loaded.images.min()), float(loaded.images.max())
            require(0 <= low <= high <= 1, f"{split}: values from {low:g} to {high:g}, outside [0, 1]")


@check(
    "dataset",
    "labels",
    meaning="Labels run from 0 to classes - 1, and every class occurs in both splits.",
    catches="Labels that begin at 1.",
    remedy="Map the labels of the file to consecutive numbers, the same map for both splits: "
    "`numpy.searchsorted(names, labels)` with `names` the sorted labels. If the message names missing classes, mend "
    "`classes` in `info()`, or the split.",
)
def labels(subject: Subject, _world: World) -> None:
    """Check which labels occur."""
    dataset = _present(subject)
    classes = dataset.info().classes
    for split in _SPLITS:
        found = set(np.unique(dataset.load(split, data_dir()).labels).tolist())
        stray, missing = sorted(found - set(range(classes))), sorted(set(range(classes)) - found)
        require(not stray, f"{split}: labels {stray} outside 0 to {classes - 1}")
        require(not missing, f"{split}: no image of the classes {missing}")


@check(
    "dataset",
    "repeatable",
    meaning="Loading a split again gives the same bytes in the same order, whatever was done to the first copy.",
    catches="A cache that hands out its own array, or a shuffle without a seed.",
    remedy="Return `images.copy()` and `labels.copy()` from a cache, or close the arrays with "
    "`setflags(write=False)`. Sort what a directory lists, and shuffle with a fixed seed if at all.",
)
def repeatable(subject: Subject, _world: World) -> None:
    """Check two loads, the first of which is scribbled on."""
    dataset = _present(subject)
    first = dataset.load("test", data_dir())
    images, own = first.images.copy(), first.labels.copy()
    for array in (first.images, first.labels):
        if array.flags.writeable:
            array[...] = 0
    second = dataset.load("test", data_dir())
    differing = int((second.images != images).reshape(len(images), -1).any(1).sum())
    require(differing == 0, f"{differing} of {len(images)} test images differ in a second load")
    relabelled = int((second.labels != own).sum())
    require(relabelled == 0, f"{relabelled} of {len(own)} test labels differ in a second load")


@check(
    "dataset",
    "disjoint",
    meaning=f"At most {SHARED:.0%} of the test images are also training images.",
    catches="Both splits are read from one file.",
    remedy="Read each split from files of its own, or cut one array by index so that no image stands in both. Where "
    "the published splits themselves share images, put the check into `known_failures` with their number.",
)
def disjoint(subject: Subject, _world: World) -> None:
    """Check for training images in the test split."""
    dataset = _present(subject)
    seen = set(_rows(dataset.load("train", data_dir())))
    test = _rows(dataset.load("test", data_dir()))
    shared = sum(row in seen for row in test)
    require(shared <= SHARED * len(test), f"{shared} of {len(test)} test images are training images")


@check(
    "dataset",
    "fingerprint",
    meaning="fingerprint() is a non-empty text, and the same from another instance.",
    catches="A hash of the path, or of the time.",
    remedy="Hash the content with `hashlib.sha256`, over the bytes of files or arrays in a fixed order. Leave out "
    "paths, times and the built-in `hash()`, which gives other values in the next process.",
)
def fingerprint(subject: Subject, _world: World) -> None:
    """Check the fingerprint of two instances."""
    first, second = (_present(subject).fingerprint(data_dir()) for _instance in range(2))
    require(isinstance(first, str) and first, f"the fingerprint is {first!r}")
    require(first == second, f"two instances give {first[:16]!r} and {second[:16]!r}")


def _rows(split: Split) -> list[bytes]:
    return [image.tobytes() for image in split.images]
