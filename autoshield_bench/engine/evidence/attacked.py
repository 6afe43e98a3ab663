"""Checks that attack again: with other eyes, for longer, without bounds, and on images nobody has seen.

Each says beforehand how many images its part of the budget buys. A count fails only when it shows, at 99 %, more than
the check permits, and only after the white-box attack was given one more chance with more restarts.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autoshield_bench.contracts import ThreatModel
from autoshield_bench.engine.evidence.case import Case, Images, beyond, poor
from autoshield_bench.engine.evidence.recorded import is_iterative
from autoshield_bench.plan import Cell
from autoshield_bench.statistics import clopper_pearson
from autoshield_bench.verdicts import Verdict

FEWEST = 500
"""Evaluated images below which nothing is said about convergence."""

PARTS = {"unbounded": 0.1, "iterative": 0.1, "held-out": 0.3, "black-box": 0.2, "converged": 0.4}
"""Shares of the budget, in the order in which the checks are made."""

_SPARE = 0.9
"""What of it they may spend; the rest is for what is not foreseen."""

_LAST = 0.05
"""Share of the whole budget that is kept for the last probes."""

STEPS = 20
"""Gradient steps of the checks' own attacks, where a check says nothing else."""


def affordable(case: Case, check: str, per_image: int) -> int:
    """Return how many images the check's part of what is left buys at so many passes each.

    What a check did not need goes to those after it, and so does the part of one that will have nothing to attack.
    """
    order = list(PARTS)
    idle = case.evaluated.bit_count() < FEWEST or not case.standing
    later = [name for name in order[order.index(check) :] if name == check or not (idle and name == "converged")]
    remaining = sum(PARTS[name] for name in later)
    return int(_spendable(case) * PARTS[check] / remaining) // max(per_image, 1)


def _spendable(case: Case) -> float:
    return max(min(case.left * _SPARE, case.left - _LAST * case.budget), 0.0)


_GRADIENTS_ALONE = {"rounds": 4, "refinements": 0}
"""What the detector-aware attack is cut down to, so that a check's part of the budget buys enough images."""


