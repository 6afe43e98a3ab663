"""Which file of which directory stands in the merged results. Reads everything and writes nothing.

Of one name, files with the same bytes are one. Records of the same key with the same scores are one result: the record
with more metrics stands, then the one whose per-image arrays are at hand, then the earlier directory's; the others are
kept ``beside``. A cell that failed has no score, so that a score elsewhere stands. Records of the same key with
different scores contradict each other: none stands, all are kept ``beside``, and the cell is missing until it is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from autoshield_bench.errors import StoreError
from autoshield_bench.merge.classes import OtherClass, changes
from autoshield_bench.merge.parts import BESIDE, Found, Part, read_part
from autoshield_bench.merge.plans import PlanFile, check_one_suite, joined
from autoshield_bench.migration import ENV
from autoshield_bench.numeric import short_class
from autoshield_bench.results import CellId, CellRecord, cell_path, read_record, samples_path
from autoshield_bench.store import content_key, read_json
from autoshield_bench.verdicts import EvidenceRecord, evidence_path, read_evidence

Record = TypeVar("Record", CellRecord, EvidenceRecord)

_SETTINGS = ("threads", "evaluation_batch_size", "processor", "accelerator", "libraries", "torch", "precision")
"""What of two machine records may explain that the numbers differ."""


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """One key with different scores in one numeric class."""

    where: str
    """The cell or the evidence."""
    files: tuple[Path, ...]
    said: str
    """In what they differ, and what may explain it."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What a merge comes to."""

    parts: tuple[Part, ...]
    plan: Mapping[str, Any]
    """Of the leading class: the first directory's."""
    others: Mapping[str, Mapping[str, Any]]
    """Plans of the other classes, by short name."""
    files: Mapping[str, Found]
    """Every file that comes along, by its name in the merged results."""
    conflicts: tuple[Conflict, ...]
    damaged: tuple[str, ...]
    """One line per file that cannot be trusted; it comes along, and counts for nothing."""
    planned: int
    """Cells of the leading class."""
    present: int
    """Those that have a record."""
    shared: int
    """Those that several directories have, with equal scores."""
    classes: tuple[OtherClass, ...]

    @property
    def numeric_class(self) -> str:
        """The class that the leaderboard is about."""
        return str(self.plan["numeric_class"])

    @property
    def beyond(self) -> bool:
        """Whether any cell differs between two classes more than rounding explains."""
        return any(own.beyond for own in self.classes)


@dataclass(frozen=True)
class _Read(Generic[Record]):
    """A file that was read."""

    found: Found
    record: Record


def decide(directories: Sequence[Path]) -> Merge:
    """Return what the merged results are.

    Raises UsageError where they are not parts of one suite, StoreError or NewerSchemaError where a directory or plan
    cannot be read.
    """
    parts = tuple(read_part(directory, position) for position, directory in enumerate(directories))
    plans = [plan for part in parts for plan in part.plans]
    check_one_suite(plans)
    by_class: dict[str, list[PlanFile]] = {}
    for plan in plans:
        by_class.setdefault(plan.numeric_class, []).append(plan)
    together = {name: joined(own) for name, own in by_class.items()}
    choice = _Choice(parts)
    leading, *others = together
    cells = {name: choice.records(plan) for name, plan in together.items()}
    return Merge(
        parts=parts,
        plan=together[leading],
        others={short_class(name): together[name] for name in others},
        files=choice.files,
        conflicts=tuple(choice.conflicts),
        damaged=tuple(choice.damaged),
        planned=len(together[leading]["cells"]),
        present=len(cells[leading]),
        shared=sum(choice.shared(record) for record in cells[leading].values()),
        classes=tuple(
            OtherClass(
                numeric_class=name,
                short=short_class(name),
                cells=len(cells[name]),
                changes=changes(cells[leading], cells[name], choice.arrays_of),
            )
            for name in others
        ),
    )


