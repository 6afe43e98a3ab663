"""Files that are complete or absent: canonical JSON, atomic writes and the content-addressed artifact cache.

Guarantee: a reader sees the old file or the new one, never a part; a file that was published survives a crash of the
program and, as far as the file system keeps its promise on fsync, of the machine. The price is one fsync per file and
one per directory, which a cell that took seconds does not notice. What a killed writer leaves is a hidden temporary
file, which ``sweep`` removes; one whose writer lives is locked by it, and stays.

An artifact is a directory ``<stage>/<key>/`` with ``tensors.safetensors`` and, written last, ``manifest.json`` with
its SHA-256. An artifact without a manifest does not exist; one whose bytes differ is set aside and built anew.
Processes that share a cache publish an artifact one after the other; each then finds it whole, whichever came last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoshield_bench import effects
from autoshield_bench.errors import StoreError, WriteError
from autoshield_bench.locks import HeldError, lock, remove_abandoned, try_lock
from autoshield_bench.plain_files import read_plain
from autoshield_bench.strict_json import parse_json

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

LOCK = ".lock"
"""Name of the lock file in a results directory."""

TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"
"""Files of an artifact; without the second there is none."""

LOCKS, SET_ASIDE = "locks", "set-aside"
"""Directories of a cache that hold no artifacts to use."""

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
"""Names of files that are being written."""

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

    Raises WriteError naming the path where the disk refuses.
    """
    with writing(path):
        make_directory(path.parent)
        temporary, descriptor = _open_temporary(path)
        # A second descriptor keeps the file locked after the first is closed, until it has its name: see ``sweep``.
        keeper = os.dup(descriptor)
        try:
            try:
                effects.write(descriptor, data)
                effects.permit(descriptor)
                effects.sync(descriptor)
            finally:
                effects.close(descriptor)
            effects.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                effects.remove(temporary)
            raise
        finally:
            os.close(keeper)
        effects.sync_directory(path.parent)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses while ``path`` is written into a WriteError that names it."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another place"
        ) from error


def make_directory(path: Path) -> None:
    """Create a directory and those above it, each of them on the disk before what goes into it."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        effects.make_directory(path)
    effects.sync_directory(path.parent)


def _open_temporary(path: Path) -> tuple[Path, int]:
    """Return a new file beside ``path``, locked so that nobody takes it for that of a dead process."""
    while True:
        temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(4)}.tmp"
        descriptor = effects.open_new(temporary)
        if try_lock(descriptor) != "busy" and os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def sweep(directory: Path) -> int:
    """Remove the temporary files that dead processes left below a directory, and return how many there were.

    Symbolic links are not followed. What cannot be removed stays, since it does no harm.
    """
    removed = 0
    if directory.is_symlink():
        return 0
    for folder, _folders, files in os.walk(directory):
        for name in files:
            if _TEMPORARY.fullmatch(name):
                with contextlib.suppress(OSError):
                    removed += remove_abandoned(Path(folder) / name)
    return removed


@contextlib.contextmanager
def results_lock(directory: Path) -> Iterator[None]:
    """Hold a results directory, which one run at a time may write to, and sweep what a killed one left there.

    Raises HeldError where another run holds it, saying which; WriteError where the directory cannot be written.
    """
    own = directory / LOCK
    with writing(own):
        make_directory(directory)
    with contextlib.ExitStack() as stack:
        try:
            with writing(own):
                stack.enter_context(lock(own))
        except HeldError as error:
            raise HeldError(f"{directory}: {error}; wait until it ends, or choose another --results-dir") from error
        sweep(directory)
        yield


def write_text(path: Path, text: str) -> None:
    """Publish UTF-8 text as ``path``, as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Publish a value as JSON with sorted keys and two-space indent, floats rounded as ``rounded`` does."""
    text = json.dumps(rounded(value), sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file. Raises StoreError naming file and line where it cannot be trusted."""
    content = read_plain(path, LARGEST_JSON)
    try:
        return parse_json(content.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise StoreError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); delete it and run again") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{path}: not UTF-8 at byte {error.start}; delete it and run again") from error
    except ValueError as error:
        raise StoreError(f"{path}: not valid JSON ({error}); delete it and run again") from error


SEAL = "sha256"
"""Field of a sealed JSON object: the SHA-256 of the canonical JSON of all the others."""


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Publish a JSON object as ``write_json`` does, with the checksum of its own body in the field ``sha256``."""
    body = rounded(value)
    write_json(path, {**body, SEAL: content_key(body)})


def open_sealed(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value read from a file without its ``sha256``.

    Raises StoreError naming file and line where the checksum is missing or not that of the value.
    """
    if SEAL not in value:
        raise StoreError(f"{path}: {SEAL} is missing: the file was altered or damaged; delete it and run again")
    body = {name: entry for name, entry in value.items() if name != SEAL}
    if value[SEAL] != content_key(body):
        raise StoreError(
            f"{path}:{_line_of(path, SEAL)}: {SEAL} is not that of the other fields: the file was altered or damaged; "
            "delete it and run again"
        )
    return body


