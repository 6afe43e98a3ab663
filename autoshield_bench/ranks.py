"""Ranks: who has one, and why others have none. A missing rank never changes a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autoshield_bench.readings import unique
from autoshield_bench.results import CellId, ResultSet
from autoshield_bench.verdicts import EvidenceId, EvidenceRecord, Level

NO_EVIDENCE = "no evidence was taken (--evidence off)"
"""Why nobody has a rank where no check was run."""


@dataclass(frozen=True, kw_only=True)
class EvidenceCost:
    """How much evidence was taken, and what it cost."""

    levels: tuple[Level, ...]
    """``off`` alone where none was taken; several where records of an earlier run were of another level."""
    passes: int
    """Image-passes that the checks spent."""
    judged: int
    """Image-passes of the attacks that they judge."""

    @property
    def taken(self) -> bool:
        """Whether any was."""
        return self.levels != ("off",)

    @property
    def share(self) -> float | None:
        """``passes`` in units of ``judged``; None where there is nothing to compare with."""
        return self.passes / self.judged if self.judged else None


def evidence_by_place(results: ResultSet) -> dict[EvidenceId, EvidenceRecord]:
    """Return the records that count: none where the run was asked for no evidence."""
    if results.evidence_level == "off":
        return {}
    return {record.where: record for record in results.evidence if record.level != "off"}


def cost_of(level: Level, records: Iterable[EvidenceRecord]) -> EvidenceCost:
    """Return what the evidence of a leaderboard cost, given the level that its run was asked for."""
    own = list(records)
    return EvidenceCost(
        levels=tuple(unique(record.level for record in own)) or (level,),
        passes=sum(record.passes for record in own),
        judged=sum(record.judged for record in own),
    )


def own_evidence(
    cells: Sequence[CellId], threat: tuple[str | None, float | None], records: Mapping[EvidenceId, EvidenceRecord]
) -> tuple[EvidenceRecord, ...]:
    """Return the records on one defense under one threat, by its planned cells, in the order of their seeds."""
    norm, eps = threat
    if norm is None or eps is None:
        return ()
    places = unique(
        EvidenceId(
            dataset=cell.dataset, model=cell.model, defense=cell.defense, seed=cell.seed, norm=norm, eps=float(eps)
        )
        for cell in cells
    )
    return tuple(records[place] for place in places if place in records)


def reasons(
    level: Level, records: Sequence[EvidenceRecord], seeds: Sequence[int], no_worst_case: str
) -> tuple[str, ...]:
    """Return why a defense has no rank; empty where it has one.

    ``no_worst_case`` says why there is none, and is empty where there is one.
    """
    found = [f"no worst case: {no_worst_case}"] if no_worst_case else []
    if level == "off":
        return (*found, NO_EVIDENCE)
    by_text: dict[tuple[str, str], list[int]] = {}
    for record in records:
        if not record.verdicts:
            by_text.setdefault(("", "its evidence holds no verdict"), []).append(record.where.seed)
        for verdict in record.verdicts:
            if verdict.costs_rank:
                by_text.setdefault((verdict.check, verdict.text), []).append(record.where.seed)
    absent = [seed for seed in seeds if seed not in {record.where.seed for record in records}]
    if absent:
        by_text["", "no evidence was taken yet; run the suite again"] = absent
    for (check, text), where in by_text.items():
        which = "" if len(seeds) == 1 else f" (seed{'s' if len(where) > 1 else ''} {', '.join(map(str, where))})"
        found.append(f"{check}{which}: {text}" if check else f"{text}{which}")
    return tuple(found)


def ranked(shares: Sequence[float | None]) -> list[int | None]:
    """Return the rank of each worst case, 1 for the highest and equal ones alike; None for those that take no part."""
    own = [share for share in shares if share is not None]
    return [None if share is None else 1 + sum(other > share for other in own) for share in shares]
