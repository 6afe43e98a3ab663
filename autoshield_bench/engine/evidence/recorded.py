"""Checks that read what was recorded: the examples themselves, how far they went, and flags on clean images."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from autoshield_bench.balls import distance
from autoshield_bench.contracts import Attack
from autoshield_bench.detection import RATES, allowed
from autoshield_bench.engine.evidence.case import Case
from autoshield_bench.engine.guard import SLACK
from autoshield_bench.plan import AttackPlan, Cell
from autoshield_bench.verdicts import Verdict

_REACH = 0.5
"""Share of eps that the farthest example of an attack must lie away, for its steps to count as crossing the ball."""


def valid(case: Case) -> Verdict:
    """Every example lies in the ball and in [0, 1], and is finite; a cell that failed counts as broken."""
    failed = [cell for cell in case.plan.cells if case.record(cell) is None and cell.id.fpr is None]
    if not failed:
        # A detector-aware cell of another rate than the ranked one, which may have no threshold, takes no part.
        failed = [cell for cell in case.plan.cells if case.record(cell) is None and cell.id.fpr == case.rate]
    if failed:
        record = case.records.get(failed[0].key)
        why = record.error if record is not None and record.error else "it has no result"
        return Verdict(
            check="valid",
            ruling="fail",
            text=f"{len(failed)} of {len(case.plan.cells)} cells failed, such as {failed[0].id}: {why}",
            numbers={"failed": len(failed)},
        )
    outside, farthest, images = 0, 0.0, 0
    for attack, found, clean in _examples(case, case.well(case.attacked)):
        away = distance(found, clean, attack.threat.norm)
        flat = found.flatten(1)
        sound = torch.isfinite(flat).all(1) & (flat >= 0).all(1) & (flat <= 1).all(1)
        outside += int((~(sound & (away <= attack.threat.eps + SLACK))).sum())
        farthest, images = max(farthest, float(away.max())), images + len(found)
    eps = case.plan.id.eps
    return Verdict(
        check="valid",
        ruling="fail" if outside else "pass",
        text=f"{outside} of {images} examples leave the ball or [0, 1]; the farthest lies at {farthest:.6g} of {eps:g}",
        numbers={"outside": outside, "examples": images, "farthest": farthest},
    )


def reach(case: Case) -> Verdict:
    """The white-box attacks took steps that can cross the ball."""
    short: list[str] = []
    able = 0
    eps = case.plan.id.eps
    for cell in case.well(case.white):
        attack = cell.attack
        assert attack is not None
        # Of a minimum-norm attack, wherever it went: what lies beyond the ball is scored as the clean image.
        farthest = float(case.workshop.per_image(cell, attack)["distance"].max())
        walked = _walk(attack)
        # One that looks for the nearest point and finds one for every image has no reason to go farther.
        nearest = attack.spec.search == "minimum-norm" and not case.stands(cell)
        if not nearest and (farthest < _REACH * eps or (walked is not None and walked < eps)):
            why = f"{walked:g} in all its steps" if walked is not None and walked < eps else f"{farthest:.3g} at most"
            short.append(f"{attack.use.label} went {why}")
        else:
            able += 1
    if not able:
        text = f"no white-box attack crosses the ball of eps {eps:g}: " + ("; ".join(short) or "none was run")
        return Verdict(check="reach", ruling="fail", text=text, numbers={"left_out": len(short)})
    text = f"{able} white-box attacks cross the ball" + (f"; left out: {'; '.join(short)}" if short else "")
    return Verdict(check="reach", ruling="pass", text=text, numbers={"left_out": len(short), "counted": able})


def detector(case: Case) -> Verdict:
    """The realised false-positive rates keep to the nominal ones."""
    record = case.record(case.clean)
    stages = sum(stage.detects for stage in case.clean.stages)
    if not stages or record is None or record.outcomes is None or record.detection is None:
        return Verdict(check="detector", ruling="not applicable", text="the defense does not detect")
    if case.rate is None:
        why = next(iter(record.detection.not_applicable.values()), "there is no threshold")
        return Verdict(check="detector", ruling="unproven", text=why)
    n = record.outcomes.n
    numbers: dict[str, float | int | str | None] = {}
    broken = []
    for rate in RATES:
        if str(rate) not in record.detection.flagged:
            continue
        flagged = record.detection.flagged[str(rate)].bit_count()
        spare = stages * allowed(case.workshop.data.info.validation_size, rate, stages)
        chance = predictive_tail(flagged, n, spare, case.workshop.data.info.validation_size)
        numbers |= {f"flagged at {rate:g}": flagged, f"chance at {rate:g}": chance}
        if chance < 0.001:
            broken.append(f"{flagged / n:.4f} where {rate:g} was promised")
    text = f"of {n} clean test images are flagged: " + ", ".join(
        f"{numbers[f'flagged at {rate:g}']} at {rate:g}" for rate in RATES if f"flagged at {rate:g}" in numbers
    )
    if broken:
        text = "false positives beyond chance: " + "; ".join(broken)
    return Verdict(check="detector", ruling="fail" if broken else "pass", text=text, numbers=numbers)


def predictive_tail(flagged: int, n: int, spare: int, validation: int) -> float:
    """Return the chance that at least so many of ``n`` new clean images lie above a threshold that leaves ``spare`` of
    the validation images above it.

    The threshold is an order statistic of its own sample, so the share above it is Beta(spare + 1, validation - spare)
    and the count beta-binomial: the sampling error of the threshold is part of it.
    """
    a, b = spare + 1, max(validation - spare, 1)
    if flagged <= 0:
        return 1.0

    def log_chance(k: int) -> float:
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return ways + _log_beta(k + a, n - k + b) - _log_beta(a, b)

    return min(1.0, math.fsum(math.exp(log_chance(k)) for k in range(flagged, n + 1)))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _examples(case: Case, cells: list[Cell]) -> Iterator[tuple[AttackPlan, Tensor, Tensor]]:
    data = case.workshop.data
    for cell in cells:
        if cell.attack is not None:
            found, _passes = case.workshop.adversarial(cell, cell.attack)
            yield cell.attack, found, data.test_images(data.test_subset(cell.images))


def _walk(attack: AttackPlan) -> float | None:
    """Return the length of all steps together where the attack's parameters say it, else None."""
    params = attack.use.params
    steps, size = params.get("steps"), params.get("step_size")
    if isinstance(steps, int) and isinstance(size, int | float):
        return float(steps * size)
    relative = params.get("relative_step_size")
    if isinstance(steps, int) and isinstance(relative, int | float):
        return float(steps * relative * attack.threat.eps)
    return None


def is_iterative(case: Case, cell: Cell) -> bool | None:
    """Return whether an attack takes more than one gradient step; None where it does not say."""
    if cell.attack is None:
        return None
    runner: Attack = case.workshop.registry.make(cell.attack.use.plugin, cell.attack.use.params)
    steps = runner.gradient_steps()
    return None if steps is None else steps > 1
