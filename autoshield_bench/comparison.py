"""Two result sets compared, defense by defense, on the same images; and what cannot be compared. Pure functions.

Every figure that both have is compared on the images that both evaluated and over the training seeds that both have:
clean accuracy, every attack (label, access, norm, eps), and the worst case over the cells that both have, which needs
all of them. Of a defense that detects, the worst case is the joint game of ``joint``, against its own detector-aware
attack as well where the other defense has no detector to be aware of. What a difference and its test are, ``paired``
defines. Holm's adjustment over everything that was compared makes the verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from autoshield_bench.detection import RANKED_RATE
from autoshield_bench.errors import StoreError, UsageError, did_you_mean
from autoshield_bench.joint import column_of, detects, faced, joint_under, obstacle, percent, ranked_rate, takes_part
from autoshield_bench.labels import DRAWN
from autoshield_bench.outcomes import Outcomes
from autoshield_bench.paired import Difference, Pair, Place, difference_of
from autoshield_bench.provenance import attack_differences, model_differences
from autoshield_bench.readings import unique
from autoshield_bench.results import CellId, CellRecord, ResultSet
from autoshield_bench.standing import standing
from autoshield_bench.statistics import holm

Found = Mapping[int, CellRecord | str]
"""A cell by training seed: its record, or why there is none (``failed`` or ``missing``)."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A figure, or some of its seeds, that cannot be compared."""

    place: Place
    reason: str
    lost: bool = False
    """Whether A has a result where B planned one and has none on the same images."""
    one_sided: bool = False
    """Whether only one of them planned it."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that two result sets have in common, compared."""

    first: ResultSet
    second: ResultSet
    pairs: tuple[tuple[str, str], ...]
    """Defenses of A and B by their labels."""
    differences: tuple[Difference, ...]
    left_out: tuple[LeftOut, ...]
    remarks: tuple[str, ...] = ()
    """What holds for the whole comparison."""

    @property
    def regressions(self) -> tuple[Difference, ...]:
        """Where B is really worse than A."""
        return tuple(difference for difference in self.differences if difference.verdict == "worse")

    @property
    def lost(self) -> tuple[LeftOut, ...]:
        """Where A has a result and B lacks the one it planned, so that a regression would go unseen."""
        return tuple(entry for entry in self.left_out if entry.lost)


def defenses_of(results: ResultSet) -> list[str]:
    """Return the labels of the planned defenses, in the plan's order."""
    return unique(cell.defense for cell in _planned(results))


def choose_pairs(first: ResultSet, one: str | None, second: ResultSet, two: str | None) -> list[tuple[str, str]]:
    """Return which defense of A is compared with which of B: those named, or else every one with its namesake.

    A name on one side alone stands for both. Raises UsageError where there is no such defense, or nothing to compare.
    """
    one, two = one if one is not None else two, two if two is not None else one
    known = [defenses_of(results) for results in (first, second)]
    for results, name, names in ((first, one, known[0]), (second, two, known[1])):
        if name is not None and name not in names:
            raise UsageError(f'{results.directory}: no defense "{name}" there{did_you_mean(name, names)}')
    if first.directory.resolve() == second.directory.resolve() and one == two:
        raise UsageError(f"{first.directory}: compared with itself; name two defenses, as DIRECTORY:DEFENSE")
    if one is None or two is None:
        both = [(name, name) for name in known[0] if name in known[1]]
        if not both:
            raise UsageError(
                f"no defense is in both: {first.directory} has {', '.join(known[0]) or 'none'}, {second.directory} "
                f"has {', '.join(known[1]) or 'none'}; name two, as DIRECTORY:DEFENSE"
            )
        return both
    return [(one, two)]


def compare(
    first: ResultSet, second: ResultSet, pairs: Sequence[tuple[str, str]], *, remarks: Sequence[str] = ()
) -> Comparison:
    """Compare pairs of defenses, A's of ``first`` with B's of ``second``, wherever both have outcomes.

    ``remarks`` are passed on. Raises UsageError where they are not about the same images or no cell is in both plans,
    StoreError where the cells that are in both have no result to compare.
    """
    _same_images(first, second, pairs)
    tables = [_Table(one, two, _cells(first, one), _cells(second, two)) for one, two in pairs]
    differences = [own for table in tables for own in table.differences]
    left_out = [own for table in tables for own in table.left_out]
    if not differences:
        _refuse(first, second, left_out)
    adjusted = holm(difference.p for difference in differences)
    return Comparison(
        first=first,
        second=second,
        pairs=tuple(pairs),
        differences=tuple(replace(own, adjusted=p) for own, p in zip(differences, adjusted, strict=True)),
        left_out=tuple(left_out),
        remarks=tuple(
            unique([*remarks, *_data_remarks(first, second), *(own for table in tables for own in table.remarks)])
        ),
    )


