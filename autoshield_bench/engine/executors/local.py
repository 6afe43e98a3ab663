"""Supervised worker processes on this machine: what kills one of them costs its job and nothing else.

Each worker leads a session and a process group of its own, so that whatever it started can be killed with it. Jobs go
to its standard input and answers come back through a pipe of their own, both as lines of JSON; what a plugin prints
goes into a log that cannot grow without bounds. A worker dies with its parent.

Why not ``concurrent.futures`` or ``pebble``: both hand pickles over, import the caller's main module anew, which a
script without a guard does not survive, and kill a process where its group has to go.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import IO

import autoshield_bench
from autoshield_bench.engine.executors import Listener, Outcome, Status
from autoshield_bench.errors import WorkerError

STOPPED = 10.0
"""Seconds after which a worker that somebody has stopped (SIGSTOP) is given up."""

PATIENCE = 5.0
"""Seconds between TERM and KILL."""

READY = 300.0
"""Seconds that a worker may take to start."""

FALSE_STARTS = 3
"""Workers in a row that may die before they are ready."""

LARGEST_LOG = 8 * 2**20
"""Bytes of what a worker prints that are kept on disk."""

LOGS = 20
"""Logs of earlier workers that are kept, the newest."""

_TAIL = 4000
"""Bytes of it that are shown when the worker is lost."""

_WORKER = "autoshield_bench.engine.executors.worker"
_TICK = 0.2
_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 20
_AT_ONCE = 1 << 22
"""Bytes of a worker's output or answers that are read before the others are looked at."""


