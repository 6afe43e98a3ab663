"""Where plugins come from: installed distributions, single files, and manifests handed over in the process."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from autoshield_bench import hookspecs, source, store
from autoshield_bench.errors import PluginError

HOME = "autoshield-bench"
"""The distribution whose plugins are called built-in."""

DISABLE = "AUBENCH_DISABLE_PLUGINS"
"""Environment variable: any value but empty and 0 turns third-party plugins off."""

Origin = Literal["built-in", "installed", "editable", "in-process", "file"]

FILE = "file"
"""What stands in place of a distribution for a plugin that is a single file."""


@dataclass(frozen=True)
class Problem:
    """A plugin that could not be taken in, whole or in part."""

    distribution: str
    entry_point: str
    message: str

    def __str__(self) -> str:
        return f"plugin {self.entry_point!r} of {self.distribution}: {self.message}"


@dataclass(frozen=True)
class Provider:
    """One entry point, before it is loaded."""

    distribution: str
    version: str
    entry_point: str
    origin: Origin
    load: Callable[[], object]
    hash_source: Callable[[object], str]


def _entry_points(problems: list[Problem]) -> Iterator[tuple[metadata.Distribution, metadata.EntryPoint]]:
    """Yield the group's entry points; a distribution whose list cannot be read is named and passed over."""
    for distribution in metadata.distributions():
        try:
            points = list(distribution.entry_points.select(group=hookspecs.PROJECT))
        except Exception as error:
            problems.append(Problem(named(distribution)[0], "entry_points.txt", describe(error)))
            continue
        for point in points:
            yield distribution, point


def chosen(problems: list[Problem]) -> Iterator[tuple[metadata.Distribution, metadata.EntryPoint]]:
    """Yield the entry points that count, none of them loaded: third parties' only where they are not turned off."""
    third_party = os.environ.get(DISABLE, "") in ("", "0")
    seen: set[tuple[str, str]] = set()
    for distribution, point in _entry_points(problems):
        name = normal_name(named(distribution)[0])
        # An environment may list one distribution twice (a source tree beside its installed copy): take the first.
        if (name, point.name) in seen:
            continue
        seen.add((name, point.name))
        if name == HOME or third_party:
            yield distribution, point


def installed(problems: list[Problem]) -> Iterator[Provider]:
    """Yield what the entry points of this environment provide."""
    for distribution, point in chosen(problems):
        name, version = named(distribution)
        home = normal_name(name) == HOME
        editable = source.is_editable(distribution)
        yield Provider(
            distribution=name,
            version=version,
            entry_point=point.name,
            origin="built-in" if home else "editable" if editable else "installed",
            load=point.load,
            hash_source=functools.partial(_installed_hash, distribution),
        )


def named(distribution: metadata.Distribution) -> tuple[str, str]:
    """Return name and version; a damaged installation may have lost its metadata, and with them both."""
    try:
        return distribution.name or "unknown", distribution.version or ""
    except (KeyError, UnicodeDecodeError):
        return "unknown", ""


def source_of(provider: Provider, manifest: object, factory: str) -> str:
    """Return the hash of a plugin's source: of its manifest's, and of its factory's, which may lie elsewhere."""
    hashes = [provider.hash_source(manifest)]
    if provider.origin == "installed":
        return hashes[0]  # a wheel's RECORD names every file of it
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(factory.partition(":")[0])
        if spec is not None and spec.origin is not None:
            hashes.append(source.module_hash(spec.origin))
    return store.content_key(hashes)


def _installed_hash(distribution: metadata.Distribution, manifest: object) -> str:
    return source.distribution_hash(distribution, getattr(manifest, "__file__", None))


def given(extra: Iterable[object]) -> Iterator[Provider]:
    """Yield manifests handed over in the process: modules, objects with hooks, or paths of single files."""
    for manifest in extra:
        if isinstance(manifest, Path):
            yield Provider(
                distribution=FILE,
                version="",
                entry_point=manifest.name,
                origin="file",
                load=functools.partial(_load_file, manifest),
                hash_source=functools.partial(_single_file_hash, manifest),
            )
            continue
        name = getattr(manifest, "__name__", type(manifest).__name__)
        module = manifest if isinstance(manifest, types.ModuleType) else sys.modules.get(type(manifest).__module__)
        file = getattr(module, "__file__", None)
        yield Provider(
            distribution="in-process",
            version="",
            entry_point=name,
            origin="in-process",
            load=functools.partial(_itself, manifest),
            hash_source=functools.partial(_file_hash, file),
        )


def _itself(manifest: object) -> object:
    return manifest


def _load_file(path: Path) -> types.ModuleType:
    """Import a single file under its own name, anew each time, so that its factories are found as ``name:Class``."""
    path = path.absolute()
    name = path.stem
    if not path.is_file():
        raise PluginError(f"{path}: no such file")
    if path.suffix != ".py" or not name.isidentifier():
        raise PluginError(f"{path}: the name of a plugin file is a Python name and ends in .py, such as my_defense.py")
    known = sys.modules.get(name) or importlib.util.find_spec(name)
    origin = getattr(known, "__file__", None) or getattr(known, "origin", None)
    if known is not None and (origin is None or Path(origin).absolute() != path):
        raise PluginError(f"{path}: {name!r} is the name of a module that exists already; rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _single_file_hash(path: Path, _manifest: object) -> str:
    return source.hash_files(path.absolute().parent, [path.absolute()])


def _file_hash(file: str | None, _manifest: object) -> str:
    return source.module_hash(file)


def describe(error: BaseException) -> str:
    """Return an error as one line, with its type unless it speaks for itself."""
    try:
        said = str(error)
    except Exception:  # its own code, and as likely to fail
        said = "its message cannot be read"
    text = " ".join(said.split())[:400]
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"


@functools.cache
def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution; None where it is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def normal_name(distribution: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
