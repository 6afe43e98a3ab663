"""Jobs in this very process, one after the other: for debuggers, and for plugins that exist in memory alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from autoshield_bench.engine.executors import Answer, Listener, Outcome


class Inline:
    """Does each job while it is waited for. What ends the process ends all of them."""

    capacity = 1

    def __init__(self, answer: Answer, listener: Listener) -> None:
        self._answer = answer
        self._listener = listener
        self._waiting: deque[tuple[int, str]] = deque()
        self._cancelled: list[Outcome] = []
        self._tickets = 0

    def submit(self, job: str) -> int:
        """Keep the job for later."""
        self._tickets += 1
        self._waiting.append((self._tickets, job))
        return self._tickets

    def wait(self, timeout: float | None = None) -> Sequence[Outcome]:
        """Do the job that waits longest, however long it takes."""
        if self._cancelled:
            found, self._cancelled = self._cancelled, []
            return found
        if not self._waiting:
            return ()
        ticket, job = self._waiting.popleft()
        reply = self._answer(job, lambda message: self._listener(ticket, message))
        return (Outcome(ticket=ticket, status="done", reply=reply),)

    def cancel(self, ticket: int) -> None:
        """Forget a job that has not begun."""
        kept = deque(own for own in self._waiting if own[0] != ticket)
        if len(kept) < len(self._waiting):
            self._waiting = kept
            self._cancelled.append(Outcome(ticket=ticket, status="cancelled"))

    def close(self) -> None:
        """Forget every job."""
        self._waiting.clear()