# -- what may be compared ---------------------------------------------------------------------------------------------


def _same_images(first: ResultSet, second: ResultSet, pairs: Sequence[tuple[str, str]]) -> None:
    """Raise UsageError unless image i of one side is image i of the other, as far as the records can tell."""
    sides = ((first, {one for one, _ in pairs}), (second, {two for _, two in pairs}))
    names = [{cell.dataset for cell in _planned(results) if cell.defense in own} for results, own in sides]
    if not names[0] & names[1]:
        a, b = (", ".join(sorted(own)) for own in names)
        raise UsageError(f"not the same images: {first.directory} is about {a}, {second.directory} about {b}")
    used = [_dataset(results) for results in (first, second)]
    if None not in used and used[0] != used[1]:
        raise UsageError(
            f"not the same images: {first.directory} and {second.directory} take their data set with other parameters"
        )
    sizes = [
        {own.outcomes.size for own in results.records if own.outcomes and own.cell.defense in labels}
        for results, labels in sides
    ]
    if len(sizes[0] | sizes[1]) > 1:
        a, b = (", ".join(map(str, sorted(own))) for own in sizes)
        raise UsageError(
            f"not the same images: the test set of {first.directory} has {a} of them, that of {second.directory} {b}"
        )


def _dataset(results: ResultSet) -> tuple[str, Any] | None:
    entry = results.suite.get("dataset")
    return (str(entry.get("use")).rpartition("/")[2], entry.get("params")) if isinstance(entry, Mapping) else None


def _data_remarks(first: ResultSet, second: ResultSet) -> list[str]:
    return [
        f"{name} is not the same code in A and B: the images may differ."
        for name, identity in first.plugins.items()
        if name.startswith("dataset:") and name in second.plugins and second.plugins[name] != identity
    ]


def _refuse(first: ResultSet, second: ResultSet, left_out: Sequence[LeftOut]) -> NoReturn:
    """Raise the error for a comparison without any difference."""
    common = [entry.reason for entry in left_out if not entry.one_sided]
    where = f"{first.directory} and {second.directory}"
    if common:
        raise StoreError(f"{where}: no results on the same images ({common[0]}); run what is missing")
    raise UsageError(f"{where}: no cell in common: the plans share no model, attack, access, norm and eps")


def _planned(results: ResultSet) -> list[CellId]:
    return [*(record.cell for record in results.records), *results.missing]


def _cells(results: ResultSet, defense: str) -> dict[CellId, dict[int, CellRecord | str]]:
    """Return a defense's cells by their place without defense and seed, then by seed."""
    cells: dict[CellId, dict[int, CellRecord | str]] = {}
    for record in results.records:
        if record.cell.defense == defense:
            state = "failed" if record.outcomes is None else record
            cells.setdefault(_bare(record.cell), {})[record.cell.seed] = state
    for cell in results.missing:
        if cell.defense == defense:
            cells.setdefault(_bare(cell), {})[cell.seed] = "missing"
    return cells


def _bare(cell: CellId) -> CellId:
    return replace(cell, defense="", seed=0)


# -- one pair of defenses ---------------------------------------------------------------------------------------------


