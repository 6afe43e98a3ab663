"""Files that are complete or absent: canonical JSON, atomic writes and the content-addressed artifact cache.

Guarantee: a reader sees the old file or the new one, never a part; a file that was published survives a crash of the
program and, as far as the file system keeps its promise on fsync, of the machine. The price is one fsync per file and
one per directory, which a cell that took seconds does not notice.

An artifact is a directory ``<stage>/<key>/`` with ``tensors.safetensors`` and, written last, ``manifest.json`` with
its SHA-256. An artifact without a manifest does not exist; one whose bytes differ is set aside and built anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoshield_bench.errors import StoreError, WriteError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

LARGEST_JSON = 32 * 1024 * 1024
"""Bytes of a JSON file that are read at most."""


def canonical(value: Any) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, NaN refused. The input of every key."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode()


def content_key(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def rounded(value: Any) -> Any:
    """Return a JSON value with every float at ten significant digits, so that text does not carry noise.

    Raises StoreError for NaN and infinity: a value that does not exist is None.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise StoreError(f"{value!r} cannot be written: a value that does not exist must be null")
        return float(f"{value:.10g}")
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def write_bytes(path: Path, data: bytes) -> None:
    """Publish ``data`` as ``path``: temporary file beside it, fsync, replace, fsync of the directory.

    Raises StoreError naming the path where the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another place"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Publish UTF-8 text as ``path``, as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Publish a value as JSON with sorted keys and two-space indent, floats rounded as ``rounded`` does."""
    text = json.dumps(rounded(value), sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file. Raises StoreError naming file and line where it cannot be trusted."""
    try:
        if not path.is_file() or path.is_symlink():
            raise StoreError(f"{path}: not a plain file")
        if path.stat().st_size > LARGEST_JSON:
            raise StoreError(f"{path}: larger than {LARGEST_JSON} bytes; it is not one of ours")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from error
    except json.JSONDecodeError as error:
        raise StoreError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); delete it and run again") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{path}: not UTF-8 at byte {error.start}; delete it and run again") from error
    except (RecursionError, ValueError) as error:
        raise StoreError(f"{path}: not valid JSON ({error}); delete it and run again") from error


SEAL = "sha256"
"""Field of a sealed JSON object: the SHA-256 of the canonical JSON of all the others."""


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Publish a JSON object as ``write_json`` does, with the checksum of its own body in the field ``sha256``."""
    body = rounded(value)
    write_json(path, {**body, SEAL: content_key(body)})


def read_sealed(path: Path) -> Any:
    """Return the value of a JSON file without its ``sha256``. One from before there were checksums has none to check.

    Raises StoreError naming file and line where the file cannot be trusted or was altered.
    """
    value = read_json(path)
    if not isinstance(value, dict) or SEAL not in value:
        return value
    seal = value.pop(SEAL)
    if seal != content_key(value):
        raise StoreError(
            f"{path}:{_line_of(path, SEAL)}: {SEAL} is not that of the other fields: the file was altered or damaged; "
            "delete it and run again"
        )
    return value


def _line_of(path: Path, field: str) -> int:
    """Return the line of a field of the outermost object, 1 where the file is laid out otherwise."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return 1
    return next((number for number, line in enumerate(lines, 1) if line.startswith(f'  "{field}":')), 1)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ArtifactStore:
    """The artifact cache: tensors under the key of everything that could change them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, stage: str, key: str) -> Path:
        """Return where the artifact lies, whether it exists or not."""
        return self.root / stage / key[:2] / key

    def has(self, stage: str, key: str) -> bool:
        """Return whether the artifact was published. Its bytes are checked when it is read."""
        return (self.directory(stage, key) / "manifest.json").is_file()

    def save(self, stage: str, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Publish tensors, with facts about them (passes spent, sizes) in the manifest."""
        from safetensors.torch import save

        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        owners: dict[int, str] = {}
        for name, tensor in plain.items():
            if owners.setdefault(tensor.untyped_storage().data_ptr(), name) != name:
                plain[name] = tensor.clone()  # safetensors refuses memory that two names share, as tied weights do
        data = save(plain)
        directory = self.directory(stage, key)
        write_bytes(directory / "tensors.safetensors", data)
        manifest = {
            "schema": "aubench.artifact/1",
            "stage": stage,
            "key": key,
            "sha256": hashlib.sha256(data).hexdigest(),
            "facts": dict(facts),
        }
        write_json(directory / "manifest.json", manifest)

    def load(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and facts, or None where there is no sound artifact (a damaged one is set aside)."""
        from safetensors.torch import load

        if not self.has(stage, key):
            return None
        directory = self.directory(stage, key)
        try:
            manifest = read_json(directory / "manifest.json")
            data = (directory / "tensors.safetensors").read_bytes()
            if manifest["key"] != key or hashlib.sha256(data).hexdigest() != manifest["sha256"]:
                raise StoreError("its bytes do not have the recorded SHA-256")
            return load(data), manifest["facts"]
        except (OSError, StoreError, KeyError, TypeError, ValueError) as error:
            self._set_aside(directory, str(error))
            return None

    def _set_aside(self, directory: Path, why: str) -> None:
        aside = self.root / "set-aside" / f"{directory.name}-{os.getpid()}-{time.time_ns()}"
        log.warning("cache: artifact %s is damaged (%s); set aside and built anew", directory.name[:12], why)
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            directory.rename(aside)
        except OSError as error:
            raise StoreError(f"{directory}: damaged, and cannot be moved away ({error}); delete it") from error
