"""The artifact cache as a whole: what is in it, whether it is sound, and what may go.

A run says what it needs in a lock file below ``runs/``, which vanishes with it, and in a file below ``unfinished/``,
which stays where the run is interrupted, until it is taken up and ends; ``prune`` removes none of that. An artifact's
manifest carries the time of its last use as its own, so that the longest unused goes first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import math
import os
import platform
import re
import secrets
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoshield_bench import effects
from autoshield_bench.errors import StoreError, WriteError
from autoshield_bench.locks import exclude, holder, lock, remove_abandoned, share
from autoshield_bench.outcomes import expect
from autoshield_bench.store import (
    LOCKS,
    MANIFEST,
    SET_ASIDE,
    ArtifactStore,
    DamagedError,
    make_directory,
    read_json,
    sweep,
    write_json,
    writing,
)

log = logging.getLogger(__name__)

RUNS = "runs"
"""Directory of the lock files in which living runs say what they need."""

UNFINISHED = "unfinished"
"""Directory of what interrupted runs still need."""

_PRUNING = "pruning"
_KEY = re.compile(r"[0-9a-f]{64}")
_NOT_OURS = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One artifact on disk."""

    stage: str
    key: str
    size: int
    """Bytes of its files."""
    used: float
    """Time of its last use, in seconds since the epoch."""
    complete: bool
    """Whether it has its manifest; one without was never published."""


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """What a run needs that has not come to its end."""

    path: Path
    """The file that says so."""
    results: Path
    """Where its results are."""
    since: float
    """When it was begun, or taken up, last; in seconds since the epoch."""
    keys: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a cache holds."""

    entries: tuple[Entry, ...]
    runs: tuple[dict[str, Any], ...]
    """Process, host, time since and needs of every living run."""
    interrupted: tuple[Interrupted, ...]
    """Runs that have not come to their end, living ones too."""
    aside: tuple[Path, ...]
    """Damaged artifacts that were set aside."""

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(entry.size for entry in self.entries) + sum(map(size_of, self.aside))

    @property
    def needed(self) -> frozenset[str]:
        """Keys of what living and interrupted runs need."""
        living = frozenset(str(key) for run in self.runs for key in run.get("keys", ()))
        return living.union(*(run.keys for run in self.interrupted))


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What became of a cache that was pruned; sizes in bytes."""

    removed: int
    freed: int
    left: int
    spared: int
    """Artifacts that stay because a living or an interrupted run needs them."""


@contextlib.contextmanager
def in_use(root: Path, needs: Collection[tuple[str, str]], results: Path | None = None) -> Iterator[None]:
    """Keep artifacts, by stage and key, from being pruned meanwhile, and sweep what a killed run left beside them.

    Where the run has a directory of ``results``, they are kept beyond an interruption too: until a run there has come
    to its end, or the directory is gone. A cache that may only be read is used without. Raises WriteError where the
    disk refuses.
    """
    path = root / RUNS / f"{platform.node()[:40].replace('/', '-')}-{os.getpid()}-{secrets.token_hex(4)}"
    store, unfinished = ArtifactStore(root), None
    with contextlib.ExitStack() as stack:
        try:
            with writing(path), _beginning(root):
                for directory in (root / LOCKS, root / RUNS):
                    _forget_the_dead(directory)
                for stage, key in sorted(needs):
                    sweep(store.directory(stage, key))
                make_directory(path.parent)
                facts = {"keys": sorted({key for _stage, key in needs}), "began": time.time()}
                stack.enter_context(lock(path, wait=True, facts=facts))
                if results is not None:
                    unfinished = _unfinished(root, results)
                    make_directory(unfinished.parent)
                    sweep(unfinished.parent)
                    write_json(unfinished, {**facts, "results": str(results.absolute())})
        except WriteError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _NOT_OURS:
                raise
            log.warning(
                "%s: the cache cannot be written; `aubench cache prune` elsewhere will not spare this run", root
            )
            unfinished = None
        yield
        # Reached where nothing interrupted the run.
        if unfinished is not None:
            with writing(unfinished), contextlib.suppress(FileNotFoundError):
                effects.remove(unfinished)


def _unfinished(root: Path, results: Path) -> Path:
    return root / UNFINISHED / f"{hashlib.sha256(os.fsencode(results.absolute())).hexdigest()[:32]}.json"


def _interrupted(path: Path) -> Interrupted | None:
    """Return what a file below ``unfinished/`` says; None where it is damaged, or the results are gone."""
    try:
        value = read_json(path)
        expect(value, {"results": str, "began": float, "keys": list})
    except (StoreError, KeyError, TypeError, ValueError):
        return None
    results = Path(value["results"])
    if not results.is_dir():
        return None
    return Interrupted(path=path, results=results, since=value["began"], keys=frozenset(map(str, value["keys"])))


def contents(root: Path) -> Contents:
    """Return what a cache holds. Changes nothing; a cache that is not there holds nothing."""
    runs = tuple(facts for path in _files(root / RUNS) if (facts := holder(path)) is not None)
    aside = tuple(_folders(root / SET_ASIDE))
    interrupted = tuple(own for path in _files(root / UNFINISHED) if (own := _interrupted(path)) is not None)
    return Contents(entries=tuple(_entries(root)), runs=runs, interrupted=interrupted, aside=aside)