class _Table:
    """The differences between two defenses: per model the clean accuracy, then each threat with its worst case."""

    def __init__(self, first: str, second: str, one: Mapping[CellId, Found], two: Mapping[CellId, Found]) -> None:
        self.differences: list[Difference] = []
        self.left_out: list[LeftOut] = []
        self.remarks: list[str] = []
        self._labels = (first, second)
        self._sides = (one, two)
        cells = unique([*one, *two])
        for where in unique((cell.dataset, cell.model) for cell in cells):
            here = [cell for cell in cells if (cell.dataset, cell.model) == where]
            clean = [cell for cell in here if cell.attack is None]
            attacked = [cell for cell in here if cell.attack is not None]
            for cell in clean:
                self._cell(cell)
            for threat in unique((cell.norm, cell.eps) for cell in attacked):
                own = [cell for cell in attacked if (cell.norm, cell.eps) == threat]
                for cell in own:
                    self._cell(cell)
                self._worst_case([*clean, *own])

    def _cell(self, cell: CellId) -> None:
        one, two = self._sides
        place = self._place(cell, "clean" if cell.attack is None else "attack")
        if cell not in one or cell not in two:
            self._leave(place, f"only {'A' if cell in one else 'B'} has it", one_sided=True)
            return
        for seeds, which in (
            ([seed for seed in one[cell] if seed not in two[cell]], "A"),
            ([seed for seed in two[cell] if seed not in one[cell]], "B"),
        ):
            if seeds:
                self._leave(place, f"{_seeds(seeds)} only in {which}")
        pairs: list[tuple[CellRecord, CellRecord]] = []
        for seed in one[cell]:
            if seed not in two[cell]:
                continue
            a, b = one[cell][seed], two[cell][seed]
            if not isinstance(a, str) and not isinstance(b, str):
                pairs.append((a, b))
                continue
            what = " and ".join(f"{own} in {which}" for own, which in _unwell([(a, b)]))
            self._leave(place, f"{what} ({_seeds([seed])})", lost=not isinstance(a, str))
        if not pairs:
            return
        by_seed = []
        for a, b in pairs:
            both = [self._alone(record, side) for record, side in ((a, one), (b, two))]
            if both[0] is not None and both[1] is not None:
                by_seed.append((a.cell.seed, both[0], both[1]))
        if by_seed:
            self._difference(place, by_seed, [cell], [pairs], "no image was evaluated by both")
        else:
            self._leave(place, "the joint game of flagging and classifying begins with clean cells, and one is missing")

    def _alone(self, record: CellRecord, side: Mapping[CellId, Found]) -> Outcomes | None:
        """Return what a cell came to: the joint game against a detector-aware attack, else what was classified."""
        if record.cell.fpr is None:
            return record.outcomes
        bare = replace(_bare(record.cell), attack=None, access=None, norm=None, eps=None, fpr=None)
        clean = side.get(bare, {}).get(record.cell.seed, "missing")
        return None if isinstance(clean, str) else joint_under(record, clean)

    def _worst_case(self, cells: Sequence[CellId]) -> None:
        """Compare what stands under every cell that both have, as ``scores.worst_case`` defines it."""
        one, two = self._sides
        cells = [cell for cell in cells if takes_part(cell.fpr, RANKED_RATE)]
        common = [cell for cell in cells if cell in one and cell in two]
        seen = next((cell for cell in common if cell.access == "white-box"), None)
        if seen is None:
            return  # neither has a worst case on cells that the other has as well
        place = self._place(seen, "worst case")
        if all(cell.attack is not None for cell in common):
            self._leave(place, "clean accuracy is not in both")
            return
        seeds = [seed for seed in one[seen] if seed in two[seen]]
        pairs: list[list[tuple[CellRecord, CellRecord]]] = []
        absent: list[str] = []
        for cell in common:
            both = [(one[cell].get(seed, "missing"), two[cell].get(seed, "missing")) for seed in seeds]
            pairs.append([(a, b) for a, b in both if not isinstance(a, str) and not isinstance(b, str)])
            absent += [f"{_name(cell)} {own} in {which}" for own, which in _unwell(both)]
        found = [[own[side] for both in pairs for own in both] for side in (0, 1)]
        aware: list[CellId] = []
        for side, (own, which) in enumerate(zip((one, two), "AB", strict=True)):
            if detects(found[1 - side]):
                continue
            for cell in (cell for cell in cells if cell.fpr is not None and cell in own and cell not in common):
                aware.append(cell)
                records = [own[cell].get(seed, "missing") for seed in seeds]
                absent += [f"{_name(cell)} {record} in {which}" for record in records if isinstance(record, str)]
                found[side] += [record for record in records if not isinstance(record, str)]
        if absent or not seeds:
            self._leave(place, "; ".join(unique(absent)) or "no training seed is in both")
            return
        left = [_left(records) for records in found]
        by_seed = [(seed, left[0][seed], left[1][seed]) for seed in seeds]
        self._difference(place, by_seed, common, pairs, "no image was evaluated by every cell of both")
        if not self.differences or self.differences[-1].place != place:
            return
        single = [f"{_name(cell)} ({'A' if cell in one else 'B'})" for cell in cells if cell not in [*common, *aware]]
        said = [f"over what both have, without {', '.join(single)}"] if single else []
        said += [phrase for records, which in zip(found, "AB", strict=True) for phrase in _flags_remark(records, which)]
        self.differences[-1] = replace(self.differences[-1], remarks=(*said, *self.differences[-1].remarks))

    def _difference(
        self,
        place: Place,
        by_seed: Sequence[Pair],
        cells: Sequence[CellId],
        pairs: Sequence[Sequence[tuple[CellRecord, CellRecord]]],
        otherwise: str,
    ) -> None:
        """Add a difference, given what A and B came to by seed, and the ``pairs`` of records of its ``cells``."""
        found = difference_of(place, by_seed)
        if found is None:
            self._leave(place, otherwise, lost=place.quantity != "worst case")
            return
        several = len(cells) > 1
        other: list[str] = []
        for cell, own in zip(cells, pairs, strict=True):
            for a, b in own:
                attack = attack_differences(a, b) if cell.attack is not None else ()
                other += [f"{_name(cell)}: {phrase}" if several else phrase for phrase in attack]
                classifier = "; ".join(model_differences(a, b))
                if classifier:
                    self.remarks.append(f"The classifier {cell.model} need not be the same in A and B: {classifier}.")
        flat = [record for own in pairs for both in own for record in both]
        remarks = []
        if place.quantity == "worst case" and not _strong(pairs):
            remarks.append("upper bounds: no strong white-box attack was run on both")
        drawn = unique(record.outcomes.draws.n for record in flat if record.outcomes and record.outcomes.draws)
        if drawn:
            numbers = " and ".join(map(str, drawn))
            remarks.append(f"stochastic, scored by {numbers} {DRAWN}")
        elif any(record.facts.get("stochastic") is True for record in flat):
            remarks.append("stochastic, scored on one draw per image")
        self.differences.append(replace(found, other_attack=tuple(unique(other)), remarks=tuple(remarks)))

    def _leave(self, place: Place, reason: str, *, lost: bool = False, one_sided: bool = False) -> None:
        self.left_out.append(LeftOut(place=place, reason=reason, lost=lost, one_sided=one_sided))

    def _place(self, cell: CellId, quantity: Literal["clean", "attack", "worst case"]) -> Place:
        first, second = self._labels
        return Place(
            first=first,
            second=second,
            dataset=cell.dataset,
            model=cell.model,
            quantity=quantity,
            attack=cell.attack if quantity == "attack" else None,
            access=cell.access if quantity == "attack" else None,
            norm=cell.norm,
            eps=cell.eps,
            fpr=cell.fpr if quantity == "attack" else None,
        )


