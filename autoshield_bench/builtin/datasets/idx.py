"""The IDX format of MNIST (yann.lecun.com/exdb/mnist): a magic number, the dimensions, then the bytes in C order."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

from autoshield_bench.errors import DataError

if TYPE_CHECKING:
    import numpy

_UNSIGNED_BYTE = 0x08


def decode_idx(payload: bytes, *, dimensions: int, name: str) -> numpy.ndarray[Any, Any]:
    """Return the uint8 array with that many dimensions, writable.

    Raises ``DataError``, which calls the file ``name``, where the header is of another kind or does not match the
    number of bytes that follow.
    """
    import numpy as np

    header = 4 * (1 + dimensions)
    if len(payload) < header:
        raise DataError(f"{name}: {len(payload)} bytes are too few for an IDX header; delete it and fetch it again")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", payload[:header])
    expected = _UNSIGNED_BYTE << 8 | dimensions
    if magic != expected:
        raise DataError(f"{name}: IDX magic is {magic:#010x}, expected {expected:#010x}; delete it and fetch it again")
    if math.prod(shape) != len(payload) - header:
        raise DataError(
            f"{name}: IDX header promises {'x'.join(map(str, shape))} bytes, {len(payload) - header} follow; "
            "delete it and fetch it again"
        )
    return np.frombuffer(payload, dtype=np.uint8, offset=header).reshape(shape).copy()


def encode_idx(array: numpy.ndarray[Any, Any]) -> bytes:
    """Return a uint8 array as an IDX file. Raises ``ValueError`` for another type."""
    if array.dtype.str != "|u1":
        raise ValueError(f"IDX files here hold uint8, not {array.dtype}")
    header = struct.pack(f">{1 + array.ndim}I", _UNSIGNED_BYTE << 8 | array.ndim, *array.shape)
    return header + array.tobytes()
