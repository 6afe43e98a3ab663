"""Schemas of the files in a results directory: older ones are made new when they are read, newer ones are refused.

A version's step is a pure function from the JSON of that version to the JSON of the next, so that a file of any age
passes through all steps in turn. What an old file does not say stays unsaid (empty or None); nothing is guessed. The
tests keep one frozen example per version. ``docs/records.md`` says what each version brought.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoshield_bench.errors import NewerSchemaError, StoreError
from autoshield_bench.outcomes import expect
from autoshield_bench.store import SEAL, content_key, open_sealed, read_json
from autoshield_bench.version import __version__

Step = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Schema:
    """One kind of file and the steps from each of its versions to the next."""

    name: str
    """Such as ``aubench.cell``."""
    steps: tuple[Step, ...]
    """From version 1 to 2, from 2 to 3, and so on."""
    sealed_since: int | None = None
    """The first version that must carry a checksum of itself; None where none has one."""

    @property
    def version(self) -> int:
        """The version that is written."""
        return len(self.steps) + 1

    @property
    def current(self) -> str:
        """What ``schema`` says in a file of that version."""
        return f"{self.name}/{self.version}"

    def version_of(self, value: Any, path: Path) -> int:
        """Return the version of a file's value.

        Raises NewerSchemaError for one that this program is too old for, StoreError for what is no file of this kind.
        """
        schema = value.get("schema") if isinstance(value, Mapping) else None
        name, _, number = schema.rpartition("/") if isinstance(schema, str) else ("", "", "")
        known = number.isascii() and number.isdigit() and not number.startswith("0") and len(number) < 7
        if name != self.name or not known:
            said = "it has no schema" if schema is None else f"its schema is {str(schema)[:60]!r}"
            raise StoreError(f"{path}: {said}, where {self.current!r} belongs; delete it and run again")
        if int(number) > self.version:
            raise NewerSchemaError(
                f"{path}: its schema is {schema!r}, and autoshield-bench {__version__} reads up to {self.current!r}; "
                f"read it with a newer release (`pip install --upgrade autoshield-bench`)"
            )
        return int(number)

    def migrated(self, value: Mapping[str, Any], version: int) -> dict[str, Any]:
        """Return a value of an older version as one of the current. Raises KeyError, TypeError or ValueError where it
        does not hold what its version says."""
        made = dict(value)
        for step in self.steps[version - 1 :]:
            made = step(made)
        return {**made, "schema": self.current}

    def read(self, path: Path) -> dict[str, Any]:
        """Return a file's value in the current version, its checksum verified and taken off.

        Raises NewerSchemaError where the file is newer than this program, StoreError naming the file where it cannot
        be trusted.
        """
        value = read_json(path)
        # The version comes first: a newer one may be sealed in another way, and is not therefore damaged.
        version = self.version_of(value, path)
        try:
            if SEAL in value or (self.sealed_since is not None and version >= self.sealed_since):
                value = open_sealed(path, value)
            return self.migrated(value, version)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            said = f"not what {self.name}/{version} says ({error!r})"
            raise StoreError(f"{path}: {said}; delete it and run again") from error


def _cell_2(old: Mapping[str, Any]) -> dict[str, Any]:
    """Say of every record what only some of version 1 said: detector, its rate, joint game; and where it was made."""
    expect(old, {"cell": dict, "detection": dict | None})
    detection = old.get("detection")
    return {
        **old,
        "cell": {"fpr": None, **old["cell"]},
        "detection": None if detection is None else {"won": {}, **detection},
        "numeric_class": "",
        "samples": "",
    }


def _evidence_2(old: Mapping[str, Any]) -> dict[str, Any]:
    """Change nothing: version 2 alone must carry a checksum."""
    return dict(old)


def _plan_2(old: Mapping[str, Any]) -> dict[str, Any]:
    """Say of every plan what only some of version 1 said, what is judged; and the hashes of suite and data."""
    expect(old, {"suite": dict})
    return {
        "evidence": {"level": "off", "records": []},
        "numeric_class": "",
        "harness": {},
        "checkpoints": {},
        **old,
        "suite_sha256": content_key(old["suite"]),
        "data": None,
    }


def _env_2(old: Mapping[str, Any]) -> dict[str, Any]:
    """Put together what belongs together; what version 1 did not ask is None."""
    moved = ("deterministic_algorithms", "precision")
    return {
        **{name: value for name, value in old.items() if name not in moved},
        "torch": None,
        "precision": {"dtype": old["precision"]},
        "determinism": {"deterministic_algorithms": old["deterministic_algorithms"]},
        "git": None,
    }


def read_plan_file(path: Path) -> dict[str, Any]:
    """Return a plan in the current version, whose suite is the one that its hash is of.

    Raises NewerSchemaError where the file is newer than this program, StoreError where it cannot be trusted.
    """
    value = PLAN.read(path)
    if value.get("suite_sha256") != content_key(value.get("suite")):
        raise StoreError(f"{path}: suite_sha256 is not that of the suite beside it; run the suite again")
    return value


CELL = Schema("aubench.cell", (_cell_2,), sealed_since=2)
EVIDENCE = Schema("aubench.evidence", (_evidence_2,), sealed_since=2)
PLAN = Schema("aubench.plan", (_plan_2,))
ENV = Schema("aubench.env", (_env_2,))