class _Choice:
    """Goes through all names once and decides on each."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.files: dict[str, Found] = {}
        self.conflicts: list[Conflict] = []
        self.damaged: list[str] = []
        self._shared: set[str] = set()
        self._cells: dict[str, _Read[CellRecord]] = {}
        self._torn: set[str] = set()
        """First digits of the keys of cells in conflict."""
        for part in parts:
            self.files.update({name: found for name, found in part.files.items() if name.startswith(f"{BESIDE}/")})
        for name, founds in self._by_name("cells").items():
            stands = self._stands(name, founds, _read_cell, _cell_difference, self._worth)
            if stands is not None:
                self._cells[stands.record.key] = stands
        for name, founds in self._by_name("evidence").items():
            self._stands(name, founds, _read_judged, _evidence_difference, lambda own: (-own.found.part,))
        for name, founds in self._by_name("samples").items():
            self._place(name, founds, self._own_arrays(name, founds))
        for name, founds in self._by_name("env").items():
            self._place(name, founds, self._sound_env(founds))
        for name, founds in self._by_name("journal").items():
            self._place_journal(name, founds)

    def records(self, plan: Mapping[str, Any]) -> dict[CellId, CellRecord]:
        """Return the records that stand for a plan's cells."""
        keys = (str(entry["key"]) for entry in plan["cells"])
        return {self._cells[key].record.cell: self._cells[key].record for key in keys if key in self._cells}

    def shared(self, record: CellRecord) -> bool:
        """Return whether several directories have this cell."""
        return record.key in self._shared

    def arrays_of(self, record: CellRecord) -> Path | None:
        """Return where the per-image arrays of a record that stands lie."""
        found = self.files.get(samples_path(record.key).as_posix())
        return found.path if found else None

    # -- names ---------------------------------------------------------------------------------------------------

    def _by_name(self, folder: str) -> dict[str, list[Found]]:
        """Return the files of a folder that want each name, one per directory.

        What an earlier merge left beside, because nothing could stand, wants its name again.
        """
        names: dict[str, list[Found]] = {}
        for part in self._parts:
            for name, found in part.files.items():
                returns = name.startswith(f"{BESIDE}/{folder}/") and found.wanted not in part.files
                if returns or name.startswith(f"{folder}/"):
                    names.setdefault(found.wanted, []).append(found)
        return names

    def _place(self, name: str, founds: Sequence[Found], stands: Found | None) -> None:
        """Let one file have the name, and keep every other content beside it."""
        if stands is not None:
            self.files[name] = stands
            if len(founds) == 1:
                return  # the usual case, without reading it
        for found in founds:
            if stands is None or found.sha256 != stands.sha256:
                self.files[found.beside] = found

    # -- records -------------------------------------------------------------------------------------------------

    def _stands(
        self,
        name: str,
        founds: Sequence[Found],
        read: Callable[[Found], Record],
        difference: Callable[[Record, Record], str],
        worth: Callable[[_Read[Record]], tuple[int, ...]],
    ) -> _Read[Record] | None:
        """Decide on one name; return the record that stands."""
        sound: list[_Read[Record]] = []
        for found in founds:
            try:
                sound.append(_Read(found, read(found)))
            except StoreError as error:
                if found.name == name:
                    self.damaged.append(str(error))
        if not sound:
            self._place(name, founds, next((found for found in founds if found.name == name), None))
            return None
        scored = [own for own in sound if _has_score(own.record)]
        for other in scored[1:]:
            said = difference(scored[0].record, other.record)
            if said:
                self._tear(name, founds, scored, said)
                return None
        best = max(scored or sound, key=worth)
        self._place(name, founds, best.found)
        if len({own.found.part for own in scored}) > 1:
            self._shared.add(best.record.key)
        return best

    def _tear(self, name: str, founds: Sequence[Found], scored: Sequence[_Read[Record]], said: str) -> None:
        self._place(name, founds, None)
        self._torn.add(scored[0].record.key[:12])
        record = scored[0].record
        files = {own.found.sha256: own.found.path for own in scored}
        reasons = "; ".join([said, *self._settings([own.record.env for own in scored], scored)])
        where = str(record.cell if isinstance(record, CellRecord) else record.where)
        self.conflicts.append(Conflict(where=where, files=tuple(files.values()), said=reasons))

    def _settings(self, envs: Sequence[str], scored: Sequence[_Read[Any]]) -> Iterator[str]:
        """Yield in what the machine records behind several records differ."""
        facts = []
        for env, own in zip(envs, scored, strict=True):
            found = self._parts[own.found.part].files.get(f"env/{env}.json")
            try:
                facts.append(ENV.read(found.path) if found else None)
            except StoreError:
                facts.append(None)
        known = [own for own in facts if own is not None]
        for name in _SETTINGS:
            values = list(dict.fromkeys(str(own.get(name)) for own in known))
            if len(values) > 1:
                short = all(len(value) <= 40 for value in values)
                yield f"{name.replace('_', ' ')}: {' and '.join(values)}" if short else f"other {name}"

    def _worth(self, own: _Read[CellRecord]) -> tuple[int, ...]:
        taken = sum(metric.unavailable is None for metric in own.record.metrics.values())
        name = samples_path(own.record.key).as_posix()
        if own.record.samples:
            at_hand = any(part.files[name].sha256 == own.record.samples for part in self._parts if name in part.files)
        else:
            at_hand = name in self._parts[own.found.part].files
        return taken, int(at_hand), -own.found.part

    # -- other files ---------------------------------------------------------------------------------------------

    def _own_arrays(self, name: str, founds: Sequence[Found]) -> Found | None:
        """Return the per-image arrays that belong to the record that stands."""
        stem = Path(name).stem
        own = next((read for key, read in self._cells.items() if key.startswith(stem)), None)
        if own is None:
            return None if stem in self._torn else next((found for found in founds if found.name == name), None)
        if own.record.samples:
            return next((found for found in founds if found.sha256 == own.record.samples), None)
        return next((found for found in founds if found.part == own.found.part), founds[0])

    def _sound_env(self, founds: Sequence[Found]) -> Found:
        """Return the machine record whose name is the hash of its content; one alone is taken as it is."""
        if len({found.sha256 for found in founds} if len(founds) > 1 else founds) == 1:
            return founds[0]
        sound = []
        for found in founds:
            try:
                if content_key(read_json(found.path))[:16] != found.path.stem:
                    raise StoreError(f"{found.path}: its name is not the hash of its content; it was altered")
                sound.append(found)
            except StoreError as error:
                self.damaged.append(str(error))
        return [*sound, founds[0]][0]

    def _place_journal(self, name: str, founds: Sequence[Found]) -> None:
        """Take the longest journal; one that it goes on from is contained in it."""
        contents = {found: found.path.read_bytes() for found in founds} if len(founds) > 1 else {founds[0]: b""}
        longest = max(founds, key=lambda found: len(contents[found]))
        apart = [found for found in founds if not contents[longest].startswith(contents[found])]
        self._place(name, [longest, *apart], longest)


