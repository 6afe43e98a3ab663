"""Expected errors: each is shown as one line without a traceback, and each class fixes an exit code.

Anything that is not an ``AubenchError`` is a bug in the harness and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class AubenchError(Exception):
    """An expected error: what is wrong, where (file and key) and what to do, in one line."""

    exit_code = 1


class SuiteError(AubenchError):
    """A bad suite, parameter or usage: nothing ran. Holds every problem found, one line each."""

    exit_code = 2

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class UsageError(AubenchError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class PluginError(AubenchError):
    """A plugin that is asked for is missing, broken or claimed twice."""

    exit_code = 2


class PinError(SuiteError):
    """A plugin is not what plugins.lock pins: none was loaded. Holds every difference found, one line each."""


class ParameterError(AubenchError, ValueError):
    """A plugin's parameter has a value that the plugin cannot use. Raised by the plugin's ``__post_init__``."""

    exit_code = 2

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        self.message = message
        super().__init__(f"{key}: {message}")


class StoreError(AubenchError):
    """A file of the store, a result or the environment cannot be read, written or trusted."""

    exit_code = 3


class NewerSchemaError(AubenchError):
    """A file was written by a newer release than this one.

    No ``StoreError``: what cannot be trusted is computed again, but this is sound and must never be overwritten.
    """

    exit_code = 3


class WriteError(StoreError):
    """The disk refuses; raised by the host alone."""


class WorkerError(AubenchError):
    """Worker processes cannot do their work, whatever the job."""

    exit_code = 3


class DataError(AubenchError):
    """A data set or checkpoint cannot be found, fetched or trusted."""

    exit_code = 3


class CheckpointError(DataError):
    """A user's checkpoint is not what the suite says; raised by the host alone."""


class Unavailable(AubenchError):
    """Something optional cannot be had here, such as the weights of a metric; the message holds the remedy."""


class CellError(AubenchError):
    """A plugin broke a promise while a cell ran: that cell fails with the numbers, the others go on."""


class AccessError(CellError):
    """An attack asked its target for more than it declared, such as a gradient for an attack on labels."""


class GradientCut(CellError):
    """A loss does not depend on the images as far as autograd knows: a stage cuts the graph."""


class BudgetSpent(Exception):
    """The query budget of an image is spent. An attack lets it pass, and the host keeps ``best``; one that goes image
    by image takes the image's row of ``best`` and goes on."""

    def __init__(self, message: str, best: Tensor) -> None:
        super().__init__(message)
        self.best = best
        """The best point seen of each image of the batch; the clean image where there is none."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean "..."?`` for the nearest known word, else a list of what is known, else nothing."""
    choices = sorted(known)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    if choices:
        return f"; known: {', '.join(choices)}"
    return ""
