"""What happened and how long it took: one JSON line per event, one writer per file, never part of a result.

A journal is not waited for: after a crash its last line may be torn or lost, and readers pass over what is no event.
The clock may jump as it likes: durations come from another one, and the name of a file is only ever used once.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoshield_bench import effects
from autoshield_bench.store import make_directory, writing
from autoshield_bench.strict_json import json_lines


class Journal:
    """Appends events to ``journal/<host>-<pid>-<utc>.jsonl``; a run that computes nothing leaves no file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "journal"
        self._descriptor: int | None = None

    def event(self, name: str, **fields: Any) -> None:
        """Append one event with the time since the epoch, in seconds. Raises WriteError where the disk refuses."""
        line = {"event": name, "utc": round(time.time(), 3), **fields}
        data = json.dumps(line, sort_keys=True, allow_nan=False).encode() + b"\n"
        with writing(self._directory):
            if self._descriptor is None:
                self._descriptor = self._open()
            effects.write(self._descriptor, data)

    def close(self) -> None:
        """Close the file. Raises WriteError where the disk refuses."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with writing(self._directory):
                effects.close(descriptor)

    def _open(self) -> int:
        make_directory(self._directory)
        host = re.sub(r"[^A-Za-z0-9.-]", "-", platform.node())[:40] or "host"
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        process, again = str(os.getpid()), 1
        while True:
            try:
                return effects.open_new(self._directory / f"{host}-{process}-{stamp}.jsonl")
            except FileExistsError:  # by a process of the same number in the same second, as far as the clock says
                again += 1
                process = f"{os.getpid()}.{again}"


def read_events(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the events in a results directory's journals, file by file; whatever is no event is passed over."""
    for path in sorted((directory / "journal").glob("*.jsonl")):
        for event in json_lines(path):
            if isinstance(event, dict):
                yield event