def _line_of(path: Path, field: str) -> int:
    """Return the line of a field of the outermost object, 1 where the file is laid out otherwise."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return 1
    return next((number for number, line in enumerate(lines, 1) if line.startswith(f'  "{field}":')), 1)


class DamagedError(StoreError):
    """An artifact is not what its manifest says."""


class ArtifactStore:
    """The artifact cache: tensors under the key of everything that could change them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, stage: str, key: str) -> Path:
        """Return where the artifact lies, whether it exists or not."""
        return self.root / stage / key[:2] / key

    def has(self, stage: str, key: str) -> bool:
        """Return whether the artifact was published. Its bytes are checked when it is read."""
        return (self.directory(stage, key) / MANIFEST).is_file()

    def save(self, stage: str, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Publish tensors, with facts about them (passes spent, sizes) in the manifest."""
        from safetensors.torch import save

        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        owners: dict[int, str] = {}
        for name, tensor in plain.items():
            if owners.setdefault(tensor.untyped_storage().data_ptr(), name) != name:
                plain[name] = tensor.clone()  # safetensors refuses memory that two names share, as tied weights do
        self.publish(stage, key, save(plain), facts)

    def load(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and facts, or None where there is no sound artifact (a damaged one is set aside)."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        found = self.fetch(stage, key)
        if found is None:
            return None
        try:
            return load(found[0]), found[1]
        except (SafetensorError, ValueError, KeyError) as error:
            with self.locked(key):
                self._set_aside(self.directory(stage, key), f"it holds no tensors: {error}")
            return None

    def publish(self, stage: str, key: str, data: bytes, facts: Mapping[str, Any]) -> None:
        """Publish the bytes of an artifact, its manifest last."""
        directory = self.directory(stage, key)
        manifest = {
            "schema": "aubench.artifact/1",
            "stage": stage,
            "key": key,
            "sha256": hashlib.sha256(data).hexdigest(),
            "facts": dict(facts),
        }
        with self.locked(key):
            if directory.is_symlink():
                raise WriteError(f"{directory}: a symbolic link, which has no place in a cache; remove it")
            sweep(directory)
            write_bytes(directory / TENSORS, data)
            write_json(directory / MANIFEST, manifest)

    def fetch(self, stage: str, key: str) -> tuple[bytes, dict[str, Any]] | None:
        """Return the bytes and facts of a sound artifact, or None; a damaged one is set aside with a warning."""
        try:
            found = self.check(stage, key)
        except DamagedError:
            return None
        if found is not None:
            with contextlib.suppress(OSError):  # a cache that cannot be written can be read
                effects.touch(self.directory(stage, key) / MANIFEST)  # the time of its last use
        return found

    def check(self, stage: str, key: str) -> tuple[bytes, dict[str, Any]] | None:
        """Return the bytes and facts of a sound artifact, or None where there is none.

        Raises DamagedError where there was one that is not sound, after it was set aside with a warning.
        """
        if not self.has(stage, key):
            return None
        with contextlib.suppress(DamagedError):
            return self._read(stage, key)
        with self.locked(key):  # another process may have been publishing it just now
            if not self.has(stage, key):
                return None
            try:
                return self._read(stage, key)
            except DamagedError as error:
                self._set_aside(self.directory(stage, key), str(error))
                raise

    def _read(self, stage: str, key: str) -> tuple[bytes, dict[str, Any]]:
        directory = self.directory(stage, key)
        try:
            manifest = read_json(directory / MANIFEST)
            if not (directory / TENSORS).is_file():  # a pipe would be waited for
                raise DamagedError(f"{TENSORS} is missing or no file")
            data = (directory / TENSORS).read_bytes()
            if manifest["key"] != key or hashlib.sha256(data).hexdigest() != manifest["sha256"]:
                raise DamagedError("its bytes do not have the recorded SHA-256")
            return data, dict(manifest["facts"])
        except DamagedError:
            raise
        except (OSError, StoreError, KeyError, TypeError, ValueError) as error:
            raise DamagedError(str(error)) from error

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Keep every other process from publishing, setting aside or removing an artifact meanwhile."""
        path = self.root / LOCKS / key
        with contextlib.ExitStack() as stack:
            with writing(path):
                make_directory(path.parent)
                stack.enter_context(lock(path, wait=True))
            yield

    def _set_aside(self, directory: Path, why: str) -> None:
        aside = self.root / SET_ASIDE / f"{directory.name}-{os.getpid()}-{time.time_ns()}"
        log.warning("cache: artifact %s is damaged (%s); set aside and built anew", directory.name[:12], why)
        try:
            make_directory(aside.parent)
            effects.rename(directory, aside)
        except OSError as error:
            raise WriteError(f"{directory}: damaged, and cannot be moved away ({error}); delete it") from error
