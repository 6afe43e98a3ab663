"""What the checks take for fallen and for standing, and what they may spend, on results made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from builders import cell, record

from autoshield_bench.engine.evidence import attacked
from autoshield_bench.engine.evidence.case import Case
from autoshield_bench.results import CellRecord

WHITE, GRAY = "white-box", "gray-box"


def case_of(here: list[CellRecord], easier: list[CellRecord]) -> Case:
    """Return the case of a defense that does not detect; the clean record first."""

    def planned(own: CellRecord) -> Any:
        attack = None if own.cell.attack is None else SimpleNamespace(eot=1, routes=())
        return SimpleNamespace(id=own.cell, key=own.key, attack=attack, stages=())

    plan: Any = SimpleNamespace(
        cells=tuple(map(planned, here)), easier=tuple(map(planned, easier)), id=SimpleNamespace(seed=0, eps=0.2)
    )
    workshop: Any = SimpleNamespace(thresholds=lambda _cell: {})
    return Case(plan, {own.key: own for own in (*here, *easier)}, workshop, "full", 1000)


def mask(*images: int) -> int:
    return sum(1 << image for image in images)


def test_white_box_attacks_found_what_they_found_in_a_smaller_ball() -> None:
    clean = record(cell("ae"), range(9))
    white = record(cell("ae", "pgd", WHITE), range(6))
    gray = record(cell("ae", "pgd", GRAY), [4, 5])
    small = record(cell("ae", "pgd", WHITE, eps=0.1), [3, 4, 5])
    few = record(cell("ae", "apgd", WHITE, eps=0.1), [], [5])
    other = record(cell("ae", "pgd", GRAY, eps=0.1), [4])
    case = case_of([clean, white, gray], [small, few, other])
    own = [planned for planned in case.white if planned in case.counted()]
    assert case.standing == mask(4)
    beside = [planned for planned in case.easier if planned.id.access == WHITE]
    # 0, 1 and 2 stand in the larger ball and fell to a white-box attack in the smaller one, as did 5.
    assert attacked._common(case, own, beside) == (mask(*range(10)), mask(3, 4))
    assert attacked._common(case, own, []) == (mask(*range(10)), mask(0, 1, 2, 3, 4, 5))
