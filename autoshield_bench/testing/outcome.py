"""What a check comes to: passed, failed with the numbers, or not judged with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["passed", "failed", "not judged"]


class ContractViolation(AssertionError):
    """A plugin breaks its contract; the message is one line with the numbers."""


class NotJudged(Exception):
    """A check that says nothing about this plugin: it does not apply, or what it builds on is broken already.

    So one mistake makes one check fail, and not every check that builds on it.
    """


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one check came to."""

    check: str
    verdict: Verdict
    message: str = ""
    """What is wrong, or why it was not judged; empty where it passed."""

    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return {
            "check": self.check,
            "verdict": self.verdict,
            "message": self.message,
            "seconds": round(self.seconds, 3),
        }


def require(holds: object, message: str) -> None:
    """Raise ContractViolation with the message unless something holds."""
    if not bool(holds):
        raise ContractViolation(message)
