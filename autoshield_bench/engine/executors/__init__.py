"""Where jobs are done: a seam behind which stand this process, supervised worker processes, or something distributed.

A job is a text, the canonical JSON of ``engine.jobs``, and what it makes goes into the store: nothing but texts passes
through the seam. An executor keeps nothing that a rescan of the store does not give back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Status = Literal["done", "lost", "late", "cancelled"]
"""``done``: the job was answered. ``lost``: whoever did it is gone. ``late``: it was stopped at the time limit.
``cancelled``: it was taken back."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job."""

    ticket: int
    status: Status
    reply: str = ""
    """The job's answer, JSON; empty unless it is done."""
    why: str = ""
    """How it was lost or stopped, in a phrase."""
    log: str = ""
    """Last lines that whoever did it wrote to its standard output and error, where it is lost or late."""


Listener = Callable[[int, str], None]
"""Hears what jobs tell while they run: the ticket, and a message, JSON."""


Answer = Callable[[str, Callable[[str], None]], str]
"""Does a job, handed what to tell while it runs, and returns the reply."""


class Executor(Protocol):
    """Does jobs. One thread uses it; errors of a job are answers, and never raised here."""

    @property
    def capacity(self) -> int:
        """Jobs that are worth having under way at once."""

    def submit(self, job: str) -> int:
        """Take a job and return a ticket for it, a number that is not given twice."""

    def wait(self, timeout: float | None = None) -> Sequence[Outcome]:
        """Return the outcomes that are new, each once, as soon as there is one or the seconds are over.

        Returns at once where no job is under way. Raises WorkerError where no job can be done any more.
        """

    def cancel(self, ticket: int) -> None:
        """Stop a job; its outcome is ``cancelled``, unless it has one already."""

    def close(self) -> None:
        """Stop everything and let go of it; may be called twice."""
