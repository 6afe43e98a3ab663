"""Plans of several result directories: whether they are parts of one suite, and the plan that covers them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from autoshield_bench.errors import StoreError, UsageError
from autoshield_bench.migration import read_plan_file
from autoshield_bench.outcomes import expect
from autoshield_bench.results import CellId
from autoshield_bench.store import content_key
from autoshield_bench.verdicts import EvidenceId

Place = TypeVar("Place", CellId, EvidenceId)

Group = tuple[str, str, int]
"""Model, defense and seed: what a plan's cells are laid out by."""


@dataclass(frozen=True)
class PlanFile:
    """One plan and where it was found."""

    path: Path
    value: Mapping[str, Any]
    cells: tuple[tuple[str, CellId], ...]
    """Keys and places of the cells, in the plan's order."""
    judged: tuple[tuple[str, EvidenceId], ...]
    """Keys and places of the evidence."""

    @property
    def numeric_class(self) -> str:
        """Device kind, instruction set and torch build of the machine it was made for."""
        return str(self.value["numeric_class"])

    @property
    def seeds(self) -> list[int]:
        """Training seeds of the suite."""
        return list(self.value["suite"].get("seeds", []))


def read_plan(path: Path) -> PlanFile:
    """Read one plan. Raises StoreError naming the file, NewerSchemaError where it is too new."""
    value = {"data": None, **read_plan_file(path)}
    try:
        cells = tuple((str(entry["key"]), CellId.from_json(entry["cell"])) for entry in value["cells"])
        judged = tuple(
            (str(entry["key"]), EvidenceId.from_json(entry["where"])) for entry in value["evidence"]["records"]
        )
        plan = PlanFile(path, value, cells, judged)
        expect(value, dict.fromkeys(("suite", "plugins", "harness", "checkpoints"), dict))
        expect(value, {"numeric_class": str, "data": str | None})
        expect(value["evidence"], {"level": str})
        if not all(isinstance(seed, int) for seed in plan.seeds):
            raise TypeError("seeds are whole numbers")
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StoreError(f"{path}: not a plan ({error!r}); run the suite again") from error
    return plan


def read_plans(directory: Path) -> list[PlanFile]:
    """Return the plans of a results directory: that of ``plan.json``, then those of other numeric classes.

    Raises StoreError where there is none.
    """
    if not (directory / "plan.json").exists():
        raise StoreError(f"{directory}: no plan.json, so no results; name a directory that `aubench run` wrote")
    leading = read_plan(directory / "plan.json")
    others = [read_plan(path) for path in sorted((directory / "plans").glob("*.json"))]
    return [leading, *(plan for plan in others if plan.numeric_class != leading.numeric_class)]


def check_one_suite(plans: Sequence[PlanFile]) -> None:
    """Raise UsageError unless all plans are of one suite, seeds aside, run by the same code on the same data.

    Within one numeric class the keys of the cells must agree as well: they tell what nothing else does, such as another
    ``--limit``.
    """
    first = plans[0]
    for other in plans[1:]:
        phrases = list(_differences(first.value, other.value))
        if not phrases:
            alike = [plan for plan in plans if plan.numeric_class == other.numeric_class]
            phrases = list(_key_differences(alike, other))
        if phrases:
            raise UsageError(
                f"{first.path} and {other.path} are not parts of one suite: {'; '.join(phrases)}; merge what one suite "
                "gave under one version of the code"
            )


def _differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[str]:
    first, second = dict(one["suite"]), dict(two["suite"])
    keys = [key for key in sorted({*first, *second} - {"seeds"}) if first.get(key) != second.get(key)]
    if "name" in keys:
        yield f"the suites are {str(first.get('name'))[:60]!r} and {str(second.get('name'))[:60]!r}"
    elif keys:
        yield f"the suites differ in {', '.join(keys)}"
    if one["harness"] != two["harness"]:
        yield "the harness is not the same code"
    if None not in (one["data"], two["data"]) and one["data"] != two["data"]:
        yield "the data are not the same"
    plugins = [name for name, own in one["plugins"].items() if two["plugins"].get(name, own) != own]
    if plugins:
        yield f"not the same code: {', '.join(sorted(plugins)[:3])}"
    checkpoints = [name for name, own in one["checkpoints"].items() if two["checkpoints"].get(name, own) != own]
    if checkpoints:
        yield f"not the same weights: {', '.join(sorted(checkpoints)[:3])}"


def _key_differences(plans: Sequence[PlanFile], other: PlanFile) -> Iterator[str]:
    """Compare with every earlier plan of one class."""
    own = _grouped(other.cells)
    for plan in plans[: plans.index(other)]:
        level, its = plan.value["evidence"]["level"], other.value["evidence"]["level"]
        if level != its:
            yield f"--evidence was {level} and {its}"
        for group, cells in _grouped(plan.cells).items():
            if group in own and own[group] != cells:
                where = next((place for key, place in cells if (key, place) not in own[group]), cells[0][1])
                yield f"the keys of their cells differ, as at {where} (another --limit, --batch-size or data)"
                return


def joined(plans: Sequence[PlanFile]) -> dict[str, Any]:
    """Return the plan of all parts of one numeric class: that of the undivided run, where they are all of it.

    Seeds that differ are put in ascending order. The plans must have passed ``check_one_suite``.
    """
    first = plans[0].value
    if all(plan.value == first for plan in plans):
        return dict(first)
    seeds = plans[0].seeds
    if any(plan.seeds != seeds for plan in plans):
        seeds = sorted({seed for plan in plans for seed in plan.seeds})
    suite = {**first["suite"], "seeds": seeds}
    cells = _in_order(_grouped([entry for plan in plans for entry in plan.cells]), seeds)
    judged = _in_order(_grouped([entry for plan in plans for entry in plan.judged]), seeds)
    return {
        **first,
        "suite": suite,
        "suite_sha256": content_key(suite),
        "data": next((plan.value["data"] for plan in plans if plan.value["data"] is not None), None),
        "checkpoints": {name: own for plan in plans for name, own in plan.value["checkpoints"].items()},
        "plugins": {name: own for plan in plans for name, own in plan.value["plugins"].items()},
        "cells": [{"key": key, "cell": place.__dict__} for key, place in cells],
        "evidence": {
            "level": first["evidence"]["level"],
            "records": [{"key": key, "where": place.__dict__} for key, place in judged],
        },
    }


def _grouped(entries: Sequence[tuple[str, Place]]) -> dict[Group, list[tuple[str, Place]]]:
    """Return entries by model, defense and seed, each once."""
    groups: dict[Group, dict[tuple[str, Place], None]] = {}
    for key, place in entries:
        groups.setdefault((place.model, place.defense, place.seed), {})[key, place] = None
    return {group: list(own) for group, own in groups.items()}


def _in_order(groups: Mapping[Group, Sequence[tuple[str, Place]]], seeds: Sequence[int]) -> list[tuple[str, Place]]:
    """Return entries as a plan lays them out: models, in them defenses, in them seeds."""
    defenses = dict.fromkeys((model, defense) for model, defense, _ in groups)
    listed: list[Group] = [(model, defense, seed) for model, defense in defenses for seed in seeds]
    return [own for group in dict.fromkeys([*listed, *groups]) for own in groups.get(group, ())]