def verify(root: Path) -> tuple[int, list[str]]:
    """Hash every artifact again and set damaged ones aside; return how many are sound, and a line per damaged one.

    Sweeps what killed runs left as well.
    """
    store, sound, damaged = ArtifactStore(root), 0, []
    for entry in contents(root).entries:
        if not entry.complete:
            continue
        try:
            store.check(entry.stage, entry.key)
            sound += 1
        except DamagedError as error:
            damaged.append(f"{entry.stage} {entry.key}: {error}")
    with writing(root):
        _tidy(root)
    return sound, damaged


def prune(root: Path, keep: int, *, abandon: bool = False) -> Pruned:
    """Remove what is left of dead runs, then what was set aside, then artifacts, the longest unused first.

    Stops at ``keep`` bytes; what a living run needs, or has used since it began, stays, and so does what an interrupted
    one needs unless they are to be abandoned.
    """
    if not root.is_dir():
        return Pruned(removed=0, freed=0, left=0, spared=0)
    with writing(root), exclude(root / _PRUNING):
        if abandon:
            # A living run says in another place, too, what it needs.
            for path in _files(root / UNFINISHED):
                effects.remove(path)
        before = contents(root)
        size = before.size
        _tidy(root)
        for path in before.aside:
            _remove_tree(path)
        entries = sorted(_entries(root), key=lambda entry: (entry.used, entry.key))
        left, removed, spared, needed = sum(entry.size for entry in entries), 0, 0, before.needed
        # One second for file systems that keep time coarsely. What a run does not say counts for everything.
        began = min((float(own.get("began", 1.0)) for own in before.runs), default=math.inf) - 1.0
        for entry in entries:
            if left <= keep:
                break
            if entry.key in needed or entry.used >= began:
                spared += 1
                continue
            with ArtifactStore(root).locked(entry.key):
                _remove_artifact(ArtifactStore(root).directory(entry.stage, entry.key))
            left -= entry.size
            removed += 1
        return Pruned(removed=removed, freed=size - left, left=left, spared=spared)


def size_of(directory: Path) -> int:
    """Return the bytes of the files in and below a directory."""
    total = 0
    for folder, _folders, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total


def _entries(root: Path) -> Iterator[Entry]:
    for directory in (key for stage in _folders(root) for prefix in _folders(stage) for key in _folders(prefix)):
        if not _KEY.fullmatch(directory.name) or directory.parent.name != directory.name[:2]:
            continue
        manifest = directory / MANIFEST
        try:
            used = (manifest if manifest.is_file() else directory).stat().st_mtime
        except OSError:
            continue  # removed meanwhile
        yield Entry(
            stage=directory.parent.parent.name,
            key=directory.name,
            size=size_of(directory),
            used=used,
            complete=manifest.is_file(),
        )


def _tidy(root: Path) -> None:
    """Remove what dead processes left: lock files, temporary files, and artifacts that were never published."""
    store = ArtifactStore(root)
    for directory in (root / LOCKS, root / RUNS):
        _forget_the_dead(directory)
    if not (root / UNFINISHED).is_symlink():
        sweep(root / UNFINISHED)
    for path in _files(root / UNFINISHED):
        if _interrupted(path) is None:
            with contextlib.suppress(FileNotFoundError):
                effects.remove(path)
    for entry in _entries(root):
        directory = store.directory(entry.stage, entry.key)
        sweep(directory)
        if not entry.complete:
            with store.locked(entry.key):
                if not store.has(entry.stage, entry.key):
                    _remove_artifact(directory)


def _forget_the_dead(directory: Path) -> None:
    for path in _files(directory):
        with contextlib.suppress(OSError):
            remove_abandoned(path)


def _remove_artifact(directory: Path) -> None:
    """Remove an artifact: first the manifest, so that what remains, should this be the end, is no artifact."""
    with contextlib.suppress(FileNotFoundError):
        effects.remove(directory / MANIFEST)
        effects.sync_directory(directory)
    _remove_tree(directory)


def _remove_tree(directory: Path) -> None:
    if directory.is_symlink():
        effects.remove(directory)  # the link alone: what it names is not ours
        return
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            _remove_tree(path)
        else:
            effects.remove(path)
    effects.remove_directory(directory)


def _files(directory: Path) -> list[Path]:
    return [path for path in _within(directory) if not path.is_dir() or path.is_symlink()]


def _folders(directory: Path) -> list[Path]:
    return [path for path in _within(directory) if path.is_dir() and not path.is_symlink()]


def _within(directory: Path) -> list[Path]:
    """Return what lies in a directory of the cache; nothing where that is a link, which may lead anywhere."""
    try:
        return [] if directory.is_symlink() else sorted(directory.iterdir())
    except OSError:
        return []


@contextlib.contextmanager
def _beginning(root: Path) -> Iterator[None]:
    """Wait for a prune to end, and keep another from beginning."""
    make_directory(root)
    with share(root / _PRUNING):
        yield
