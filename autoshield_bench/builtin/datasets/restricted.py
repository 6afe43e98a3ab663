"""Reading the numbers out of a pickle without running it.

Only the names of numpy's array reconstruction are admitted, and even these lead to stand-ins: numpy's own ``dtype``
and ``ndarray`` would take any internal state from the file, pointers included. The stand-ins take a plain numeric type,
a shape and as many bytes as the two call for.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import TYPE_CHECKING, Any

from autoshield_bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy

_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")
_NDARRAY = object()


def load_numbers(payload: bytes, name: str) -> Any:
    """Return a pickle of tuples, lists, dicts, strings, numbers and numeric numpy arrays; Python 2 strings as bytes.

    Raises ``DataError``, which calls it ``name``, where the pickle is damaged or asks for anything else.
    """
    try:
        return _unwrap(_NumbersOnly(io.BytesIO(payload), encoding="bytes").load())
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: refused ({reason})") from error


class _NumbersOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        # Bound methods, because a pickle can set attributes on what it is given here, and they have none to set.
        admitted: dict[tuple[str, str], Callable[..., Any] | object] = {
            ("numpy.core.multiarray", "_reconstruct"): self.reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): self.reconstruct,
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): self.dtype,
            ("_codecs", "encode"): self.encode,
        }
        try:
            return admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which holds no numbers") from None

    def reconstruct(self, kind: object, _shape: object, _code: object) -> _Array:
        if kind is not _NDARRAY:
            raise pickle.UnpicklingError("it reconstructs something other than an array")
        return _Array()

    def dtype(self, code: object, *_flags: object) -> _Type:
        return _Type(_text(code))

    def encode(self, text: str, encoding: object) -> bytes:
        if _text(encoding) != "latin1":  # how Python 3 writes bytes for Python 2
            raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
        return text.encode("latin1")


class _Type:
    """Stands in for a numpy dtype: a number of fixed size."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        if code not in _CODES:
            raise pickle.UnpicklingError(f"it asks for the array type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = _text(state[1])
        if order not in {"<", ">", "|", "="} or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it asks for an array type with fields")
        self.order = order


class _Array:
    """Stands in for a numpy array until its bytes are known."""

    __slots__ = ("array",)
    array: numpy.ndarray[Any, Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        import numpy as np

        _version, shape, kind, fortran, raw = state
        if not isinstance(kind, _Type):
            raise pickle.UnpicklingError("it holds an array without a type")
        dtype = np.dtype(kind.order + kind.code)
        if not all(isinstance(length, int) and length >= 0 for length in shape):
            raise pickle.UnpicklingError(f"it holds an array of shape {shape!r}")
        content = raw.encode("latin1") if isinstance(raw, str) else raw
        if math.prod(shape) * dtype.itemsize != len(content):
            raise pickle.UnpicklingError(f"it holds an array of shape {shape!r} in {len(content)} bytes")
        self.array = np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _unwrap(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, (tuple, list)):
        return type(value)(_unwrap(part) for part in value)
    if isinstance(value, dict):
        return {_unwrap(key): _unwrap(part) for key, part in value.items()}
    return value


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, str):
        return value
    raise pickle.UnpicklingError(f"it holds {type(value).__name__} where a name belongs")
