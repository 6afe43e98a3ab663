"""Warnings on stderr: one line each."""

from __future__ import annotations

import contextlib
import logging
import sys

from autoshield_bench.reporting.text import visible


def say(line: str) -> None:
    """Print a line on standard error. Where nobody reads it, what is under way goes on all the same."""
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def warn(message: str) -> None:
    """Print a warning as one line, with control characters made visible."""
    say(f"warning: {visible(message)}")


class WarningHandler(logging.Handler):
    """Shows the harness's own log records from level INFO as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if record.levelno >= logging.WARNING:
            warn(record.getMessage())
        else:
            say(record.getMessage())


def show_log() -> None:
    """Let the harness's log reach stderr."""
    logger = logging.getLogger("autoshield_bench")
    if not any(isinstance(handler, WarningHandler) for handler in logger.handlers):
        logger.addHandler(WarningHandler(logging.INFO))
        logger.setLevel(logging.INFO)
        logger.propagate = False
