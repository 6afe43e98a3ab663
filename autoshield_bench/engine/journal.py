"""What happened and how long it took: one JSON line per event, one writer per file, never part of a result."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any, TextIO


class Journal:
    """Appends events to ``journal/<host>-<pid>-<utc>.jsonl``; a run that computes nothing leaves no file."""

    def __init__(self, directory: Path) -> None:
        host = re.sub(r"[^A-Za-z0-9.-]", "-", platform.node())[:40] or "host"
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._path = directory / "journal" / f"{host}-{os.getpid()}-{stamp}.jsonl"
        self._stream: TextIO | None = None

    def event(self, name: str, **fields: Any) -> None:
        """Append one event with the time since the epoch, in seconds."""
        if self._stream is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open("a", encoding="utf-8")
        line = {"event": name, "utc": round(time.time(), 3), **fields}
        self._stream.write(json.dumps(line, sort_keys=True, allow_nan=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def read_rates(directory: Path) -> dict[str, float]:
    """Return the seconds per image-pass of earlier work by stage, from a results directory's journals (medians)."""
    from statistics import median

    seen: dict[str, list[float]] = {}
    for path in sorted((directory / "journal").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
                stage, passes, seconds = str(event["stage"]), int(event["passes"]), float(event["seconds"])
                whole = event["ok"] is True
            except (ValueError, KeyError, TypeError, ArithmeticError):
                continue
            if whole and passes > 0:
                seen.setdefault(stage, []).append(seconds / passes)
    return {stage: median(rates) for stage, rates in seen.items()}