def _read_cell(found: Found) -> CellRecord:
    record = read_record(found.path)
    if cell_path(record.key, record.cell).as_posix() != found.wanted:
        raise StoreError(f"{found.path}: holds another cell than its name says; delete it and run again")
    return record


def _read_judged(found: Found) -> EvidenceRecord:
    record = read_evidence(found.path)
    if evidence_path(record.key, record.where).as_posix() != found.wanted:
        raise StoreError(f"{found.path}: holds other evidence than its name says; delete it and run again")
    return record


def _has_score(record: CellRecord | EvidenceRecord) -> bool:
    return not isinstance(record, CellRecord) or record.outcomes is not None


def _cell_difference(one: CellRecord, two: CellRecord) -> str:
    """Say in what the scores of two records of one key differ; nothing where they agree."""
    if one.key != two.key:
        return "their keys begin alike and differ"
    first, second = one.outcomes, two.outcomes
    if first is None or second is None:
        return ""
    if first != second:
        changed = (first.correct ^ second.correct).bit_count()
        return f"{changed} of {first.n} images come out otherwise" if changed else "their draws or images differ"
    if one.detection != two.detection:
        return "their detectors say otherwise"
    if one.passes != two.passes:
        return "their passes differ"
    labels = [label for label in one.metrics if label in two.metrics and _metric_differs(one, two, label)]
    return f"{', '.join(labels)} differ" if labels else ""


def _metric_differs(one: CellRecord, two: CellRecord, label: str) -> bool:
    first, second = one.metrics[label], two.metrics[label]
    if first.unavailable is not None or second.unavailable is not None:
        return False  # one machine lacked what the metric needs
    own, other = one.facts.get("metrics"), two.facts.get("metrics")
    if isinstance(own, Mapping) and isinstance(other, Mapping) and own.get(label) != other.get(label):
        return False  # a metric is no part of the cell's key: these are two metrics of one label
    return first.pairs != second.pairs


def _evidence_difference(one: EvidenceRecord, two: EvidenceRecord) -> str:
    if one.key != two.key:
        return "their keys begin alike and differ"
    rulings = [first.check for first, second in zip(one.verdicts, two.verdicts, strict=False) if first != second]
    if rulings or len(one.verdicts) != len(two.verdicts):
        return f"verdicts differ: {', '.join(rulings) or 'not the same checks'}"
    return "their passes differ" if (one.passes, one.judged) != (two.passes, two.judged) else ""


def left_behind(parts: Iterable[Part]) -> list[Path]:
    """Return what lies at the top of the directories and is no result, so that it does not come along."""
    return [part.directory / name for part in parts for name in part.left_behind]
