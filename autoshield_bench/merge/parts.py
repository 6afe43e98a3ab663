"""What the results directories to be merged hold, file by file, and where each file goes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from autoshield_bench.errors import StoreError, UsageError
from autoshield_bench.merge.plans import PlanFile, read_plans
from autoshield_bench.plain_files import refuse_odd_entries
from autoshield_bench.store import file_sha256

KEPT = ("cells", "evidence", "env", "samples", "journal", "beside")
"""Folders that come along."""

REBUILT = ("plan.json", "plans", "derived")
"""What is written anew."""

BESIDE = "beside"
"""Folder for the files of which another of the same name was preferred, or none where they contradict each other."""


@dataclass(frozen=True)
class Found:
    """One file of one of the directories."""

    name: str
    """Path below its results directory, with slashes."""
    path: Path
    part: int
    """Position of its directory among those that are merged."""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of its bytes."""
        return file_sha256(self.path)

    @property
    def beside(self) -> str:
        """Where it goes if it cannot have its name: a name that holds the hash of its bytes."""
        name = PurePosixPath(self.name)
        if name.parts[0] == BESIDE:
            return self.name
        return (PurePosixPath(BESIDE) / name.with_name(f"{name.stem}.{self.sha256[:12]}{name.suffix}")).as_posix()

    @property
    def wanted(self) -> str:
        """The name that it would have, were it not beside."""
        name = PurePosixPath(self.name)
        if name.parts[0] != BESIDE:
            return self.name
        return PurePosixPath(*name.parts[1:]).with_name(f"{name.stem.rpartition('.')[0]}{name.suffix}").as_posix()


@dataclass(frozen=True)
class Part:
    """One results directory."""

    directory: Path
    plans: tuple[PlanFile, ...]
    files: dict[str, Found]
    """By name."""
    left_behind: tuple[str, ...]
    """Names at its top that are no results of ours."""


def read_part(directory: Path, position: int) -> Part:
    """List a results directory, the one at that position among those that are merged.

    Raises StoreError where it has no plan, or holds a symbolic link, pipe or device where results belong.
    """
    refuse_odd_entries(directory)
    plans = tuple(read_plans(directory))
    files = {found.name: found for folder in KEPT for found in _walk(directory, directory / folder, position)}
    names = (entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
    return Part(directory, plans, files, tuple(sorted(set(names) - {*KEPT, *REBUILT})))


def check_apart(directories: Sequence[Path], into: Path | None) -> None:
    """Raise UsageError unless the directories are several, and ``into`` is a new one apart from them."""
    places = [directory.resolve() for directory in directories]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise UsageError(f"{directories[index]}: merged with itself; name two results directories")
    if into is None:
        return
    try:
        target = into.resolve()
    except (RuntimeError, OSError) as error:  # links that lead in a circle
        raise UsageError(f"--into {into}: cannot be resolved ({error}); name a new directory") from error
    for directory, place in zip(directories, places, strict=True):
        if target == place or place in target.parents or target in place.parents:
            raise UsageError(f"--into {into}: lies in or around {directory}; name a new directory beside it")
    if into.is_symlink() or (into.exists() and not (into.is_dir() and not any(into.iterdir()))):
        raise UsageError(f"--into {into}: exists already; name a new one, or leave --into out to add to the first")


def _walk(directory: Path, folder: Path, position: int) -> Iterator[Found]:
    """Yield the plain files below a folder; what is hidden is somebody's temporary file."""
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise StoreError(f"{folder}: not a directory; move it away") from error
    if folder.is_symlink():
        raise StoreError(f"{folder}: a symbolic link, which has no place among results; replace it by what it names")
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path, kind = Path(entry.path), entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(kind):
            yield from _walk(directory, path, position)
        elif stat.S_ISREG(kind):
            yield Found(path.relative_to(directory).as_posix(), path, position)
        else:
            raise StoreError(f"{path}: neither file nor directory (a link, pipe or device); remove it")
