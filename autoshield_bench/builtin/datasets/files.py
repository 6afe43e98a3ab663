"""Reading a file no further than it may be trusted, and writing one whole or not at all.

The errors say what is wrong with which file; only the caller knows the remedy, and adds it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import secrets
import zlib
from pathlib import Path
from typing import IO

from autoshield_bench.errors import DataError


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a file, decompressed where its name ends in ``.gz``: at most ``limit`` bytes.

    Raises ``DataError`` where there are more bytes, or where the file is damaged or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if path.suffix == ".gz":
                return _decompress(stream, limit, str(path))
            return _read(stream, limit, str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def decompress_bounded(payload: bytes, limit: int, name: str) -> bytes:
    """Return a gzip payload decompressed to at most ``limit`` bytes. Raises ``DataError``, which calls it ``name``."""
    return _decompress(io.BytesIO(payload), limit, name)


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file so that a reader sees all of it or none, even after a power failure. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's: its mode 0600 would hide the data from everyone else who shares the directory.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _decompress(stream: IO[bytes], limit: int, name: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
            return _read(unpacked, limit, name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name}: truncated or not gzip ({error})") from error


def _read(stream: IO[bytes] | gzip.GzipFile, limit: int, name: str) -> bytes:
    # One byte more than is allowed: it tells a file that is too long, and makes gzip check its closing checksum.
    payload = stream.read(limit + 1)
    if len(payload) > limit:
        raise DataError(f"{name}: holds more than the {limit:,} bytes expected")
    return payload