def _own(case: Case, steps: int, restarts: int = 1) -> tuple[str, dict[str, Any]]:
    """Return the checks' own attack: APGD on the margin; the detector-aware one where the defense detects."""
    if case.rate is not None:
        return "detector-pgd", {**_GRADIENTS_ALONE, "steps": max(steps // 2, 10), "restarts": restarts}
    return "apgd", {"loss": "margin", "steps": steps, "restarts": restarts}


def pay(case: Case, steps: int, restarts: int = 1) -> int:
    """Return the passes that the checks' own attack costs per image at most, with what judging costs."""
    return case.price(*_own(case, steps, restarts)) + case.scoring


def strike(case: Case, images: Images, purpose: str, *, steps: int, restarts: int = 1) -> Tensor:
    """Return which of the images fall to the checks' own attack."""
    found = case.attack(case.crafting(*_own(case, steps, restarts)), images, purpose)
    return case.fallen(found, images, purpose)


# -- unbounded ------------------------------------------------------------------------------------------------------


def unbounded(case: Case) -> Verdict:
    """Without bounds (L-infinity eps 1) the white-box attack breaks every image."""
    steps = 2 * STEPS
    standing = case.test(case.stands(case.clean) & case.evaluated)
    rounds = [_unbounded(case, steps, number) for number in range(3)]
    dear = [case.price(name, params) + case.scoring for name, params in rounds]
    # Nearly every image falls within a few steps of the first route; where draws differ, none leaves before the end.
    usual = dear[0] if case.pipeline.stochastic else dear[0] // (2 * len(case.routes))
    most = min(affordable(case, "unbounded", usual), int(_spendable(case) * _IF_NONE_FALLS) // dear[0])
    images = case.sample(standing, min(64, most), "unbounded")
    if len(images) < 5:
        return poor(case, "unbounded", f"{len(images)} images")
    left, unasked = images, 0
    for number, (name, params) in enumerate(rounds):
        if number:
            # Those that stand are asked again with more restarts, as many as can be paid for: one is enough to fail.
            standing = left
            left = case.sample(left, affordable(case, "unbounded", dear[number]), "unbounded again")
            unasked += len(standing) - len(left)
        if not len(left):
            break
        crafting = case.crafting(name, params, threat=ThreatModel(norm="linf", eps=1.0))
        found = case.attack(crafting, left, f"unbounded {number}")
        left = left.at(~case.fallen(found, left, "unbounded", share=0.5))
    if unasked and not len(left):
        return poor(case, "unbounded", f"no further attack on {unasked} images that stand")
    numbers: dict[str, Any] = {"images": len(images), "standing": len(left)}
    text = f"{len(left)} of {len(images)} images stand at L-infinity eps 1"
    return Verdict(check="unbounded", ruling="fail" if len(left) else "pass", text=text, numbers=numbers)


_IF_NONE_FALLS = 0.5
"""Share of what is left that the first attack may cost where no image falls."""


def _unbounded(case: Case, steps: int, number: int) -> tuple[str, dict[str, Any]]:
    if case.rate is not None:
        # Not with half the steps: in so large a ball steps are long, and 20 of them stop anywhere.
        return "detector-pgd", {**_GRADIENTS_ALONE, "steps": steps, "restarts": 1 + number}
    loss = ("margin", "cross-entropy", "margin")[number]
    return "pgd", {"loss": loss, "steps": steps, "restarts": 1 + number}


# -- iterative ------------------------------------------------------------------------------------------------------


def iterative(case: Case) -> Verdict:
    """No more images than chance allows fall to a single step and stand under the iterative attacks."""
    known = {cell.key: is_iterative(case, cell) for cell in case.well(case.white)}
    walking = [cell for cell in case.well(case.white) if known[cell.key] is not False]
    if not walking:
        text = "no iterative white-box attack was run"
        return Verdict(check="iterative", ruling="fail", text=text, numbers={})
    beside = [cell for cell in case.easier if cell.id.access == "white-box" and is_iterative(case, cell) is not False]
    common, standing = _common(case, walking, beside)
    single = [cell for cell in case.well(case.white) if known[cell.key] is False]
    n = common.bit_count()
    told, asked = 0, n
    for cell in single:
        told |= standing & case.fell(cell)
    if not single:
        cost = case.price("fgsm", {}) + case.scoring
        images = case.sample(case.test(standing), affordable(case, "iterative", cost), "iterative")
        if standing and not len(images):
            return poor(case, "iterative", "no image")
        found = case.attack(case.crafting("fgsm", {}), images, "iterative")
        fallen = case.fallen(found, images, "iterative")
        told = _mask(images.indices[fallen])
        asked = round(n * len(images) / max(standing.bit_count(), 1))
    count = told.bit_count()
    first = count
    if beyond(count, max(asked, 1), _MAY_DIFFER):
        count -= _found(case, case.test(told), "iterative again", count, affordable(case, "iterative", 1))
    failed = beyond(count, max(asked, 1), _MAY_DIFFER)
    again = "" if first == count else f" ({first} before the iterative attack was given more restarts)"
    return Verdict(
        check="iterative",
        ruling="fail" if failed else "pass",
        text=f"{count} of {asked} images fall to a single step and stand under the iterative attacks{again}",
        numbers={"single_step_only": count, "before_escalation": first, "images": asked},
    )


_MAY_DIFFER = 0.005


# -- converged ------------------------------------------------------------------------------------------------------


def converged(case: Case) -> Verdict:
    """Attacking the survivors again, for twice as long and with more restarts, breaks hardly any."""
    n, survivors = case.evaluated.bit_count(), case.test(case.standing)
    if n < FEWEST:
        text = f"only {n} images were evaluated by every attack; {FEWEST} are needed"
        return Verdict(check="converged", ruling="unproven", text=text, numbers={"images": n})
    if not len(survivors):
        text = "no image stands, so there is nothing to attack again"
        return Verdict(check="converged", ruling="pass", text=text, numbers={"images": n, "survivors": 0})
    steps = 2 * max((_steps(cell) for cell in case.well(case.white)), default=STEPS)
    steps = max(steps, 2 * STEPS)  # twice next to nothing is little
    cost = pay(case, steps, 2)
    images = case.sample(survivors, affordable(case, "converged", cost), "converged")
    while len(images) < min(len(survivors), _ENOUGH) and steps > 2 * STEPS:
        # Fewer steps on enough images say more than all steps on a handful.
        steps = max(steps // 2, 2 * STEPS)
        cost = pay(case, steps, 2)
        images = case.sample(survivors, affordable(case, "converged", cost), "converged")
    if len(images) < min(len(survivors), _ENOUGH):
        return poor(case, "converged", f"{len(images)} of {len(survivors)} survivors")
    fallen = int(strike(case, images, "converged", steps=steps, restarts=2).sum())
    low, high = (bound * len(survivors) / n for bound in clopper_pearson(fallen, len(images), confidence=0.98))
    more = fallen / len(images) * len(survivors) / n
    text = (
        f"{fallen} of {len(images)} survivors asked fall to {steps} steps with 2 restarts: "
        f"{100 * more:.1f} points [{100 * low:.1f}, {100 * high:.1f}] of robust accuracy"
    )
    return Verdict(
        check="converged",
        ruling="fail" if low > _MAY_DIFFER else "pass",
        text=text,
        numbers={"fallen": fallen, "asked": len(images), "survivors": len(survivors), "images": n, "steps": steps},
    )


_ENOUGH = 40
"""Survivors that are asked at least, where there are so many."""


def _steps(cell: Cell) -> int:
    steps = cell.attack.use.params.get("steps") if cell.attack else None
    return steps if isinstance(steps, int) else 2 * STEPS


# -- black-box ------------------------------------------------------------------------------------------------------


def black_box(case: Case) -> Verdict:
    """Attacks that see less break hardly any image that the white-box attacks left standing."""
    white = [cell for cell in case.well(case.white) if cell in case.counted()]
    common, standing = _common(case, white, [cell for cell in case.easier if cell.id.access == "white-box"])
    told = 0
    for cell in case.well(case.attacked):
        if cell.id.access != "white-box":
            told |= standing & case.fell(cell)
    survivors = case.test(case.standing & standing)
    for queries in _QUERIES:
        cost = 2 * (STEPS + 1) + queries * case.forward + 2 * case.scoring
        images = case.sample(survivors, affordable(case, "black-box", cost), "black-box")
        if len(images) >= min(len(survivors), _ENOUGH):
            break
    fallen = images.at(_knowing_less(case, images, queries)) if len(images) else images
    n, first = common.bit_count(), (told.bit_count(), len(fallen))

    def too_many(escaped: int, broken: int) -> bool:
        share = len(survivors) / n if n else 0.0
        return _shown(escaped, n, 1.0) > _ESCAPE or _shown(broken, len(images), share) > _ESCAPE

    count = first
    if too_many(*first):
        # Had the white-box attack found them with more restarts, it was not blind to them.
        room = affordable(case, "black-box", 1) // 2
        count = (
            first[0] - _found(case, case.test(told), "black-box told", first[0], room),
            first[1] - _found(case, fallen, "black-box fallen", first[1], room),
        )
    text = (
        f"less knowing attacks of the suite break {count[0]} of {n} images that white-box ones left standing, and "
        f"transferred examples and {queries} queries of Square break {count[1]} of {len(images)} asked"
    )
    if count != first:
        text += f" ({first[0]} and {first[1]} before the white-box attack was given more restarts)"
    failed = too_many(*count)
    if not failed and len(images) < min(len(survivors), _ENOUGH // 2):
        return poor(case, "black-box", f"{len(images)} of {len(survivors)} survivors")
    return Verdict(
        check="black-box",
        ruling="fail" if failed else "pass",
        text=text,
        numbers={
            "escaped": count[0],
            "images": n,
            "fallen": count[1],
            "asked": len(images),
            "survivors": len(survivors),
        },
    )


_QUERIES = (100, 50, 25)
"""Queries per image, the first that buys enough images."""
_ESCAPE = 0.002


def _knowing_less(case: Case, images: Images, queries: int) -> Tensor:
    """Return which of the images fall to examples made on the bare classifier, or to queries alone."""
    bare = case.crafting("pgd", {"loss": "margin", "steps": STEPS}, bare=True)
    fallen = case.fallen(case.attack(bare, images, "transfer"), images, "transfer")
    left = images.at(~fallen)
    if len(left):
        square = case.crafting("square", {"queries": queries}, routes=case.routes[:1])
        fallen[~fallen] = case.fallen(case.attack(square, left, "square"), left, "square")
    return fallen


def _shown(count: int, asked: int, share: float) -> float:
    """Return the share of all images that a count shows at 99 %, where those asked stand for a ``share`` of them."""
    return clopper_pearson(count, asked, confidence=0.98)[0] * share if asked else 0.0


def _found(case: Case, images: Images, purpose: str, of: int, passes: int) -> int:
    """Return how many of so many images the white-box attack finds itself, estimated from those given.

    It takes as many steps as the judged ones, and as many restarts as so many passes buy: an attack weaker than theirs
    would say nothing. Where they buy too little for that, some of the images get a shorter one.
    """
    judged = max(STEPS, *(_steps(cell) for cell in case.well(case.white)))
    ways = [(judged, 8), (judged, 4), (judged, 2), (STEPS, 2)]
    steps, restarts = next((way for way in ways if pay(case, *way) * len(images) <= passes), ways[-1])
    images = case.sample(images, passes // pay(case, steps, restarts), purpose)
    if not len(images):
        return 0
    return round(of * float(strike(case, images, purpose, steps=steps, restarts=restarts).float().mean()))


# -- shared ---------------------------------------------------------------------------------------------------------


def _common(case: Case, cells: list[Cell], easier: list[Cell]) -> tuple[int, int]:
    """Return the masks of images that some cells all evaluated, and of those that stand when clean, under these cells
    and under the ``easier`` ones: what a white-box attack found in a smaller ball, white-box attacks can find here."""
    common = case.evaluated
    standing = common & case.stands(case.clean)
    for cell in easier:
        standing &= case.stands(cell) | ~case.outcomes(cell).evaluated
    for cell in cells:
        common &= case.outcomes(cell).evaluated
        standing &= case.stands(cell)
    return common, standing & common


def _mask(indices: Tensor) -> int:
    mask = 0
    for index in indices.tolist():
        mask |= 1 << index
    return mask
