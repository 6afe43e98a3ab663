"""Locks that vanish with their holder: whoever dies, in whatever way, leaves nothing that a person has to clean up.

A lock is ``flock`` on an open file, which the system takes back when the last process that has it open ends. The file
says who holds it (process, host, since) and is removed at the end; one that a killed process left is taken over.
Where there are no such locks (a system without ``fcntl``, or a file system that refuses) a warning says so once per
directory, the work goes on unguarded, and temporary files are never taken for those of a dead process.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import platform
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from autoshield_bench import effects
from autoshield_bench.errors import StoreError

log = logging.getLogger(__name__)

Answer = Literal["held", "busy", "none"]

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

_MOST = 64 * 1024 * 1024
"""Bytes of a lock file that are read at most."""


class HeldError(StoreError):
    """Another process holds what this one needs alone; nothing was done."""

    exit_code = 4


def try_lock(descriptor: int, *, wait: bool = False, shared: bool = False) -> Answer:
    """Lock an open file: ``held`` now, ``busy`` with another holder, or ``none`` where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return "none"
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return "busy"
        if error.errno in _UNSUPPORTED:
            return "none"
        raise
    return "held"


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = False, facts: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Hold the lock file ``path``, with facts beside its holder's name in it.

    Raises HeldError where another process, or this one, holds it and ``wait`` is not set; OSError where the disk
    refuses.
    """
    descriptor, owner = _open(path, wait=wait), os.getpid()
    with _kept(descriptor):
        try:
            value = {"pid": os.getpid(), "host": platform.node(), "since": _now(), **(facts or {})}
            effects.truncate(descriptor)
            effects.write(descriptor, json.dumps(value, sort_keys=True).encode() + b"\n")
            yield
        finally:
            if os.getpid() == owner:
                # Removed while it is held: who waits for it finds that the name is gone and begins again.
                with contextlib.suppress(OSError):
                    effects.remove(path)


def _let_go() -> None:
    """Close the parent's locks in a process that it forked: they are to vanish with the parent, whoever outlives it."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


_held: set[int] = set()
os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def share(path: Path) -> Iterator[None]:
    """Hold ``path`` together with others who share it, and let nobody have it alone meanwhile. Waits. Stays there."""
    with _kept(_open(path, wait=True, shared=True)):
        yield


@contextlib.contextmanager
def exclude(path: Path) -> Iterator[None]:
    """Hold ``path`` alone, against ``share`` and ``exclude``. Waits. Stays there."""
    with _kept(_open(path, wait=True)):
        yield


@contextlib.contextmanager
def _kept(descriptor: int) -> Iterator[None]:
    owner = os.getpid()
    _held.add(descriptor)
    try:
        yield
    finally:
        if os.getpid() == owner:
            _held.discard(descriptor)
            os.close(descriptor)


def holder(path: Path) -> dict[str, Any] | None:
    """Return what the lock file says of its holder; None where nobody alive holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        return None if try_lock(descriptor) == "held" else _read(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned(path: Path) -> bool:
    """Remove a temporary file whose writer is dead; return whether it was one.

    Raises OSError where it cannot be removed.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        if try_lock(descriptor) != "held":
            return False
        with contextlib.suppress(FileNotFoundError):
            effects.remove(path)  # while it is locked: a writer that has just made it finds that it has to begin again
        return True
    finally:
        os.close(descriptor)


def _open(path: Path, *, wait: bool, shared: bool = False) -> int:
    while True:
        descriptor = effects.open_lock(path)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise StoreError(f"{path}: not a plain file; remove it")
            answer = try_lock(descriptor, wait=wait, shared=shared)
            if answer == "busy":
                raise HeldError(_described(_read(descriptor)))
            if answer == "none":
                _warn(path.parent)
            if _is_named(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed it: the next one makes a new file


@functools.cache
def _warn(directory: Path) -> None:
    log.warning("%s: there are no file locks here; see that nothing else works on it at the same time", directory)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> dict[str, Any]:
    try:
        value = json.loads(os.pread(descriptor, _MOST, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _described(value: Mapping[str, Any]) -> str:
    if not value:
        return "held by another process"
    return f"held by process {value.get('pid')} on {value.get('host')} since {value.get('since')}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
