"""What passes through the seam: a job as canonical JSON, and the reply to it.

A job says everything: whoever does it reads the suite, makes the plan anew and sees from its digest whether it is the
same plan. What it makes goes into the store, and the reply holds no more than how long it took.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoshield_bench import errors
from autoshield_bench.engine.options import RunOptions
from autoshield_bench.errors import AubenchError, WorkerError
from autoshield_bench.plan import Plan
from autoshield_bench.store import canonical, content_key
from autoshield_bench.suite_check import LoadedSuite

Kind = Literal["cell", "evidence"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cell to compute, or one worst-case estimate to judge."""

    suite: str
    """The suite file; empty where the suite is in memory alone."""
    plugins: tuple[str, ...]
    """Plugins that are single files."""
    options: Mapping[str, Any]
    plan: str
    """Digest of the plan."""
    kind: Kind
    key: str
    lock: str = ""
    """The plugins.lock that every plugin must agree with; empty where none was asked for."""
    made: tuple[str, ...] = ()
    """Artifacts that this run has made: with ``force``, those are not made again."""

    def to_text(self) -> str:
        """Return the job as canonical JSON."""
        return canonical(dataclasses.asdict(self)).decode()

    @classmethod
    def from_text(cls, text: str) -> Job:
        """Read what ``to_text`` wrote."""
        value = json.loads(text)
        return cls(**{**value, "plugins": tuple(value["plugins"]), "made": tuple(value["made"])})

    @property
    def context(self) -> str:
        """Digest of all that is the same for every job of a run."""
        return content_key([self.suite, list(self.plugins), self.lock, dict(self.options), self.plan])

    def run_options(self) -> RunOptions:
        """Return how to run."""
        paths = {name: Path(str(value)) for name in _PATHS if (value := self.options[name]) is not None}
        return RunOptions(**{**self.options, **paths})


_PATHS = ("results_dir", "data_dir", "cache_dir")


def job_for(loaded: LoadedSuite, options: RunOptions, plan: Plan, kind: Kind, key: str) -> Job:
    """Return a job of a run."""
    plain = dataclasses.asdict(options)
    # Absolute: whoever does the job may stand elsewhere.
    plain |= {name: str(Path(plain[name]).absolute()) for name in _PATHS if plain[name] is not None}
    return Job(
        suite=str(loaded.file.absolute()) if loaded.file else "",
        plugins=tuple(map(str, loaded.plugin_files)),
        lock=str(loaded.lock.absolute()) if loaded.lock else "",
        options=plain,
        plan=digest(plan),
        kind=kind,
        key=key,
    )


def digest(plan: Plan) -> str:
    """Return what two equal plans share."""
    return content_key(plan.to_json())


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of a job that was done."""

    seconds: float = 0.0
    made: tuple[str, ...] = ()
    """Keys of the artifacts that were made for it."""
    error: str = ""
    """Name of an error's class, for an error that concerns the run and not the job alone."""
    message: str = ""

    def to_text(self) -> str:
        """Return the reply as canonical JSON."""
        return canonical(dataclasses.asdict(self)).decode()

    @classmethod
    def from_text(cls, text: str) -> Reply | None:
        """Read what ``to_text`` wrote; None where it is something else."""
        try:
            value = json.loads(text)
            reply = cls(**{**value, "made": tuple(map(str, value["made"]))})
            return dataclasses.replace(reply, seconds=float(reply.seconds))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    @property
    def concerns_the_job_alone(self) -> bool:
        """Whether it is an error that nobody expected, so that other jobs may fare better."""
        kind = getattr(errors, self.error, None)
        return bool(self.error) and not (isinstance(kind, type) and issubclass(kind, AubenchError))

    def raise_error(self) -> None:
        """Raise the error that ended the job, if one did."""
        if self.error:
            kind = getattr(errors, self.error, None)
            if isinstance(kind, type) and issubclass(kind, AubenchError):
                raise kind([self.message]) if kind is errors.SuiteError else kind(self.message)
            raise WorkerError(f"a worker failed in the harness itself: {self.error}: {self.message}")
