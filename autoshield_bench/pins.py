"""plugins.lock: the plugins that somebody looked at, by distribution, version and a hash of their files.

Everything here works on the metadata and files of distributions: nothing of a plugin is imported before it is known to
be the one that was pinned. A hash says that a file is the same as before, not that it is harmless, and it covers a
plugin's own distribution, not the libraries that it imports.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from autoshield_bench import source
from autoshield_bench.errors import PinError, StoreError
from autoshield_bench.outcomes import expect
from autoshield_bench.plain_files import read_plain
from autoshield_bench.providers import chosen, named, normal_name
from autoshield_bench.store import write_json
from autoshield_bench.strict_json import parse_json

SCHEMA = "aubench.plugins-lock/1"

_LARGEST = 1 << 20
_BYTECODE = {".pyc", ".pyo"}


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What one distribution must be."""

    distribution: str
    version: str
    sha256: str
    """Of its entry points and of the names and contents of its files, compiled copies and installers' notes aside."""


@dataclass(frozen=True)
class Pinned:
    """A distribution as it lies here."""

    pin: Pin
    editable: bool
    files: frozenset[Path]
    """Its files, links resolved."""
    strays: tuple[str, ...]
    """What an import of its entry points would take from elsewhere, in words."""


@dataclass(frozen=True)
class PinnedEnvironment:
    """Plugins that are all as a lock pins them."""

    lock: Path
    distributions: tuple[Pinned, ...]

    def check_factories(self, factories: Mapping[str, str]) -> None:
        """Raise PinError where a factory, given with its distribution, lies outside every pinned distribution."""
        files = frozenset[Path]().union(*(pinned.files for pinned in self.distributions))
        problems = [
            f"{self.lock}: {distribution}: {stray}; a lock covers code of the pinned distributions alone"
            for factory, distribution in factories.items()
            if (stray := _stray(factory.partition(":")[0], files))
        ]
        if problems:
            raise PinError(dict.fromkeys(problems))


def installed_pins() -> tuple[Pinned, ...]:
    """Return the distributions of this environment that provide plugins, by name. Raises PinError where one of them
    has no files to go by."""
    points: dict[str, list[metadata.EntryPoint]] = {}
    distributions: dict[str, metadata.Distribution] = {}
    for distribution, point in chosen([]):
        name = normal_name(named(distribution)[0])
        distributions.setdefault(name, distribution)
        points.setdefault(name, []).append(point)
    return tuple(_pinned(distributions[name], points[name]) for name in sorted(points))


def write_lock(path: Path, pins: Sequence[Pin]) -> None:
    """Write a lock. Raises WriteError where the disk refuses."""
    write_json(path, {"schema": SCHEMA, "plugins": [asdict(pin) for pin in pins]})


def read_lock(path: Path) -> dict[str, Pin]:
    """Return the pins of a lock by normal name. Raises PinError naming the file where it is none."""
    again = "write it again with `aubench plugins lock`"
    try:
        value: Any = parse_json(read_plain(path.resolve(), _LARGEST).decode("utf-8"))
        expect(value, {"schema": str, "plugins": list})
        if value["schema"] != SCHEMA:
            raise ValueError(f"its schema is {value['schema'][:60]!r}, this version reads {SCHEMA!r}")
        pins: dict[str, Pin] = {}
        for entry in value["plugins"]:
            expect(entry, {"distribution": str, "version": str, "sha256": str})
            pin = Pin(**entry)
            if pins.setdefault(normal_name(pin.distribution), pin) is not pin:
                raise ValueError(f"{pin.distribution[:60]!r} stands twice")
    except StoreError as error:
        missing = not os.path.lexists(path)
        raise PinError([f"{path}: no such file; {again}" if missing else f"{error}; {again}"]) from error
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise PinError([f"{path}: no plugins.lock ({' '.join(str(error).split())[:200]}); {again}"]) from error
    return pins


def verified(lock: Path, extra: Sequence[object] = ()) -> PinnedEnvironment:
    """Return the distributions that provide plugins, once all of them are as ``lock`` pins them.

    What is pinned and not installed is nobody's business here: a suite that needs it says so. Raises PinError with
    every difference, before anything of a plugin is loaded.
    """
    pins = read_lock(lock)
    problems = [
        f"{lock}: {given.name if isinstance(given, Path) else 'a manifest handed over in the process'} is no installed "
        "distribution and cannot be pinned; install it as one, or go without --locked"
        for given in extra
    ]
    found = installed_pins()
    for pinned in found:
        problems += [f"{lock}: {said}" for said in _differences(pinned, pins)]
    if problems:
        raise PinError(problems)
    return PinnedEnvironment(lock, found)


