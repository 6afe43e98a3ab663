"""Progress on stderr: live on a terminal, one plain line per cell otherwise."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from autoshield_bench.cli.warnings import say, warn
from autoshield_bench.engine.progress import Progress, Silence
from autoshield_bench.reporting.text import visible

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from autoshield_bench.results import CellRecord
    from autoshield_bench.verdicts import EvidenceRecord


def watcher(*, quiet: bool) -> Progress:
    """Return what fits the terminal."""
    if quiet:
        return Silence()
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()


class PlainProgress(Silence):
    """One line per finished cell."""

    def __init__(self) -> None:
        self._cells = 0
        self._done = 0

    def begin(self, cells: int, finished: int) -> None:
        """Say how much there is to do."""
        self._cells, self._done = cells, finished
        self.line(f"{cells} cells, {finished} of them finished already")

    def cell(self, record: CellRecord, seconds: float) -> None:
        """Say what the cell came to."""
        self._done += 1
        self.line(f"[{self._done}/{self._cells}] {summary(record)} ({seconds:.1f} s)")

    def judged(self, evidence: EvidenceRecord, seconds: float) -> None:
        """Say what the verdicts came to."""
        self.line(f"{judgement(evidence)} ({seconds:.1f} s)")

    def warn(self, message: str) -> None:
        """Print the warning."""
        warn(message)

    def line(self, text: str) -> None:
        """Print a line."""
        say(text)


class LiveProgress(Silence):
    """Two bars: the cells, and the stage with its images per second and the time left."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._began = 0.0

    def begin(self, cells: int, finished: int) -> None:
        """Open the bars, unless there is nothing to do."""
        if finished == cells:
            sys.stderr.write(f"{cells} cells, all finished already\n")
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars.start()
        self._all = self._bars.add_task("cells", total=cells, completed=finished, rate="")
        self._stage = self._bars.add_task("preparing", total=None, rate="")

    def stage(self, title: str, total: int) -> None:
        """Start the lower bar again for another stage."""
        if self._bars is not None:
            self._began = time.perf_counter()
            self._bars.reset(self._stage, total=total, description=visible(title), rate="")

    def advance(self, done: int) -> None:
        """Move the lower bar."""
        if self._bars is not None:
            seconds = max(time.perf_counter() - self._began, 1e-9)
            self._bars.update(self._stage, completed=done, rate=f"{done / seconds:,.0f} images/s")

    def cell(self, record: CellRecord, seconds: float) -> None:
        """Leave a line for the cell and move the upper bar."""
        if self._bars is not None:
            from rich.text import Text

            self._bars.console.print(Text(f"{summary(record)} ({seconds:.1f} s)"))
            self._bars.advance(self._all)

    def judged(self, evidence: EvidenceRecord, seconds: float) -> None:
        """Leave a line for the verdicts."""
        if self._bars is not None:
            from rich.text import Text

            self._bars.console.print(Text(f"{judgement(evidence)} ({seconds:.1f} s)"))

    def warn(self, message: str) -> None:
        """Print the warning."""
        warn(message)

    def end(self) -> None:
        """Close the bars."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def judgement(evidence: EvidenceRecord) -> str:
    """Return what the verdicts on a worst case came to, in one line."""
    against = [own.check for own in evidence.verdicts if own.costs_rank]
    return f"{visible(str(evidence.where))}: evidence " + (
        f"against a rank: {', '.join(against)}" if against else "well"
    )


def summary(record: CellRecord) -> str:
    """Return what a cell came to, in one line."""
    if record.outcomes is None:
        return visible(f"{record.cell}: FAILED: {record.error}")
    outcomes = record.outcomes
    return f"{visible(str(record.cell))}: {outcomes.right / outcomes.n:.4f} of {outcomes.n} correct"
