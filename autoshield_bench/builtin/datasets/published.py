"""Data sets that are published as files with known checksums, kept in torchvision's layout.

A file is read plain or as ``.gz``, whichever lies there, and its MD5 is compared every time: what is used is what was
verified. A file that is there but wrong is refused and never replaced, since only its owner knows what it is. Missing
ones are fetched into a directory of their own first, so that an interrupted download leaves nothing behind.

MD5 is what the publishers give; it guards against damage, not against someone who forges both files and sums.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoshield_bench.builtin.datasets.files import read_bounded, write_atomically
from autoshield_bench.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One file of a published data set."""

    path: str
    """Below the data directory, uncompressed, such as ``MNIST/raw/train-images-idx3-ubyte``."""

    md5: str
    """MD5 of the uncompressed content."""

    limit: int
    """Most bytes that the uncompressed content may have."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A place from which a data set can be had."""

    name: str
    """How error messages call it."""

    fill: Callable[[Path], None]
    """Put the files into an empty directory, in torchvision's layout. Raises ``DataError`` with the reason."""


def locate(file: PublishedFile, data_dir: Path) -> Path | None:
    """Return where the file lies, plain or as ``.gz``; None if it does not."""
    plain = data_dir / file.path
    packed = plain.with_name(plain.name + ".gz")
    return next((path for path in (plain, packed) if path.is_file()), None)


def read_published(file: PublishedFile, data_dir: Path) -> bytes:
    """Return the verified content. Raises ``DataError`` where the file is missing, damaged or another one."""
    path = locate(file, data_dir)
    if path is None:
        raise DataError(f"{data_dir / file.path}: not found, plain or as .gz; run aubench data fetch")
    try:
        return _verified(file, path)
    except DataError as error:
        raise DataError(
            f"{error}; delete the file and fetch it again, or point AUBENCH_DATA or --data-dir at another directory"
        ) from error


def fetch_published(name: str, files: Sequence[PublishedFile], data_dir: Path, sources: Sequence[Source]) -> None:
    """Verify the files below ``data_dir``, and get the missing ones from the first source that has them.

    Raises ``DataError`` for a file that is wrong, before any network is touched, and where no source delivers.
    """
    missing = []
    for file in files:
        if locate(file, data_dir) is None:
            missing.append(file)
        else:
            read_published(file, data_dir)
    if not missing:
        return
    tried = []
    for source in sources:
        print(f"{name}: fetching from {source.name}", file=sys.stderr, flush=True)
        try:
            _fetch_from(source, missing, data_dir)
        except DataError as error:
            tried.append(f"{source.name} ({error})")
        except OSError as error:
            raise DataError(
                f"{data_dir}: {name} cannot be written there ({error.strerror or error}); "
                "set AUBENCH_DATA or --data-dir to a directory that can be written or holds the data"
            ) from error
        else:
            return
    raise DataError(
        f"{name}: {missing[0].path}[.gz] is not in {data_dir}, and it could not be had from "
        f"{', nor from '.join(tried)}; set AUBENCH_DATA or --data-dir to a directory in torchvision's layout"
    )


def fingerprint_published(files: Sequence[PublishedFile]) -> str:
    """Return a SHA-256 over the checksums, which stand for the content, since nothing else is ever read."""
    lines = sorted(f"{file.md5} {file.path}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _fetch_from(source: Source, missing: Sequence[PublishedFile], data_dir: Path) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".fetch-", ignore_cleanup_errors=True) as work:
        source.fill(Path(work))
        for file in missing:
            path = locate(file, Path(work))
            if path is None:
                raise DataError(f"it brought no {file.path}")
            try:
                payload = _verified(file, path)
            except DataError as error:
                raise DataError(str(error).replace(f"{work}{os.sep}", "")) from error
            write_atomically(data_dir / file.path, payload)


def _verified(file: PublishedFile, path: Path) -> bytes:
    payload = read_bounded(path, file.limit)
    found = hashlib.md5(payload, usedforsecurity=False).hexdigest()
    if found != file.md5:
        raise DataError(f"{path}: content has MD5 {found}, expected {file.md5}")
    return payload
