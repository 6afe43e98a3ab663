"""Writes merged results: a new directory is there whole or not at all, an old one only gains."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autoshield_bench import effects
from autoshield_bench.errors import StoreError
from autoshield_bench.locks import HeldError, lock
from autoshield_bench.merge.decide import Merge
from autoshield_bench.merge.parts import BESIDE, Found
from autoshield_bench.store import make_directory, write_bytes, write_json, writing

Derive = Callable[[Path], object]
"""Writes what is derived from the results in a directory."""

_ORDER = (BESIDE, "samples", "env", "journal", "evidence", "cells")
"""What a record refers to is there before it, and what is displaced is beside before it goes."""


def write_into(merge: Merge, into: Path, derive: Derive) -> None:
    """Write merged results as a new directory, under another name until they are whole.

    What a killed merge left there is removed first. Raises HeldError where another merge is writing it, WriteError
    where the disk refuses, StoreError where a file changed since it was decided on.
    """
    target = into.absolute()
    building = target.with_name(f".{target.name}.merging.tmp")
    with writing(into):
        make_directory(target.parent)
        with _alone(target.with_name(f".{target.name}.merging.lock"), into):
            shutil.rmtree(building, ignore_errors=True)
            try:
                effects.make_directory(building)
                _fill(merge, building, derive)
                effects.replace(building, target)
                effects.sync_directory(target.parent)
            finally:
                shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def _alone(own: Path, into: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(own))
        except HeldError as error:
            raise HeldError(f"{into}: {error}; wait until it ends, or choose another --into") from error
        yield


def add_to_first(merge: Merge, derive: Derive) -> None:
    """Write merged results into the first of the directories. Cut off midway, the same command goes on from there.

    The plan comes last: until then the directory says what it said before. The caller holds the directory. Raises
    WriteError where the disk refuses, StoreError where a file changed since it was decided on.
    """
    if merge.conflicts:
        raise ValueError("a directory with results is no place for contradictions")
    _fill(merge, merge.parts[0].directory, derive)


def _fill(merge: Merge, directory: Path, derive: Derive) -> None:
    for name in sorted(merge.files, key=lambda name: (_ORDER.index(name.partition("/")[0]), name)):
        _copy(merge.files[name], directory / name)
    plans = {f"plans/{short}.json": plan for short, plan in merge.others.items()} | {"plan.json": merge.plan}
    for name, plan in plans.items():
        _write_plan(merge, directory / name, plan)
    derive(directory)


def _copy(found: Found, target: Path) -> None:
    if found.path == target:
        return
    data = found.path.read_bytes()
    if "sha256" in vars(found) and hashlib.sha256(data).hexdigest() != found.sha256:
        raise StoreError(f"{found.path}: changed while it was merged; wait until the run there ends, and merge again")
    if not (target.is_file() and target.read_bytes() == data):
        write_bytes(target, data)


def _write_plan(merge: Merge, target: Path, value: Mapping[str, Any]) -> None:
    """Write a plan; one that says no more than a file that was there keeps that file's bytes."""
    for part in merge.parts:
        for plan in part.plans:
            if plan.value == value:
                data = plan.path.read_bytes()
                if not (target.is_file() and target.read_bytes() == data):
                    write_bytes(target, data)
                return
    write_json(target, value)
