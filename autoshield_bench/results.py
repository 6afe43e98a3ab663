"""Cell records: what one cell of a plan came to, and the set of them that a suite's results directory holds.

Reading needs neither torch nor numpy. Per-image outcomes travel inside each record as two bit masks over the test set
(which images were evaluated, which were classified correctly), so that a worst case over several cells can be taken
from the JSON files alone; ``samples/`` adds the per-image arrays of a run on this machine.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoshield_bench.errors import StoreError
from autoshield_bench.migration import CELL, PLAN, read_plan_file
from autoshield_bench.numeric import short_class
from autoshield_bench.outcomes import Detection, Outcomes, expect
from autoshield_bench.plain_files import component, expect_names, refuse_odd_entries
from autoshield_bench.store import write_sealed
from autoshield_bench.verdicts import EvidenceId, EvidenceRecord, Level, evidence_path, read_evidence

if TYPE_CHECKING:
    import numpy

log = logging.getLogger(__name__)

CELL_SCHEMA = CELL.current
PLAN_SCHEMA = PLAN.current


@dataclass(frozen=True, kw_only=True)
class CellId:
    """Where a cell stands in its suite. ``attack`` is None for the cell on clean images."""

    dataset: str
    model: str
    defense: str
    seed: int
    attack: str | None = None
    access: str | None = None
    norm: str | None = None
    eps: float | None = None
    fpr: float | None = None
    """Nominal false-positive rate whose thresholds a detector-aware attack tries to stay under; None for any other."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CellId:
        """Read the fields of a cell. Raises ValueError or TypeError where they are not what they should be."""
        expect(value, {"dataset": str, "model": str, "defense": str, "seed": int})
        expect(value, {"attack": str | None, "access": str | None, "norm": str | None, "eps": float | int | None})
        expect(value, {"fpr": float | int | None})
        if len({value.get(name) is None for name in ("attack", "access", "norm", "eps")}) != 1:
            raise ValueError("cell: attack, access, norm and eps belong together")
        expect_names(value, ("defense", "attack", "access"))
        return cls(**value)

    def __str__(self) -> str:
        rate = "" if self.fpr is None else f"/fpr-{self.fpr:g}"
        tail = "clean" if self.attack is None else f"{self.attack}/{self.access}/{self.norm}-{self.eps:g}{rate}"
        return f"{self.dataset}/{self.model}/{self.defense}/{tail}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """One metric over one cell; ``pairs`` holds one entry per thing it looked at."""

    direction: Literal["higher", "lower"]
    unit: str
    notes: str
    """Window, data range or backbone: what a reader must know."""
    pairs: Mapping[str, Mapping[str, Any]]
    """By ``predictions``, ``clean-adversarial`` or ``clean-purified``: ``value`` (null where undefined), ``n`` images
    it was taken on, ``undefined`` of them without a value."""
    unavailable: str | None = None
    """Why the metric could not be taken, with the remedy."""
    retry: bool = False
    """Whether the machine lacked something, such as weights, so that it is tried again once that is there."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MetricResult:
        """Read the fields of a metric. Raises ValueError or TypeError where they are not what they should be."""
        expect(
            value,
            {"direction": str, "unit": str, "notes": str, "pairs": dict, "unavailable": str | None, "retry": bool},
        )
        if value["direction"] not in ("higher", "lower"):
            raise ValueError(f"direction is {value['direction']!r}")
        for pair in value["pairs"].values():
            expect(pair, {"value": float | int | None, "n": int, "undefined": int})
        return cls(**value)


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """What one cell came to."""

    key: str
    """Key of everything that could change the outcome."""
    score_key: str
    """Key of the outcome together with the metrics taken on it."""
    cell: CellId
    status: Literal["ok", "failed", "crashed"]
    """``crashed``: it took its worker process with it."""
    error: str | None = None
    """What failed, with the numbers; None where the cell is well."""
    outcomes: Outcomes | None = None
    """None where the cell failed."""
    detection: Detection | None = None
    """None where the cell failed or the defense does not detect."""
    strong: bool = False
    """Whether the attack is believed to come close to the worst case."""
    metrics: Mapping[str, MetricResult] = field(default_factory=dict)
    passes: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    """Image-passes by ``attack`` and ``score``, then component, then ``forward`` and ``backward``."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Provenance: plugins with versions, parameters, gradient path, keys of inputs, subset."""
    env: str = ""
    """Hash of the machine record in ``env/``."""
    numeric_class: str = ""
    """Device kind, instruction set and torch build, which decide the last bits; part of the key. Empty where an old
    record does not say."""
    samples: str = ""
    """SHA-256 of the file with the per-image arrays; empty where there are none or an old record does not say."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON."""
        return {
            "schema": CELL_SCHEMA,
            **asdict(self),
            "outcomes": self.outcomes.to_json() if self.outcomes else None,
            "detection": self.detection.to_json() if self.detection else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CellRecord:
        """Read what ``to_json`` wrote. Raises ValueError, KeyError or TypeError where it does not fit."""
        fields = dict(value)
        schema = fields.pop("schema", None)
        if schema != CELL_SCHEMA:
            raise ValueError(f"schema is {schema!r}, this version reads {CELL_SCHEMA!r}")
        fields["cell"] = CellId.from_json(fields["cell"])
        fields["metrics"] = {name: MetricResult.from_json(metric) for name, metric in fields["metrics"].items()}
        expect(fields, {"key": str, "score_key": str, "status": str, "strong": bool, "facts": dict, "env": str})
        expect(fields, {"error": str | None, "numeric_class": str, "samples": str})
        if fields["env"]:
            expect_names(fields, ("env",))
        for counts in (counts for stage in fields["passes"].values() for counts in stage.values()):
            expect(counts, dict.fromkeys(counts, int))
        fields["outcomes"] = Outcomes.from_json(fields["outcomes"]) if fields["outcomes"] else None
        fields["detection"] = Detection.from_json(fields["detection"]) if fields.get("detection") else None
        well = {"ok": True, "failed": False, "crashed": False}.get(fields["status"])
        if well is not (fields["outcomes"] is not None):
            raise ValueError(f"status is {fields['status']!r}, which does not fit the outcomes")
        return cls(**fields)


def cell_path(key: str, cell: CellId) -> Path:
    """Return a record's place below the results directory."""
    stem = "clean" if cell.attack is None else f"{cell.attack}-{cell.access}"
    return Path("cells") / component(cell.defense) / component(f"{stem}-{key[:12]}.json")


LARGEST_SAMPLES = 1 << 30
"""Bytes of a file of per-image arrays that are read at most."""


def samples_path(key: str) -> Path:
    """Return the place of a cell's per-image arrays below the results directory."""
    return Path("samples") / component(f"{key[:12]}.safetensors")


def other_plan_path(numeric_class: str) -> Path:
    """Return the place of the plan of another numeric class than that of ``plan.json``, below the results directory."""
    return Path("plans") / f"{short_class(numeric_class)}.json"


@dataclass(frozen=True)
class ResultSet:
    """The records that a suite's plan names, in the plan's order."""

    directory: Path
    suite: Mapping[str, Any]
    """The resolved suite, as plan.json holds it."""
    records: tuple[CellRecord, ...]
    missing: tuple[CellId, ...] = ()
    """Cells of the plan that have no record (yet), or a damaged one."""
    damaged: tuple[str, ...] = ()
    """One line per record that cannot be read; left out of ``records``."""
    plugins: Mapping[str, Any] = field(default_factory=dict)
    evidence_level: Level = "off"
    """How much evidence the run was asked for."""
    evidence: tuple[EvidenceRecord, ...] = ()
    """The verdicts that gate ranks, in the plan's order."""
    numeric_class: str = ""
    """Of the machine whose plan it is."""
    other_classes: tuple[str, ...] = ()
    """Numeric classes whose plans and records lie beside."""

    def __iter__(self) -> Iterator[CellRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def name(self) -> str:
        """Name of the suite."""
        return str(self.suite.get("name", self.directory.name))

    @property
    def failed(self) -> tuple[CellRecord, ...]:
        """Records of cells that failed."""
        return tuple(record for record in self.records if record.status != "ok")

    def select(self, pattern: str) -> tuple[CellRecord, ...]:
        """Return the records whose id (``dataset/model/defense/attack/access/norm-eps/seed-n``) matches a shell
        pattern such as ``*/autoencoder/pgd/*``."""
        return tuple(record for record in self.records if fnmatchcase(str(record.cell), pattern))

    def arrays(self, record: CellRecord) -> dict[str, numpy.ndarray[Any, Any]]:
        """Return a cell's per-image arrays: ``index``, ``label``, ``clean_prediction``, ``prediction``, ``correct``,
        for attacks ``distance`` (of the point that was found, in the threat's norm, also where a minimum-norm attack
        found it beyond eps) and ``passes`` (spent on the image, forward and backward), ``anomaly/<stage>`` for each
        stage that detects, and one array per metric and pair (undefined values are NaN there).

        Raises StoreError where ``samples/`` lacks them, as in results that came from a repository, and where they are
        not the record's.
        """
        from safetensors.numpy import load

        path = self.directory / samples_path(record.key)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: no per-image arrays here; run the suite on this machine to have them") from error
        if record.samples and hashlib.sha256(data).hexdigest() != record.samples:
            raise StoreError(f"{path}: not the arrays of its record (SHA-256 differs); delete it and run again")
        return load(data)


def write_record(directory: Path, record: CellRecord) -> None:
    """Publish a record below a results directory."""
    write_sealed(directory / cell_path(record.key, record.cell), record.to_json())


def read_record(path: Path) -> CellRecord:
    """Read one record, of this schema or an older one.

    Raises StoreError naming the file where it cannot be trusted, NewerSchemaError where it is too new.
    """
    value = CELL.read(path)
    try:
        return CellRecord.from_json(value)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise StoreError(f"{path}: not a cell record ({error}); delete it and run again") from error


def load_results(directory: Path) -> ResultSet:
    """Read a results directory: the records its plan names.

    A record that cannot be read is named in ``damaged`` and left out. Raises StoreError where there is no plan,
    NewerSchemaError where any of it was written by a newer release: a table without those cells would mislead.
    """
    plan_path = directory / "plan.json"
    refuse_odd_entries(directory)
    if not plan_path.exists():
        raise StoreError(f"{directory}: no plan.json, so no results; name a directory that `aubench run` wrote")
    plan = read_plan_file(plan_path)
    records: list[CellRecord] = []
    missing: list[CellId] = []
    damaged: list[str] = []
    evidence: list[EvidenceRecord] = []
    try:
        planned = [(str(entry["key"]), CellId.from_json(entry["cell"])) for entry in plan["cells"]]
        suite, plugins = dict(plan["suite"]), dict(plan["plugins"])
        gate = plan["evidence"]
        judged = [(str(entry["key"]), EvidenceId.from_json(entry["where"])) for entry in gate["records"]]
        level: Level = {"fast": "fast", "full": "full"}.get(gate["level"], "off")  # type: ignore[assignment]
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StoreError(f"{plan_path}: not a plan ({error!r}); run the suite again") from error
    for key, cell in planned:
        path = directory / cell_path(key, cell)
        if not path.exists():
            missing.append(cell)
            continue
        try:
            record = read_record(path)
            if record.key != key or record.cell != cell:
                raise StoreError(f"{path}: holds another cell than its name says; delete it and run again")
            records.append(record)
        except StoreError as error:
            damaged.append(str(error))
            missing.append(cell)
    for key, where in judged:
        path = directory / evidence_path(key, where)
        if not path.exists():
            continue
        try:
            found = read_evidence(path)
            if found.key != key or found.where != where:
                raise StoreError(f"{path}: holds other evidence than its name says; delete it and run again")
            evidence.append(found)
        except StoreError as error:
            damaged.append(str(error))
    others: list[str] = []
    for path in sorted((directory / "plans").glob("*.json")):
        try:
            others.append(str(read_plan_file(path).get("numeric_class", "")))
        except StoreError as error:
            damaged.append(str(error))
    own = str(plan.get("numeric_class", ""))
    return ResultSet(
        directory,
        suite,
        tuple(records),
        tuple(missing),
        tuple(damaged),
        plugins,
        level,
        tuple(evidence),
        own,
        tuple(name for name in others if name != own),
    )
