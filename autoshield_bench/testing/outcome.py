"""What a check comes to: passed, failed with the numbers, or not judged with the reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from autoshield_bench.errors import CellError, Unavailable

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

    remedy: str = ""
    """What the plugin's author can do about a failure; empty for the other verdicts."""

    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return {
            "check": self.check,
            "verdict": self.verdict,
            "message": self.message,
            "remedy": self.remedy,
            "seconds": round(self.seconds, 3),
        }


def require(holds: object, message: str) -> None:
    """Raise ContractViolation with the message unless something holds."""
    if not bool(holds):
        raise ContractViolation(message)


@contextlib.contextmanager
def must_not_raise(what: str) -> Iterator[None]:
    """Raise ContractViolation where the plugin raises in the block, or the host refuses what it returned.

    For checks that are about that very thing; in the others an exception says nothing about the property.
    """
    try:
        yield
    except (ContractViolation, NotJudged, Unavailable):
        raise
    except CellError as error:
        raise ContractViolation(str(error)) from error
    except Exception as error:
        raise ContractViolation(f"{what} raised {type(error).__name__}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return the message of an exception on one line, cut where it goes on and on."""
    return " ".join(str(error).split())[:400]
