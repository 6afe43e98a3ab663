"""What the checks take for fallen and for standing, and what they may spend, on results made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from builders import cell, record

from autoshield_bench.engine.evidence import attacked, held_out
from autoshield_bench.engine.evidence.case import Case, Images
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


def test_held_out_images_are_as_hard_as_those_they_are_compared_with() -> None:
    def bare(x: torch.Tensor, _rng: object) -> Any:
        # The label is 0; what an image's first pixel says is how sure the classifier is of it.
        return SimpleNamespace(logits=torch.stack([x[:, 0, 0, 0], torch.zeros(len(x))], 1))

    def images(values: torch.Tensor, first: int) -> Images:
        x = torch.zeros(len(values), 1, 4, 4) + values.view(-1, 1, 1, 1)
        return Images(x, torch.zeros(len(values), dtype=torch.int64), torch.arange(len(values)) + first)

    case: Any = SimpleNamespace(bare=bare, device="cpu", rng=lambda _images, _purpose: None)
    easy = images(torch.linspace(0.8, 1.0, 20), 0)
    mixed = images(torch.linspace(0.0, 1.0, 200), 1000)
    chosen = held_out._as_hard(case, mixed, easy)
    assert len(set(chosen.indices.tolist())) == len(easy)
    assert abs(float(chosen.images.mean() - easy.images.mean())) < 0.01
    assert held_out._as_hard(case, mixed, mixed) is mixed
    ramp = Images(torch.arange(400.0).view(1, 1, 20, 20), easy.labels[:1], easy.indices[:1])
    # Its first pixel is 0, and stays so where the image moves right or down, where the border repeats.
    assert float(held_out._shifted(case, ramp).images[0, 0, 0, 0]) == 0
    assert not torch.equal(held_out._shifted(case, ramp).images, ramp.images)
    # Of few levels, none is new: a quantiser would tell the moved ones apart.
    coarse = Images(ramp.images // 50, ramp.labels, ramp.indices)
    moved = held_out._shifted(case, coarse).images
    assert not torch.equal(moved, coarse.images)
    assert set(moved.unique().tolist()) <= set(coarse.images.unique().tolist())
