"""What a run tells whoever watches it; the command line shows it, library use may leave it out."""

from __future__ import annotations

from typing import Protocol

from autoshield_bench.results import CellRecord
from autoshield_bench.verdicts import EvidenceRecord


class Progress(Protocol):
    """Receives the events of a run."""

    def begin(self, cells: int, finished: int) -> None:
        """The plan has ``cells`` cells, ``finished`` of them from an earlier run."""

    def stage(self, title: str, total: int) -> None:
        """A stage begins that will work through ``total`` images."""

    def advance(self, done: int) -> None:
        """The stage has worked through ``done`` images so far."""

    def cell(self, record: CellRecord, seconds: float) -> None:
        """A cell is finished and on disk."""

    def judged(self, evidence: EvidenceRecord, seconds: float) -> None:
        """A worst-case estimate was judged, and the verdicts are on disk."""

    def warn(self, message: str) -> None:
        """Something a user should know."""

    def end(self) -> None:
        """The run is over, well or not."""


class Silence:
    """Tells nothing."""

    def begin(self, cells: int, finished: int) -> None:
        """Ignore."""

    def stage(self, title: str, total: int) -> None:
        """Ignore."""

    def advance(self, done: int) -> None:
        """Ignore."""

    def cell(self, record: CellRecord, seconds: float) -> None:
        """Ignore."""

    def judged(self, evidence: EvidenceRecord, seconds: float) -> None:
        """Ignore."""

    def warn(self, message: str) -> None:
        """Ignore."""

    def end(self) -> None:
        """Ignore."""