def _differences(pinned: Pinned, pins: Mapping[str, Pin]) -> Iterator[str]:
    own = pinned.pin
    pin = pins.get(normal_name(own.distribution))
    relock = "run `aubench plugins lock` once you have looked at what is new"
    if pin is None:
        yield f"{own.distribution} {own.version} is not pinned; uninstall it, or {relock}"
    elif pin.version != own.version:
        yield (
            f"{own.distribution} is installed as {own.version}, pinned is {pin.version}; "
            f"`pip install {own.distribution}=={pin.version}`, or {relock}"
        )
    elif pin.sha256 != own.sha256:
        yield (
            f"{own.distribution} {own.version}: its files are not those that were pinned (SHA-256 {own.sha256[:12]}, "
            f"pinned {pin.sha256[:12]}); install it again, or {relock}"
        )
    for stray in pinned.strays:
        yield f"{own.distribution}: {stray}; remove or rename what stands in its way"


def _pinned(distribution: metadata.Distribution, points: Sequence[metadata.EntryPoint]) -> Pinned:
    name, version = named(distribution)
    editable = source.is_editable(distribution)
    digest = hashlib.sha256()
    for point in sorted(points):
        digest.update(f"{point.name} = {point.value}\0".encode())
    try:
        files = dict(_files(distribution, points, editable=editable))
        for relative, path in sorted(files.items()):
            digest.update(relative.encode(errors="surrogateescape") + b"\0")
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        resolved = frozenset(path.resolve() for path in files.values())
    except (OSError, ValueError, ImportError, csv.Error) as error:
        raise PinError(
            [f"{name}: its files cannot be read ({' '.join(str(error).split())}); install it again"]
        ) from error
    strays = dict.fromkeys(stray for point in points if (stray := _stray(point.module, resolved)))
    return Pinned(Pin(distribution=name, version=version, sha256=digest.hexdigest()), editable, resolved, tuple(strays))


def _files(
    distribution: metadata.Distribution, points: Sequence[metadata.EntryPoint], *, editable: bool
) -> Iterator[tuple[str, Path]]:
    """Yield the files of a distribution by name: what its RECORD lists and whatever else lies in its packages.

    An editable one lists none of its code: its packages are found as an import would find them.
    """
    listed = [] if editable else distribution.files or []
    packages: dict[str, Path] = {}
    for file in listed:
        # Scripts and metadata carry paths of the environment and notes of the installer.
        if ".." in file.parts or file.is_absolute() or file.parts[0].endswith(".dist-info") or _is_bytecode(file.name):
            continue
        path = Path(str(distribution.locate_file(file)))
        yield file.as_posix(), path
        if len(file.parts) == 2 and file.name == "__init__.py":
            packages[file.parts[0]] = path.parent
    for top in () if listed else sorted({point.module.partition(".")[0] for point in points}):
        origin = _origin(top)
        if origin is None:
            raise ImportError(f"there is no module {top!r}")
        if origin.name == "__init__.py":
            packages[top] = origin.parent
        else:
            yield origin.name, origin
    for top, folder in packages.items():
        for path in _below(folder):
            yield f"{top}/{path.relative_to(folder).as_posix()}", path


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in folders:
            if (Path(parent) / name).is_symlink():
                raise ValueError(f"{Path(parent) / name} is a symbolic link to a directory")
        for name in files:
            path = Path(parent) / name
            if not path.is_file():
                raise ValueError(f"{path} is not a plain file")
            if not _is_bytecode(name):
                yield path


def _raise(error: OSError) -> None:
    raise error


def _is_bytecode(name: str) -> bool:
    return Path(name).suffix in _BYTECODE


def _stray(module: str, files: frozenset[Path]) -> str | None:
    """Return, in words, that an import of ``module`` would not take one of ``files``; None where it would.

    Asks for the outermost package alone, which is found without running any code.
    """
    top = module.partition(".")[0]
    origin = _origin(top)
    if origin is None:
        return f"module {top!r} is not there, or has no file of its own"
    return None if origin.resolve() in files else f"module {top!r} would come from {origin}"


def _origin(top: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None
