"""Checks in a process of their own: a plugin that hangs, exits, crashes or floods its output is named and contained.

One process runs check after check; where it must be ended, a new one goes on behind the check that it was ended in.
This module leaves torch to those processes, so that the console answers at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from autoshield_bench.contracts import Kind
from autoshield_bench.errors import PluginError
from autoshield_bench.testing.outcome import Outcome

LOAD = "load"
"""Name of what fails where a process ends before its first check."""
QUIET = "quiet"
"""Name of the check that only a process of its own can make: the plugin prints next to nothing."""
LOUD_BYTES = 64 * 2**10
"""What a plugin may print during one check."""
FLOOD_BYTES = 16 * 2**20
"""Where a plugin that prints is ended, before it fills the disk."""
START_S = 120.0
"""Seconds that a process may take to start, on top of the time limit: torch is slow to import from a cold disk."""

QUIET_REMEDY = (
    "Remove prints and progress bars, and switch off those of a wrapped library, such as with `verbose=False`; `fit` "
    "reports with `request.progress(done, total)`."
)
"""What to do about ``quiet``, and about a plugin that was ended for its printing."""
_SLOW_REMEDY = (
    "Give a slow plugin more seconds with `--timeout`, or less to do with `--params`; where neither helps, look for a "
    "loop without an end."
)
_ENDED_REMEDY = (
    "Raise an exception where the plugin cannot go on, in place of `os._exit`. Where compiled code crashes, run the "
    "check under pytest, which shows the line."
)


@dataclass
class _Worker:
    """A running process, its pipe and what it prints."""

    process: subprocess.Popen[bytes]
    pipe: int
    printed: IO[bytes]
    buffer: bytes = b""
    events: list[dict[str, Any]] = field(default_factory=list)

    def printed_bytes(self) -> int:
        return os.fstat(self.printed.fileno()).st_size

    def last_line(self) -> str:
        self.printed.seek(max(0, self.printed_bytes() - 2000))
        lines = self.printed.read().decode(errors="replace").splitlines()
        return next((" ".join(line.split())[:200] for line in reversed(lines) if line.strip()), "")

    def next_event(self, seconds: float) -> dict[str, Any] | None:
        """Return the next event, {} where the process has ended, None after a while without one."""
        while not self.events:
            ready, _, _ = select.select([self.pipe], [], [], seconds)
            if not ready:
                return None
            chunk = os.read(self.pipe, 65536)
            if not chunk:
                return {}
            *lines, self.buffer = (self.buffer + chunk).split(b"\n")
            self.events += [json.loads(line) for line in lines]
        return self.events.pop(0)

    def end(self) -> None:
        """End the process and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.pipe)
        self.printed.close()


def isolated_checks(
    kind: Kind,
    use: str,
    *,
    params: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
    timeout: float = 60.0,
) -> Iterator[Outcome]:
    """Yield what every check of a plugin comes to, each with a time limit in seconds.

    Raises PluginError where the plugin cannot be made at all.
    """
    done: list[str] = []
    loud: tuple[int, str] = (0, "")
    finished = False
    while not finished:
        request = {
            "kind": kind,
            "use": use,
            "params": dict(params or {}),
            "files": [str(Path(file).absolute()) for file in files],
            "done": done,
        }
        worker = _start(request)
        try:
            for outcome, printed in _watch(worker, timeout):
                if outcome is None:
                    finished = True
                    break
                done.append(outcome.check)
                loud = max(loud, (printed, outcome.check))
                yield outcome
                finished = outcome.check == LOAD
        finally:
            worker.end()
    if loud[0] > LOUD_BYTES:
        message = f"printed {loud[0]:,} bytes during {loud[1]!r}; a plugin is silent, and reports through its results"
        yield Outcome(check=QUIET, verdict="failed", message=message, remedy=QUIET_REMEDY)
    else:
        yield Outcome(check=QUIET, verdict="passed")


def _watch(worker: _Worker, timeout: float) -> Iterator[tuple[Outcome | None, int]]:
    """Yield outcomes with the bytes printed meanwhile.

    The last one is None where all checks have run, and else that of the check in which the process was ended.
    """
    current, began, printed_before = "", time.monotonic(), 0
    while True:
        event = worker.next_event(0.1)
        elapsed, printed = time.monotonic() - began, worker.printed_bytes() - printed_before
        verdict = remedy = ""
        if event is None:
            if printed > FLOOD_BYTES:
                verdict, remedy = f"printed more than {FLOOD_BYTES:,} bytes and was ended", QUIET_REMEDY
            elif elapsed > timeout + (0 if current else START_S):
                verdict, remedy = f"did not end within {timeout:g} s", _SLOW_REMEDY
        elif not event:
            status = worker.process.wait()
            how = f"was ended by signal {-status}" if status < 0 else f"ended the process with status {status}"
            said = worker.last_line()
            verdict, remedy = how + (f"; it last said: {said}" if said else ""), _ENDED_REMEDY
        elif event["event"] == "begin":
            current, began, printed_before = event["check"], time.monotonic(), event["printed"]
        elif event["event"] == "end":
            yield _outcome(event), event["printed"] - printed_before
            current, began = "", time.monotonic()
        elif event["event"] == "unusable":
            raise PluginError(event["message"])
        else:
            yield None, printed
            return
        if verdict:
            outcome = Outcome(
                check=current or LOAD,
                verdict="failed",
                message=f"the plugin {verdict}",
                remedy=remedy,
                seconds=elapsed,
            )
            yield outcome, printed
            return


def _start(request: Mapping[str, Any]) -> _Worker:
    ours, theirs = os.pipe()
    printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
    # The same plugins as here, wherever this process found them.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "autoshield_bench.testing.worker", str(theirs)],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=printed,
            pass_fds=(theirs,),
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    finally:
        os.close(theirs)
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
    return _Worker(process, ours, printed)


def _outcome(event: Mapping[str, Any]) -> Outcome:
    return Outcome(**{key: event[key] for key in ("check", "verdict", "message", "remedy", "seconds")})
