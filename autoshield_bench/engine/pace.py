"""How fast work goes, by the journals of earlier runs on this machine: the same work on another seed tells most."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from autoshield_bench.engine.journal import read_events


@dataclass(frozen=True)
class Timing:
    """How long one piece of work took."""

    stage: str
    """``train``, ``fit``, ``attack``; ``score`` for all the rest of a cell; ``evidence``."""
    place: str
    """Id of the cell, or of the worst case that was judged."""
    images: int
    passes: int
    """Image-passes, forward and backward; 0 where nobody counted."""
    seconds: float


def read_timings(directory: Path) -> Iterator[Timing]:
    """Yield what the journals of a results directory say of work that came to its end."""
    stages: dict[str, float] = {}
    for event in read_events(directory):
        try:
            seconds, kind = float(event["seconds"]), event["event"]
            if not math.isfinite(seconds) or seconds < 0:
                continue
            if kind == "judged":
                yield Timing("evidence", str(event["where"]), 1, 0, seconds)
                continue
            cell = str(event["cell"])
            if kind == "cell" and event["ok"] is True:
                stages[cell] = stages.get(cell, 0.0) + seconds
                yield Timing(str(event["stage"]), cell, max(int(event["images"]), 1), int(event["passes"]), seconds)
            elif kind == "done" and event["status"] == "ok":
                yield Timing("score", cell, 1, 0, max(seconds - stages.pop(cell, 0.0), 0.0))
        except (ValueError, KeyError, TypeError, ArithmeticError):
            continue


class Pace:
    """Tells how long work takes. ``bounds``: image-passes at most, by stage and place, of work that may be timed."""

    def __init__(self, timings: Iterable[Timing], bounds: Mapping[tuple[str, str], int]) -> None:
        self._per_image: dict[tuple[str, str], list[float]] = {}
        self._per_pass: dict[tuple[str, str], list[float]] = {}
        self._shares: dict[tuple[str, str], list[float]] = {}
        for own in timings:
            self._per_image.setdefault((own.stage, _seedless(own.place)), []).append(own.seconds / own.images)
            for kind in {_kind(own.place), ""}:
                if own.passes > 0:
                    self._per_pass.setdefault((own.stage, kind), []).append(own.seconds / own.passes)
                    if bound := bounds.get((own.stage, own.place)):
                        self._shares.setdefault((own.stage, kind), []).append(min(own.passes / bound, 1.0))
                elif own.stage in ("score", "evidence"):
                    self._per_pass.setdefault((own.stage, kind), []).append(own.seconds)

    def seconds(self, stage: str, place: str, images: int, passes: int | None) -> float | None:
        """Return how long a piece of work would take; None where nothing like it was ever timed.

        First by the same work on other seeds. Else by image-passes: an attack whose images leave when they fall, or
        that a defense stops early, spends a share of what it may, which others of its kind tell.
        """
        if known := self._per_image.get((stage, _seedless(place))):
            return median(known) * (1 if stage in ("score", "evidence") else images)
        for kind in (_kind(place), ""):
            if rates := self._per_pass.get((stage, kind)):
                if stage in ("score", "evidence"):
                    return median(rates)
                return None if passes is None else median(rates) * passes * median(self._shares.get((stage, kind), [1]))
        return None


def _seedless(place: str) -> str:
    return re.sub(r"/seed-\d+$", "", place)


def _kind(place: str) -> str:
    """Return attack, access and ball of a cell's id, or its last part."""
    return "/".join(_seedless(place).split("/")[3:])


def known_timings(directory: Path) -> list[Timing]:
    """Return what is known of a suite; where its own directory tells nothing, what its neighbours do."""
    own = list(read_timings(directory))
    if own or not directory.parent.is_dir():
        return own
    found: list[Timing] = []
    for beside in sorted(directory.parent.iterdir()):
        if beside.is_dir() and not beside.is_symlink():
            found += read_timings(beside)
    return found
