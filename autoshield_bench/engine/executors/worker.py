"""The worker process: takes jobs as lines on standard input, answers through the file descriptor it was given.

Started by ``local`` as ``python -m autoshield_bench.engine.executors.worker FD MODULE:FUNCTION SIGN``, where the
function does a job, handed what to tell while it runs, and returns the reply. Every message carries the sign.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import platform
import select
import signal
import sys
import threading
import time
from typing import Any

from autoshield_bench.engine.executors import Answer
from autoshield_bench.engine.process import prepare_process

_PR_SET_PDEATHSIG = 1
_GRACE = 1.0
"""Seconds that a plugin's threads get to end after its job."""


def main() -> int:
    """Do jobs until standard input ends."""
    _watch_parent(int(sys.argv[1]))
    _die_with_parent()
    answers = os.fdopen(int(sys.argv[1]), "wb", buffering=0)
    os.set_inheritable(answers.fileno(), False)
    jobs = _Jobs()
    prepare_process()
    module, _, name = sys.argv[2].partition(":")
    answer: Answer = getattr(importlib.import_module(module), name)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            # A line of its own, whatever a plugin has left in the pipe.
            answers.write(b"\n" + json.dumps({**message, "sign": sys.argv[3]}).encode() + b"\n")

    send({"ready": os.getpid()})
    while (job := jobs.next()) is not None:
        before = set(threading.enumerate())
        reply = answer(job, lambda message: send({"tell": message}))
        sys.stdout.flush()
        sys.stderr.flush()
        send({"reply": reply, "left": _left_behind(before)})
    return 0


class _Jobs:
    """Reads jobs, and kills the whole group as soon as the parent is gone, whatever a plugin is doing."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._arrived = threading.Condition()
        # A plugin must not read the jobs: its standard input is empty.
        self._stream = os.fdopen(os.dup(0), "r", encoding="utf-8")
        os.set_inheritable(self._stream.fileno(), False)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        threading.Thread(target=self._read, name="jobs", daemon=True).start()

    def next(self) -> str | None:
        """Return the next job, once there is one."""
        with self._arrived:
            while not self._lines:
                self._arrived.wait()
            return self._lines.pop(0)

    def _read(self) -> None:
        for line in self._stream:
            with self._arrived:
                self._lines.append(line)
                self._arrived.notify()
        os.killpg(0, signal.SIGKILL)


def _watch_parent(answers: int) -> None:
    """Have a process of the group kill it when nobody reads the answers any more.

    What a plugin has started is of the group too; the kernel ends this process with its parent, and no other.
    """
    if os.fork():
        return
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    watch = select.poll()
    watch.register(answers, 0)
    while not any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _fd, event in watch.poll()):
        pass
    os.killpg(0, signal.SIGKILL)


def _die_with_parent() -> None:
    # Where a job holds the interpreter lock for ever, the thread that watches the parent does not run: Linux can do it.
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _left_behind(before: set[threading.Thread]) -> str:
    """Return what threads a job has left running, in words; empty where there is none."""
    until = time.monotonic() + _GRACE
    while True:
        left = [own.name for own in threading.enumerate() if own not in before and not _ours(own)]
        if not left or time.monotonic() > until:
            return f"{len(left)} threads running, such as {left[0]!r}"[:200] if left else ""
        time.sleep(0.05)


def _ours(thread: threading.Thread) -> bool:
    # Some libraries keep a thread for themselves, such as tqdm's monitor; they are daemons and do no computing.
    return type(thread).__module__.partition(".")[0] in {"tqdm"}


if __name__ == "__main__":
    sys.exit(main())