def _left(records: Sequence[CellRecord]) -> dict[int, Outcomes]:
    """Return by seed what stands in the worst case over one side's cells."""
    by_seed: dict[int, list[Outcomes]] = {}
    for own in faced(records, ranked_rate(records)):
        by_seed.setdefault(own.seed, []).append(own.outcomes)
    return {seed: standing(outcomes) for seed, outcomes in by_seed.items()}


def _flags_remark(records: Sequence[CellRecord], which: str) -> list[str]:
    if not detects(records):
        return []
    if ranked_rate(records) is None:
        return [f"flags of {which} do not count: {obstacle(records, RANKED_RATE)}"]
    return [f"{which} detects: the joint game at {percent(RANKED_RATE)} false positives"]


def _strong(pairs: Sequence[Sequence[tuple[CellRecord, CellRecord]]]) -> bool:
    """Return whether one white-box attack on both, for every seed, is believed to come close to the worst case."""
    return any(
        all(record.strong and record.cell.access == "white-box" for both in own for record in both) for own in pairs
    )


def _unwell(both: Sequence[tuple[CellRecord | str, CellRecord | str]]) -> list[tuple[str, str]]:
    """Return what has no result, as ``failed`` or ``missing``, with the side it is on."""
    return [(own, which) for pair in both for own, which in zip(pair, "AB", strict=True) if isinstance(own, str)]


def _name(cell: CellId) -> str:
    return "clean" if cell.attack is None else str(column_of(cell))


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
