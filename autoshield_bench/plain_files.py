"""Files that are what they seem: read without following a link, waiting for a pipe or taking in more than allowed.

What lies in a results directory may come from anybody. A symbolic link there could name any file of this machine, and a
named pipe would let a reader wait for ever, so neither is opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from autoshield_bench.errors import StoreError

LONGEST_NAME = 200
"""Bytes of the name of a file: what every file system takes, with room for what is put behind it."""

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


def read_plain(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes; never waits, never follows a link.

    Raises StoreError naming the file where it is something else, larger, or cannot be read.
    """
    try:
        _refuse_kind(path, path.lstat().st_mode)
        # Asked again once it is open: what lies there may have changed in between.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            about = os.fstat(descriptor)
            _refuse_kind(path, about.st_mode)
            content = stream.read(limit + 1) if about.st_size <= limit else b""
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError(f"{path}: not a plain file but a symbolic link; remove it") from error
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise StoreError(f"{str(path)!r}: cannot be read ({error})") from error
    if about.st_size > limit or len(content) > limit:
        raise StoreError(f"{path}: larger than {limit} bytes; it is not one of ours")
    return content


def refuse_odd_entries(directory: Path) -> None:
    """Raise StoreError naming whatever below a directory is neither a regular file nor a directory.

    One that is not there holds nothing. The directory itself may be reached through a link: whoever named
    it knows where it leads.
    """
    waiting = [directory]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise StoreError(f"{folder}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif not entry.is_file(follow_symlinks=False):
                try:
                    mode = entry.stat(follow_symlinks=False).st_mode
                except FileNotFoundError:
                    continue  # a run removed it meanwhile
                _refuse_kind(Path(entry.path), mode, " A results directory holds plain files alone.")


def name_problem(name: str) -> str | None:
    """Return why ``name`` cannot be that of one file or directory on every system, below the one it belongs in.

    None where it can.
    """
    if name in ("", ".", "..") or any(character in "/\\\0" for character in name):
        return "leads out of its directory"
    if name.startswith("."):
        return "would be hidden"
    if not name.isprintable():
        return "holds characters that cannot be shown"
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} bytes"
    if name.partition(".")[0].rstrip().lower() in _DEVICES:
        return "is the name of a device on Windows"
    if name[-1] in " .":
        return "ends in a space or a full stop, which Windows drops"
    return None


def expect_names(value: Mapping[str, object], fields: Iterable[str]) -> None:
    """Raise ValueError where one of these fields holds a name that cannot be that of a file or directory."""
    for field in fields:
        name = value.get(field)
        if isinstance(name, str) and (problem := name_problem(name)):
            raise ValueError(f"{field}: {name[:60]!r} {problem}")


def component(name: str) -> str:
    """Return a name that is to be one file or directory. Raises StoreError where it cannot be."""
    if problem := name_problem(name):
        raise StoreError(f"{name[:60]!r} {problem}, so it names no file of these results; give it another name")
    return name


def _refuse_kind(path: Path, mode: int, remark: str = "") -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise StoreError(f"{path}: not a plain file but {kind}; remove it.{remark}".removesuffix("."))
