"""Evidence records: what the checks said that gate a rank, for one defense under one threat and training seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from autoshield_bench.errors import StoreError
from autoshield_bench.migration import EVIDENCE
from autoshield_bench.outcomes import expect
from autoshield_bench.plain_files import component, expect_names
from autoshield_bench.store import write_sealed

EVIDENCE_SCHEMA = EVIDENCE.current

Level = Literal["off", "fast", "full"]
Ruling = Literal["pass", "fail", "unproven", "not applicable"]

LEVELS: tuple[Level, ...] = ("off", "fast", "full")
RULINGS: tuple[Ruling, ...] = ("pass", "fail", "unproven", "not applicable")
SHARE_OF_COST: Mapping[Level, float] = {"off": 0.0, "fast": 0.3, "full": 1.5}
"""Passes that the checks may spend, in units of those that the judged attacks spent."""

NOT_MADE = "the check could not be made"
"""How the words of a verdict begin where an error stood in the way."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one check says about a worst-case estimate."""

    check: str
    """Name of the check, such as ``converged``."""
    ruling: Ruling
    """``fail`` and ``unproven`` cost the rank."""
    text: str
    """One sentence with the numbers."""
    numbers: Mapping[str, float | int | str | None] = field(default_factory=dict)
    """The same for programs."""

    @property
    def costs_rank(self) -> bool:
        """Whether the defense loses its rank."""
        return self.ruling in ("fail", "unproven")


@dataclass(frozen=True, kw_only=True)
class EvidenceId:
    """The worst-case estimate that is judged."""

    dataset: str
    model: str
    defense: str
    seed: int
    norm: str
    eps: float

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EvidenceId:
        """Read the fields. Raises ValueError or TypeError where they are not what they should be."""
        expect(value, {"dataset": str, "model": str, "defense": str, "seed": int, "norm": str, "eps": float | int})
        expect_names(value, ("defense", "norm"))
        return cls(**value)

    def __str__(self) -> str:
        return f"{self.dataset}/{self.model}/{self.defense}/{self.norm}-{self.eps:g}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class EvidenceRecord:
    """Every verdict on one worst-case estimate."""

    key: str
    """Key of everything that could change a verdict: the judged cells, the level and the checks themselves."""
    where: EvidenceId
    level: Level
    verdicts: tuple[Verdict, ...]
    passes: int
    """Image-passes that the checks spent."""
    judged: int
    """Image-passes of the attacks that they judge."""
    env: str = ""
    """Hash of the machine record in ``env/``."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return why there is no rank; empty where there is one."""
        return tuple(f"{own.check}: {own.text}" for own in self.verdicts if own.costs_rank)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON."""
        return {"schema": EVIDENCE_SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EvidenceRecord:
        """Read what ``to_json`` wrote. Raises ValueError, KeyError or TypeError where it does not fit."""
        fields = dict(value)
        schema = fields.pop("schema", None)
        if schema != EVIDENCE_SCHEMA:
            raise ValueError(f"schema is {schema!r}, this version reads {EVIDENCE_SCHEMA!r}")
        expect(fields, {"key": str, "level": str, "verdicts": list, "passes": int, "judged": int, "env": str})
        if fields["env"]:
            expect_names(fields, ("env",))
        if fields["level"] not in LEVELS:
            raise ValueError(f"level is {fields['level']!r}")
        verdicts = []
        for own in fields["verdicts"]:
            expect(own, {"check": str, "ruling": str, "text": str, "numbers": dict})
            if own["ruling"] not in RULINGS:
                raise ValueError(f"ruling is {own['ruling']!r}")
            verdicts.append(Verdict(**own))
        return cls(**{**fields, "where": EvidenceId.from_json(fields["where"]), "verdicts": tuple(verdicts)})


def evidence_path(key: str, where: EvidenceId) -> Path:
    """Return a record's place below the results directory."""
    return Path("evidence") / component(where.defense) / component(f"{where.norm}-{where.eps:g}-{key[:12]}.json")


def write_evidence(directory: Path, record: EvidenceRecord) -> None:
    """Publish a record below a results directory."""
    write_sealed(directory / evidence_path(record.key, record.where), record.to_json())


def read_evidence(path: Path) -> EvidenceRecord:
    """Read one record, of this schema or an older one.

    Raises StoreError naming the file where it cannot be trusted, NewerSchemaError where it is too new.
    """
    value = EVIDENCE.read(path)
    try:
        return EvidenceRecord.from_json(value)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise StoreError(f"{path}: not an evidence record ({error}); delete it and run again") from error
