"""Every change that the store makes on disk, as one plain function each.

Nothing else in the store opens a file for writing or renames one, so whoever replaces these functions sees every effect
in order: the tests number them, kill the process after each, and let the disk refuse each.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_PLAIN = os.O_CLOEXEC | os.O_NOFOLLOW


def make_directory(path: Path) -> None:
    """Create one directory. Raises FileExistsError where there is something of that name."""
    path.mkdir()


def open_new(path: Path) -> int:
    """Create a file that was not there and return its descriptor, for writing at its end."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | _PLAIN, 0o644)


def open_lock(path: Path) -> int:
    """Return the descriptor of a lock file, created where it was not there. Never waits, whatever lies there."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | _PLAIN, 0o644)


def write(descriptor: int, data: bytes) -> None:
    """Write all of the data."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def truncate(descriptor: int) -> None:
    """Empty a file."""
    os.ftruncate(descriptor, 0)


def permit(descriptor: int) -> None:
    """Let everybody read a file, whatever the umask says."""
    os.fchmod(descriptor, 0o644)


def sync(descriptor: int) -> None:
    """Wait until a file's data are on the disk."""
    os.fsync(descriptor)


def close(descriptor: int) -> None:
    """Close a file; some file systems say only here that the disk is full."""
    os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk, on file systems that can be asked for it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Give a file its name, in place of what had it."""
    source.replace(target)


def rename(source: Path, target: Path) -> None:
    """Move a directory to a name that nothing has."""
    source.rename(target)


def touch(path: Path) -> None:
    """Set a file's time to now."""
    os.utime(path)


def remove(path: Path) -> None:
    """Remove a file."""
    path.unlink()


def remove_directory(path: Path) -> None:
    """Remove an empty directory."""
    path.rmdir()
