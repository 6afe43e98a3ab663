"""What ``aubench plan`` says work will take, from what work took before."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoshield_bench.engine.journal import Journal
from autoshield_bench.engine.pace import Pace, Timing, known_timings

HERE = "mnist/cnn/{}/{}/white-box/linf-0.2/seed-{}"


def attack(defense: str, name: str, seed: int, seconds: float, passes: int = 1000, images: int = 100) -> Timing:
    return Timing("attack", HERE.format(defense, name, seed), images, passes, seconds)


def test_the_same_attack_on_another_seed_tells_most() -> None:
    pace = Pace([attack("ae", "strong", 0, 10.0), attack("ae", "strong", 1, 30.0), attack("ae", "pgd", 0, 1.0)], {})
    assert pace.seconds("attack", HERE.format("ae", "strong", 2), 100, 9999) == pytest.approx(20.0)
    assert pace.seconds("attack", HERE.format("ae", "strong", 2), 50, None) == pytest.approx(10.0)


def test_an_attack_elsewhere_tells_what_share_of_its_passes_it_spends() -> None:
    bounds = {("attack", HERE.format("ae", "strong", 0)): 4000, ("attack", HERE.format("ae", "pgd", 0)): 1000}
    pace = Pace([attack("ae", "strong", 0, 10.0), attack("ae", "pgd", 0, 1.0)], bounds)
    # 0.01 s per pass, and a quarter of those it might make.
    assert pace.seconds("attack", HERE.format("blur", "strong", 0), 100, 8000) == pytest.approx(20.0)
    assert pace.seconds("attack", HERE.format("blur", "pgd", 0), 100, 8000) == pytest.approx(8.0)
    assert pace.seconds("attack", HERE.format("blur", "pgd", 0), 100, None) is None


def test_what_nobody_timed_is_not_known() -> None:
    assert Pace([], {}).seconds("attack", HERE.format("ae", "pgd", 0), 100, 1000) is None
    assert Pace([attack("ae", "pgd", 0, 1.0)], {}).seconds("fit", "mnist/cnn/ae/clean/seed-0", 10, 20) is None


def written(directory: Path) -> None:
    journal = Journal(directory)
    cell = HERE.format("ae", "pgd", 0)
    journal.event("cell", cell=cell, stage="attack", images=100, passes=1000, ok=True, seconds=10.0)
    journal.event("cell", cell=cell, stage="attack", images=100, passes=10, ok=False, seconds=999.0)
    journal.event("done", cell=cell, status="ok", seconds=12.0)
    journal.event("judged", where="mnist/cnn/ae/linf-0.2/seed-0", seconds=5.0)
    journal.close()


def test_scoring_and_judging_are_known_from_journals(tmp_path: Path) -> None:
    written(tmp_path / "mnist")
    for directory in ("mnist", "new"):  # a new suite goes by those beside it
        pace = Pace(known_timings(tmp_path / directory), {})
        assert pace.seconds("attack", HERE.format("ae", "pgd", 1), 100, 1000) == pytest.approx(10.0)
        assert pace.seconds("score", HERE.format("ae", "pgd", 1), 100, 100) == pytest.approx(2.0)
        assert pace.seconds("score", HERE.format("blur", "pgd", 1), 100, 100) == pytest.approx(2.0)
        assert pace.seconds("evidence", "mnist/cnn/ae/linf-0.2/seed-1", 1, None) == pytest.approx(5.0)
    assert known_timings(tmp_path / "nowhere" / "new") == []
