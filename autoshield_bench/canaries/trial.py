"""The trial: every canary and every sound defense through the harness, as a user would run them, and what it said.

Two suites share one classifier. The *naive* one attacks by plain PGD on the cross-entropy along the declared gradients,
which is what a careless author does, and under which most canaries look like good defenses: it is the evidence that has
to tell. The *fit* one takes every gradient route with a loss that no scale can flatten, and the attack on the bare
classifier as well: under it a sound defense must pass, and one that merely hides its scores must fall.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autoshield_bench.canaries import manifest
from autoshield_bench.canaries.catalogue import CANARIES, SOUND, STRENGTHS, Canary, Sound
from autoshield_bench.engine.progress import Progress
from autoshield_bench.engine.runner import run
from autoshield_bench.errors import UsageError
from autoshield_bench.registry import Registry
from autoshield_bench.results import ResultSet
from autoshield_bench.scores import worst_case
from autoshield_bench.suite_check import check_suite
from autoshield_bench.suite_file import SuiteDocument
from autoshield_bench.verdicts import Verdict

EPS = 0.2
"""L-infinity radius at which next to nothing stands without a defense."""

LOW = 0.1
"""Largest worst case that counts as low."""

_ATTACKS: dict[str, list[dict[str, Any]]] = {
    "naive": [{"use": "pgd", "access": ["white-box"], "params": {"steps": 20}}],
    "fit": [
        {"use": "pgd", "access": ["gray-box"], "params": {"steps": 20}},
        {
            "use": "pgd",
            "label": "pgd-margin",
            "access": ["white-box"],
            "params": {"loss": "margin", "steps": 40, "restarts": 2},
            "paths": "all",
            "stop_on_success": True,
            "eot": 4,
        },
    ],
}


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


def hold(pattern: str | None = None, *, progress: Progress | None = None, threads: int | None = None) -> Report:
    """Run the trial, or of it the defenses whose label (``quantiser-2``, ``blur``) matches a shell pattern.

    Everything is made afresh in a temporary directory. Raises UsageError where nothing matches.
    """
    began = time.perf_counter()
    chosen = [own for own in _everything() if pattern is None or fnmatchcase(own[2]["label"], pattern)]
    if not chosen:
        known = ", ".join(own[2]["label"] for own in _everything())
        raise UsageError(f"--only {pattern!r} matches none of {known}")
    registry = Registry.discover([manifest])
    found: dict[str, Finding] = {}
    with TemporaryDirectory(prefix="aubench-canaries-") as folder:
        for name, attacks in _ATTACKS.items():
            own = [(who, strength, entry) for who, strength, entry in chosen if _suite_of(who) == name]
            if not own:
                continue
            document = suite(name, [entry for _, _, entry in own], attacks)
            loaded = check_suite(SuiteDocument.from_dict(document), registry, Path(folder))
            results = run(
                loaded,
                results_dir=Path(folder) / "results",
                cache_dir=Path(folder) / "cache",
                device="cpu",
                progress=progress,
                threads=threads,
            )
            for who, strength, entry in own:
                found[entry["label"]] = _finding(who, strength, entry["label"], results)
    return Report(findings=tuple(found[entry["label"]] for _, _, entry in chosen), seconds=time.perf_counter() - began)


def suite(name: str, defenses: Sequence[dict[str, Any]], attacks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a suite as its file would hold it."""
    return {
        "schema": 1,
        "name": f"canaries-{name}",
        "dataset": {"use": "canary-digits"},
        "model": {"use": "small-cnn", "params": {"features": 12, "epochs": 20}},
        "threats": [{"norm": "linf", "eps": [EPS]}],
        "defenses": list(defenses),
        "attacks": list(attacks),
    }


def _everything() -> list[tuple[Canary | Sound, int | None, dict[str, Any]]]:
    canaries = [(own, strength, own.entry(strength)) for own in CANARIES for strength in STRENGTHS]
    return [*canaries, *((own, None, {**own.entry(), "label": own.use}) for own in SOUND)]


def _suite_of(who: Canary | Sound) -> str:
    return who.trap if isinstance(who, Canary) else "fit"


def _finding(who: Canary | Sound, strength: int | None, label: str, results: ResultSet) -> Finding:
    records = [own for own in results if own.cell.defense == label]
    score, _gap = worst_case(records)
    return Finding(
        name=who.name if isinstance(who, Canary) else who.use,
        strength=strength,
        expected=who.checks if isinstance(who, Canary) else (),
        verdicts=tuple(verdict for own in results.evidence if own.where.defense == label for verdict in own.verdicts),
        worst_case=None if score is None or any(own.error for own in records) else score.share,
        errors=tuple(own.error for own in records if own.error),
    )
