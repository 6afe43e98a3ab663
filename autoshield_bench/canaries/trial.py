"""The trial: every canary and every sound defense through the harness, as a user would run them, and what it said.

The suites share one classifier. The *naive* one attacks by plain PGD on the cross-entropy along the declared
gradients, which is what a careless author does, and under which most canaries look like good defenses: it is the
evidence that has to tell. The *routes* one takes every gradient route, and the attack on the bare classifier as well:
who merely hides scores must fall to it. The *fit* one, and for a network that is really robust the *targeted* one,
attack sound defenses as they should be, and they must pass.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autoshield_bench.canaries import manifest
from autoshield_bench.canaries.catalogue import CANARIES, SOUND, STRENGTHS, Canary, Sound
from autoshield_bench.canaries.data import TEST_SIZE
from autoshield_bench.errors import UsageError
from autoshield_bench.leaderboard import build
from autoshield_bench.registry import Registry
from autoshield_bench.results import ResultSet
from autoshield_bench.suite_check import check_suite
from autoshield_bench.suite_file import SuiteDocument
from autoshield_bench.verdicts import Verdict

EPS = 0.2
"""L-infinity radius at which next to nothing stands without a defense."""

LOW = 0.1
"""Largest worst case that counts as low."""

_GRAY: dict[str, Any] = {"use": "pgd", "access": ["gray-box"], "params": {"steps": 20}}

_ROUTES: dict[str, Any] = {
    "use": "pgd",
    "label": "pgd-routes",
    "access": ["white-box"],
    "params": {"loss": "margin", "steps": 20, "restarts": 2},
    "paths": "all",
    "stop_on_success": True,
    "eot": 4,
}

_DRAWN: list[dict[str, Any]] = [
    _GRAY,
    {"use": "apgd", "access": ["white-box"], "params": {"loss": "margin", "steps": 24}, "eot": 4},
]
"""For noise, where every gradient costs several passes, and every image is judged by many draws."""

_ATTACKS: dict[str, list[dict[str, Any]]] = {
    "naive": [{"use": "pgd", "access": ["white-box"], "params": {"steps": 20}}],
    "routes": [_GRAY, _ROUTES],
    "fit": [
        _GRAY,
        _ROUTES,
        {"use": "apgd", "access": ["white-box"], "params": {"loss": "margin", "steps": 40}},
    ],
    # A detector is judged by the joint game, which needs an attack that stays under its threshold.
    "aware": [{"use": "detector-pgd", "access": ["white-box"], "params": {"refinements": 0}}],
    "drawn": _DRAWN,
    "noisy": _DRAWN,
    "l2": [
        _GRAY,
        {"use": "apgd", "access": ["white-box"], "params": {"loss": "margin", "steps": 40}, "stop_on_success": True},
    ],
    # What really stands needs an attack that finds nearly all there is to find.
    "targeted": [
        _GRAY,
        {"use": "apgd", "access": ["white-box"], "params": {"loss": "targeted-margin", "steps": 20}},
    ],
}

_THREATS: dict[str, dict[str, Any]] = {
    "l2": {"norm": "l2", "eps": [1.0]},
    # So small that the noise, and not the attack, decides about most images.
    "noisy": {"norm": "linf", "eps": [0.04]},
}
"""Where a suite does not attack within the usual ball."""

_AT_ONCE = 4
"""Defenses that a worker takes at a time."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of one defense."""

    name: str
    strength: int | None
    """None for a sound one."""
    expected: tuple[str, ...]
    """The checks meant for it; empty for a sound one, and for one whose worst case must be low."""
    verdicts: tuple[Verdict, ...]
    worst_case: float | None
    """Worst case of the suite's own attacks; None where there is none, since an attack found no gradient."""
    errors: tuple[str, ...] = ()
    """What failed before there was anything to judge."""

    @property
    def label(self) -> str:
        """Name and strength."""
        return self.name if self.strength is None else f"{self.name}-{self.strength}"

    @property
    def failed(self) -> tuple[str, ...]:
        """Return the checks that failed."""
        return tuple(own.check for own in self.verdicts if own.ruling == "fail")

    @property
    def right(self) -> bool:
        """Whether the harness judged it as it should."""
        if self.strength is None:
            return self.worst_case is not None and bool(self.verdicts) and not any(v.costs_rank for v in self.verdicts)
        if not self.expected:
            return self.worst_case is not None and self.worst_case <= LOW
        return any(check in self.expected for check in self.failed)

    @property
    def ruling(self) -> str:
        """The judgement in a word or two."""
        if self.strength is None:
            return "passed" if self.right else "FALSE ALARM"
        if not self.expected:
            return "fell" if self.right else "MISSED"
        return "caught" if self.right else "MISSED"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**asdict(self), "failed": list(self.failed), "right": self.right}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The whole trial."""

    findings: tuple[Finding, ...]
    seconds: float

    @property
    def canaries(self) -> tuple[Finding, ...]:
        """Return what became of the canaries."""
        return tuple(own for own in self.findings if own.strength is not None)

    @property
    def sound(self) -> tuple[Finding, ...]:
        """Return what became of the sound defenses."""
        return tuple(own for own in self.findings if own.strength is None)

    @property
    def misses(self) -> tuple[Finding, ...]:
        """Return the canaries that were not caught."""
        return tuple(own for own in self.canaries if not own.right)

    @property
    def false_alarms(self) -> tuple[Finding, ...]:
        """Return the sound defenses that did not pass."""
        return tuple(own for own in self.sound if not own.right)

    @property
    def summary(self) -> str:
        """Return the counts and the time in one line."""
        return (
            f"{len(self.canaries)} canaries, misses: {len(self.misses)}; {len(self.sound)} sound defenses, "
            f"false alarms: {len(self.false_alarms)}; {self.seconds:.0f} s"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "canaries": len(self.canaries),
            "misses": len(self.misses),
            "sound": len(self.sound),
            "false_alarms": len(self.false_alarms),
            "seconds": round(self.seconds, 1),
            "findings": [own.to_json() for own in self.findings],
        }


def hold(
    pattern: str | None = None, *, workers: int = 2, tell: Callable[[Finding], None] = lambda _finding: None
) -> Report:
    """Run the trial, or of it the defenses whose label (``quantiser-2``, ``blur``) matches a shell pattern.

    Everything is made afresh in a temporary directory, by ``workers`` processes of one thread each (with one: in this
    process); ``tell`` hears of each defense as soon as it is judged. Raises UsageError where nothing matches.
    """
    began = time.perf_counter()
    labels = [own.label for own in _everything() if pattern is None or fnmatchcase(own.label, pattern)]
    if not labels:
        raise UsageError(f"--only {pattern!r} matches none of {', '.join(own.label for own in _everything())}")
    found: dict[str, Finding] = {}
    with TemporaryDirectory(prefix="aubench-canaries-", ignore_cleanup_errors=True) as folder:
        for findings in _spread(_parts(labels), folder, workers):
            for own in findings:
                found[own.label] = own
                tell(own)
    return Report(findings=tuple(found[label] for label in labels), seconds=time.perf_counter() - began)


def _spread(parts: Sequence[tuple[str, ...]], folder: str, workers: int) -> Iterator[tuple[Finding, ...]]:
    if workers == 1 or len(parts) == 1:
        for part in parts:
            yield judged(part, folder)
        return
    # Spawned, not forked: a forked child of a process that has used OpenMP may hang.
    pool = ProcessPoolExecutor(min(workers, len(parts)), mp_context=multiprocessing.get_context("spawn"))
    try:
        for done in as_completed([pool.submit(judged, part, folder) for part in parts]):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _parts(labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the labels in groups of one suite each, those that take longest first."""
    parts = []
    for name in reversed(_ATTACKS):
        own = [each.label for each in _everything() if each.suite == name and each.label in labels]
        parts += [tuple(own[start : start + _AT_ONCE]) for start in range(0, len(own), _AT_ONCE)]
    return parts


