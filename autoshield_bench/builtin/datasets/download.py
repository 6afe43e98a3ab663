"""Downloads by other programs, in a process of their own that is ended as soon as no byte arrives any more.

A time-out on a socket does not cover a name server that never answers, and torchvision sets none at all. In a process
of its own a download cannot print over the harness's output, change global settings or outlive its welcome; and a
slow line is no reason to give up as long as something arrives.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoshield_bench.builtin.datasets.published import Source
from autoshield_bench.errors import DataError

SOCKET_S = 5
"""Seconds that one network operation may take."""

STALL_S = 10.0
"""Seconds without a new byte after which a download is ended: two sources fail within 30 s in all."""

_LIMIT_S = 1800.0
_START_S = 60.0
"""Seconds that importing torchvision may take, on a slow disk; no network is involved."""

# torchvision stops at the first file that no mirror delivers.
_TORCHVISION = """
import pathlib, socket, sys
import torchvision.datasets
name, directory, seconds = sys.argv[1:]
socket.setdefaulttimeout(float(seconds))
pathlib.Path(directory, "started").touch()
try:
    getattr(torchvision.datasets, name)(directory, download=True)
except Exception as error:
    sys.exit(" ".join(str(error).split()) or type(error).__name__)
"""


def torchvision_download(class_name: str) -> Source:
    """Return torchvision's own download of one of its data sets, such as ``MNIST``."""

    def fill(directory: Path) -> None:
        command = ("-c", _TORCHVISION, class_name, str(directory), str(SOCKET_S))
        run_watched(command, directory, start_s=_START_S)

    return Source(name="torchvision's download", fill=fill)


def run_watched(
    arguments: Sequence[str],
    directory: Path,
    *,
    start_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run this Python with ``arguments`` while files below ``directory`` grow.

    ``start_s``: seconds until something must have appeared there; ``STALL_S`` otherwise. Raises ``DataError`` with the
    last line that the program said where it fails, or with the time where it stalls.
    """
    # -P: a file torchvision.py or pip.py in the current directory is not ours to run.
    command = [sys.executable, "-P", *arguments]
    with tempfile.TemporaryFile() as chatter:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=chatter,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        try:
            _wait(process, directory, STALL_S if start_s is None else start_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            chatter.seek(0)
            said = chatter.read().decode(errors="replace").splitlines()
            last = next((line for line in reversed(said) if line.strip()), f"exit status {process.returncode}")
            raise DataError(_printable(last))


def _wait(process: subprocess.Popen[bytes], directory: Path, start_s: float) -> None:
    began = moved = time.monotonic()
    before, allowed = _extent(directory), start_s
    while True:
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            now, extent = time.monotonic(), _extent(directory)
            if extent != before:
                before, moved, allowed = extent, now, STALL_S
            if now - moved > allowed:
                raise DataError(f"no data for {now - moved:.0f} s") from None
            if now - began > _LIMIT_S:
                raise DataError(f"not finished after {now - began:.0f} s") from None
        else:
            return


def _extent(directory: Path) -> tuple[int, int]:
    """Return the number of entries below a directory and the bytes in them; entries may vanish meanwhile."""
    entries = size = 0
    for parent, folders, files in os.walk(directory):
        entries += len(folders) + len(files)
        for name in files:
            try:
                size += Path(parent, name).lstat().st_size
            except OSError:
                continue
    return entries, size


def _printable(text: str) -> str:
    line = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(line.split())
    return line if len(line) <= 300 else line[:300] + " ..."