class Local:
    """Up to ``capacity`` worker processes, started when they are needed and replaced when they are lost."""

    def __init__(
        self,
        listener: Listener,
        *,
        capacity: int = 1,
        time_limit: float | None = None,
        logs: Path,
        environment: Mapping[str, str] | None = None,
        answer: str = "autoshield_bench.engine.bench:answer",
    ) -> None:
        """``time_limit``: seconds per job. ``logs``: where workers' logs go. ``environment``: variables to set.
        ``answer``: module and function that do a job."""
        self.capacity = capacity
        self._listener = listener
        self._limit = time_limit
        self._logs = logs
        self._environment = dict(environment or {})
        self._answer = answer
        self._queue: deque[tuple[int, str]] = deque()
        self._outcomes: list[Outcome] = []
        self._workers: list[_Worker] = []
        self._tickets = 0
        self._started = 0
        self._false_starts = 0
        _sweep(logs)

    def submit(self, job: str) -> int:
        """Hand the job to an idle worker, or to the next that becomes one."""
        self._tickets += 1
        self._queue.append((self._tickets, job))
        self._assign()
        return self._tickets

    def wait(self, timeout: float | None = None) -> Sequence[Outcome]:
        """Watch the workers until there is an outcome."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self._outcomes:
            if not self._queue and all(worker.ticket is None for worker in self._workers):
                break
            left = _TICK if until is None else min(_TICK, until - time.monotonic())
            if left <= 0 and until is not None:
                break
            self._look(max(left, 0.0))
        found, self._outcomes = self._outcomes, []
        return found

    def cancel(self, ticket: int) -> None:
        """Take the job back, with the worker that does it."""
        for place, (number, _job) in enumerate(self._queue):
            if number == ticket:
                del self._queue[place]
                self._outcomes.append(Outcome(ticket=ticket, status="cancelled"))
                return
        for worker in list(self._workers):
            if worker.ticket == ticket:
                self._dismiss(worker, "cancelled", "")
                self._assign()
                return

    def close(self) -> None:
        """End every worker with all that it started: TERM, then KILL."""
        self._queue.clear()
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.terminate()
        until = time.monotonic() + PATIENCE  # for all of them together
        for worker in workers:
            worker.kill(until - time.monotonic())

    # -- workers -------------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        while self._queue:
            idle = next((worker for worker in self._workers if worker.ready and worker.ticket is None), None)
            if idle is None:
                starting = sum(not worker.ready for worker in self._workers)
                while len(self._workers) < self.capacity and starting < len(self._queue):
                    self._start()
                    starting += 1
                return
            ticket, job = self._queue.popleft()
            idle.take(ticket, job)

    def _start(self) -> None:
        self._started += 1
        log = self._logs / f"worker-{os.getpid()}-{self._started}.log"
        try:
            self._workers.append(_Worker(log, self._environment, self._answer))
        except OSError as error:
            raise WorkerError(f"a worker process cannot be started ({error.strerror or error})") from error

    def _look(self, seconds: float) -> None:
        """Hear the workers for at most so long, and see which of them are gone, late or stopped."""
        with DefaultSelector() as selector:
            for worker in self._workers:
                worker.feed()
                for stream in worker.open_streams():
                    selector.register(stream, EVENT_READ, worker)
            for key, _events in selector.select(seconds):
                worker = key.data
                if key.fileobj is worker.output:
                    worker.keep_output()
                else:
                    for message in worker.hear():
                        self._take(worker, message)
        now = time.monotonic()
        for worker in list(self._workers):
            self._check(worker, now)
        self._assign()

    def _take(self, worker: _Worker, message: dict[str, object]) -> None:
        if "ready" in message:
            worker.ready = True
            self._false_starts = 0
        elif "reply" in message and worker.ticket is not None:
            self._outcomes.append(Outcome(ticket=worker.ticket, status="done", reply=str(message["reply"])))
            worker.ticket = None
            left = message.get("left")
            if left:
                # Threads of a plugin that go on would meddle with the next job.
                self._listener(self._tickets, json.dumps({"warn": f"a plugin left {left}; its worker was replaced"}))
                self._remove(worker)
        elif "tell" in message and worker.ticket is not None:
            self._listener(worker.ticket, str(message["tell"]))

    def _check(self, worker: _Worker, now: float) -> None:
        gone = worker.gone()
        if gone is not None:
            for message in worker.hear():
                self._take(worker, message)
            self._dismiss(worker, "lost", gone)
        elif not worker.ready and now - worker.since > READY:
            self._dismiss(worker, "lost", f"not ready after {READY:g} s")
        elif worker.ticket is not None and self._limit is not None and now - worker.since > self._limit:
            self._dismiss(worker, "late", f"stopped after {self._limit:g} s, the time limit")
        elif worker.stopped_for(now) > STOPPED:
            self._dismiss(worker, "lost", f"stopped by a signal for {STOPPED:g} s")

    def _dismiss(self, worker: _Worker, status: Status, why: str) -> None:
        """Remove a worker; its job, if it has one, gets this outcome."""
        self._remove(worker)
        if worker.ticket is not None:
            self._outcomes.append(Outcome(ticket=worker.ticket, status=status, why=why, log=worker.tail()))
        elif not worker.ready:
            self._false_starts += 1
            if self._false_starts >= FALSE_STARTS:
                last = worker.tail().strip().splitlines()[-1:] or [""]
                raise WorkerError(
                    f"{self._false_starts} worker processes in a row died before they were ready ({why}; {last[0]}); "
                    f"their output is in {worker.log}; --in-process runs without them"
                )

    def _remove(self, worker: _Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        worker.terminate()
        worker.kill()


def _sweep(logs: Path) -> None:
    """Remove what workers of long ago have printed."""
    with contextlib.suppress(OSError):  # another's file stays
        for old in sorted(logs.glob("worker-*.log"), key=lambda path: path.lstat().st_mtime)[:-LOGS]:
            old.unlink()


def _where_we_are() -> dict[str, str]:
    """Return where a worker finds this package, if it is not installed but lies in the directory that Python was
    started from, which ``-P`` hides."""
    home = str(Path(autoshield_bench.__file__).parents[1])
    if sys.path[:1] not in ([""], [home]):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))}


class _Worker:
    """One worker process as its parent sees it."""

    def __init__(self, log: Path, environment: Mapping[str, str], answer: str) -> None:
        self._sign = secrets.token_hex(8)
        """Stands in every message of the worker's own: what a plugin wrote into the pipe has none."""
        read, write = os.pipe()
        try:
            self._process = subprocess.Popen(
                # -P: whatever lies in the working directory is not a library.
                [sys.executable, "-P", "-m", _WORKER, str(write), answer, self._sign],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                bufsize=0,
                start_new_session=True,
                env={**os.environ, **_where_we_are(), **environment},
            )
        finally:
            os.close(write)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self.output: IO[bytes] = self._process.stdout
        self.answers: IO[bytes] = os.fdopen(read, "rb", buffering=0)
        for stream in (self._input, self.output, self.answers):
            os.set_blocking(stream.fileno(), False)
        self._unsent = b""
        self._closed: set[int] = set()
        self._pending = b""
        self._kept = deque[bytes](maxlen=1 + _TAIL // 256)
        self._written = 0
        self._stopped_since: float | None = None
        self.log = log
        self.ready = False
        self.ticket: int | None = None
        self.since = time.monotonic()
        """When it was started or got its job."""

    def take(self, ticket: int, job: str) -> None:
        """Hand a job over. A worker that is gone by then is found out by ``gone``."""
        self.ticket, self.since = ticket, time.monotonic()
        self._unsent = job.encode() + b"\n"
        self.feed()

    def feed(self) -> None:
        """Hand over what the pipe takes now: a worker that does not read holds nobody up."""
        with contextlib.suppress(OSError):
            while self._unsent:
                self._unsent = self._unsent[os.write(self._input.fileno(), self._unsent) :]

    def open_streams(self) -> Iterator[IO[bytes]]:
        """Yield what can still be read."""
        for stream in (self.output, self.answers):
            if stream.fileno() not in self._closed:
                yield stream

    def hear(self) -> Iterator[dict[str, object]]:
        """Yield the messages that have come."""
        heard = 0
        lines: list[bytes] = []
        # At most so much at a time: whoever floods the pipe must not keep the others and the clock from being seen.
        while heard < _AT_ONCE and (chunk := self._read(self.answers)):
            heard += len(chunk)
            *whole, self._pending = (self._pending + chunk).split(b"\n")
            lines += whole
            if len(self._pending) > _LONGEST_LINE:
                self._pending = b""  # a plugin wrote into the pipe
        for line in lines:
            if self._sign.encode() not in line:
                continue  # a plugin's
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(message, dict) and message.get("sign") == self._sign:
                yield message

    def keep_output(self) -> None:
        """Keep what was printed: its beginning in the log, its end in memory."""
        seen = 0
        while seen < _AT_ONCE and (chunk := self._read(self.output)):
            seen += len(chunk)
            for start in range(0, len(chunk), 256):
                self._kept.append(chunk[start : start + 256])
            room = LARGEST_LOG - self._written
            if room > 0:
                with contextlib.suppress(OSError):  # a full disk is found out where it matters
                    self.log.parent.mkdir(parents=True, exist_ok=True)
                    with self.log.open("ab") as stream:
                        stream.write(chunk[:room])
            self._written += len(chunk)

    def tail(self) -> str:
        """Return the end of what was printed."""
        self.keep_output()
        return b"".join(self._kept)[-_TAIL:].decode("utf-8", "replace")

    def gone(self) -> str | None:
        """Return how the process ended; None while it lives."""
        code = self._process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"left with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = ", as when memory runs out" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"

    def stopped_for(self, now: float) -> float:
        """Return for how many seconds the process has been stopped (SIGSTOP); 0 where it runs."""
        try:
            seen = os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
        except (ChildProcessError, AttributeError):
            return 0.0
        if seen is not None:
            self._stopped_since = now if seen.si_code == os.CLD_STOPPED else None
        return 0.0 if self._stopped_since is None else now - self._stopped_since

    def terminate(self) -> None:
        """Ask the process and all that it started to end."""
        self._signal(signal.SIGTERM)

    def kill(self, patience: float | None = None) -> None:
        """End them, after so many seconds, ``PATIENCE`` where nothing is said, in which they may do so themselves."""
        left = PATIENCE if patience is None else patience
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.0 if self._stopped_since is not None else max(left, 0.0))
        self._signal(signal.SIGKILL)
        self._process.wait()
        self.keep_output()
        for stream in (self._input, self.output, self.answers):
            with contextlib.suppress(OSError):
                stream.close()
        self._closed |= {-1}

    def _signal(self, number: int) -> None:
        # The group outlives its leader as long as anybody is in it, and its number is not given again until then.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _read(self, stream: IO[bytes]) -> bytes:
        if stream.closed:
            return b""
        try:
            chunk = os.read(stream.fileno(), _CHUNK)
        except BlockingIOError:
            return b""
        except OSError:
            chunk = b""
        if not chunk:
            self._closed.add(stream.fileno())
        return chunk