def judged(labels: Sequence[str], folder: str) -> tuple[Finding, ...]:
    """Run some defenses of one suite; networks are kept below ``folder``, where others find them."""
    # Here, not above: who hands the work to others needs no torch, and they start the sooner.
    from autoshield_bench.engine.runner import run

    chosen = [own for own in _everything() if own.label in labels]
    document = suite(chosen[0].suite, labels[0], [own.entry for own in chosen])
    results = run(
        check_suite(SuiteDocument.from_dict(document), _registry(), Path(folder)),
        results_dir=Path(folder) / "results",
        cache_dir=Path(folder) / "cache",
        device="cpu",
        threads=1,
        batch_size=TEST_SIZE,  # all at once: what so small a network costs is the calls
        evidence="full",
    )
    return tuple(_finding(own, results) for own in chosen)


def suite(attacks: str, part: str, defenses: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a suite as its file would hold it."""
    return {
        "schema": 1,
        "name": f"canaries-{attacks}-{part}",
        "dataset": {"use": "canary-digits"},
        "model": {"use": "small-cnn", "params": {"features": 8, "epochs": 20}},
        "threats": [_THREATS.get(attacks, {"norm": "linf", "eps": [EPS]})],
        "defenses": list(defenses),
        "attacks": _ATTACKS[attacks],
    }


@functools.cache
def _registry() -> Registry:
    return Registry.discover([manifest])


@dataclass(frozen=True)
class _Candidate:
    who: Canary | Sound
    strength: int | None

    @property
    def suite(self) -> str:
        return self.who.suite

    @property
    def entry(self) -> dict[str, Any]:
        return self.who.entry(self.strength or 0) if isinstance(self.who, Canary) else self.who.entry()

    @property
    def label(self) -> str:
        return str(self.entry["label"])


def _everything() -> list[_Candidate]:
    return [
        *(_Candidate(own, strength) for own in CANARIES for strength in STRENGTHS),
        *(_Candidate(own, None) for own in SOUND),
    ]


def _finding(own: _Candidate, results: ResultSet) -> Finding:
    records = [record for record in results if record.cell.defense == own.label]
    (row,) = (row for board in build(results) for row in board.rows if row.defense == own.label)
    found = [each for each in results.evidence if each.where.defense == own.label]
    return Finding(
        name=own.who.name if isinstance(own.who, Canary) else own.who.use,
        strength=own.strength,
        expected=own.who.checks if isinstance(own.who, Canary) else (),
        verdicts=tuple(verdict for each in found for verdict in each.verdicts),
        worst_case=None if row.worst_case is None else row.worst_case.share,
        errors=tuple(record.error for record in records if record.error),
    )
