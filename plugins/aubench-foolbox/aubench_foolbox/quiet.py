"""Keeps foolbox from printing, logging and warning, and leaves the process as it was. Imports no foolbox."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

_GIT = "GIT_PYTHON_REFRESH"


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what foolbox's own modules warn and log during the block; what others say still passes."""
    root = logging.getLogger()
    # logging.info(), which foolbox calls, would otherwise give the root logger a handler that stays.
    nowhere = logging.NullHandler()
    root.addHandler(nowhere)
    root.addFilter(_not_of_foolbox)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"foolbox\.")
            yield
    finally:
        root.removeFilter(_not_of_foolbox)
        root.removeHandler(nowhere)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Let foolbox be imported without warnings of scipy, and where there is no git: GitPython would refuse."""
    before = os.environ.get(_GIT)
    os.environ.setdefault(_GIT, "quiet")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            os.environ.pop(_GIT, None)


def _not_of_foolbox(record: logging.LogRecord) -> bool:
    return "foolbox" not in PurePath(record.pathname).parts
