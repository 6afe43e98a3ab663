"""The check that compares test images with images that nobody can have learnt by heart."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from autoshield_bench.engine.evidence.attacked import STEPS, affordable, pay, strike
from autoshield_bench.engine.evidence.case import Case, Images, beyond, poor
from autoshield_bench.engine.evidence.probes import noisy
from autoshield_bench.engine.evidence.recorded import predictive_tail
from autoshield_bench.margins import margins
from autoshield_bench.seeding import global_seed
from autoshield_bench.statistics import clopper_pearson
from autoshield_bench.verdicts import Verdict


def held_out(case: Case) -> Verdict:
    """The defense is as robust on images that it cannot have met as on test images that are as hard."""
    _fitting, (images, labels) = case.workshop.data.parts
    fresh = Images(images, labels, torch.arange(len(labels)) + (1 << 30))
    n, fewest = case.evaluated.bit_count(), min(_FEWEST_HELD, len(labels))
    # Hardness is judged by the bare classifier. What takes no attack takes a third of the check's part of the budget.
    many = min(_HELD, affordable(case, "held-out", 3 * (6 * case.forward + len(_SHIFTS) + 2 + _CHOICE)))
    known = case.sample(case.test(case.evaluated), many, "held-out")
    fresh = _as_hard(case, case.sample(fresh, _CHOICE * many, "held-out"), known)
    if min(len(known), len(fresh)) >= fewest:
        signs, chance = _remembered(case, known, fresh)
        if chance < _BY_CHANCE:
            return Verdict(check="held-out", ruling="fail", text=signs, numbers={"chance": chance})
        restored = _given_back(case, fresh)
        if beyond(restored, len(fresh), 0.5):
            text = f"{restored} of {len(fresh)} noisy validation images come back as they were, and moved a little not"
            return Verdict(check="held-out", ruling="fail", text=text, numbers={"given_back": restored})
    if clopper_pearson(case.standing.bit_count(), n, confidence=0.98)[1] < _NEXT_TO_NOTHING:
        text = f"{case.standing.bit_count()} of {n} images stand: there is no robustness that memory could explain"
        return Verdict(check="held-out", ruling="not applicable", text=text, numbers={})
    # Three groups, each first judged as it is.
    most = affordable(case, "held-out", 3 * (pay(case, STEPS // 2) + case.scoring) + len(_SHIFTS))
    known, fresh = (case.sample(own, most, "held-out attacked") for own in (known, fresh))
    if min(len(known), len(fresh)) < fewest:
        return poor(case, "held-out", f"{min(len(known), len(fresh))} images")
    moved = _shifted(case, fresh)
    standing, clean = {}, {}
    for name, own in (("test", known), ("fresh", fresh), ("shifted", moved)):
        right = ~case.fallen(own.images, own, "held-out clean")
        clean[name] = int(right.sum())
        broken = torch.ones(len(own), dtype=torch.bool)
        if bool(right.any()):
            broken[right] = strike(case, own.at(right), f"held-out {name}", steps=STEPS // 2)
        standing[name] = int((~broken).sum())
    # What a shift costs the undefended classifier itself is no sign of memory.
    loss = max(0.0, _right(case, fresh) - _right(case, moved))
    failed = any(
        _above(own["test"], len(known), own["fresh"], len(fresh))
        or _above(own["test"], len(known), own["shifted"], len(moved), kept=kept, room=room)
        # One that knows the validation images by heart tells nothing by them.
        or _above(own["fresh"], len(fresh), own["shifted"], len(moved), kept=kept, room=room)
        for own, kept, room in ((standing, _KEPT, loss), (clean, 1.0, loss + _SHIFT_MAY_COST))
    )
    shares = {
        "test": standing["test"] / len(known),
        "fresh": standing["fresh"] / len(fresh),
        "shifted": standing["shifted"] / len(moved),
    }
    text = (
        f"robust on {shares['test']:.2f} of {len(known)} test images, {shares['fresh']:.2f} of {len(fresh)} validation "
        f"images as hard and {shares['shifted']:.2f} of those moved a little, under one short attack"
    )
    return Verdict(check="held-out", ruling="fail" if failed else "pass", text=text, numbers=shares)


_HELD = 200
_FEWEST_HELD = 100
_CHOICE = 10
"""Images among which one is chosen that is as hard as a given one."""
_SHIFTS = ((1, 0), (-1, 0), (0, 1), (0, -1))
_SHIFT = 1 / 24
"""Length of a shift, as a share of the image's width; a pixel where that is more. A whole pixel of eight is so far that
what is sound and not made for it, such as an adversarially trained network without convolutions, is lost."""
_FEW_LEVELS = 256
_NEXT_TO_NOTHING = 0.05
_SHIFT_MAY_COST = 0.1
"""What a shift may cost without an attack, beyond what it costs the undefended classifier."""
_KEPT = 0.5
"""Share of what stands under attack that a sound defense keeps when images move a little; what memory gives is lost.

Adversarially trained networks without convolutions keep 0.43 to 0.76 of it on digits, where a shift moves values by
more than the attack, and 0.83 on MNIST; what knows images by heart, and none so far away, 0.1 at most."""
_BY_CHANCE = 0.001 / 3
"""Of three signs that are looked for, one is as rare as this where nothing is known by heart."""


def _remembered(case: Case, known: Images, fresh: Images) -> tuple[str, float]:
    """Return the clearest sign that test images are known by heart, and the chance of it where none is.

    What has learnt images by heart gives them back from noise, or is surer of them than of others as hard; neither
    takes an attack.
    """
    found = [("", 1.0)]
    for kind, change in (("clean", None), ("noisy", noisy)):
        surer, errors = [], []
        for own in (known, fresh):
            sure, error = [], []
            for rows in torch.split(torch.arange(len(own)), case.workshop.batch_size):
                part = own.at(rows)
                x = part.images if change is None else change(case, part)
                with torch.no_grad(), global_seed("evidence", "remembered"):
                    output = case.pipeline(x.to(case.device), case.rng(part, "remembered"))
                sure.append(-margins(output.logits.cpu(), part.labels))
                error.append((output.purified.cpu() - part.images).abs().flatten(1).mean(1))
            surer.append(torch.cat(sure))
            errors.append(torch.cat(error))
        lead, chance = _lead(*surer)
        words = f"{kind} test images are classified with more certainty than validation images as hard (by {lead:.2f})"
        found.append((words, chance))
        if change is not None and case.pipeline.stages:
            better = int((errors[0] < errors[1].kthvalue(2).values).sum())
            words = (
                f"{better} of {len(known)} noisy test images come back closer to the clean ones than all but one of "
                f"{len(fresh)} noisy validation images"
            )
            found.append((words, predictive_tail(better, len(known), 1, len(fresh))))
    return min(found, key=lambda own: own[1])


def _given_back(case: Case, images: Images) -> int:
    """Return how many images come back from noise ten times closer to what they were than the same ones moved a little.

    A purifier cannot tell an image that it has not met from the same one a pixel further. One that knows images by
    heart, the validation images too, and from far away, may give back the moved ones as those that it knows, and stand.
    """
    if not case.pipeline.stages:
        return 0
    there, errors = _shifted(case, images), []
    for own in (images, there):
        error = []
        for rows in torch.split(torch.arange(len(own)), case.workshop.batch_size):
            part = own.at(rows)
            x = noisy(case, part)
            with torch.no_grad(), global_seed("evidence", "given back"):
                purified = case.pipeline(x.to(case.device), case.rng(part, "given back")).purified.cpu()
            error.append(torch.stack([(y - part.images).abs().flatten(1).mean(1) for y in (purified, x)]))
        errors.append(torch.cat(error, 1))
    (here, _), (moved, noise) = errors
    return int(((10 * here < moved) & (10 * moved > noise)).sum())


def _lead(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return by how much more of ``one`` lies above some value than of ``other``, and the chance of that among equals.

    The one-sided statistic of Kolmogorov and Smirnov, whose chance is at most exp(-2 lead^2 n m / (n + m)).
    """
    at = torch.cat([one, other])
    above = ((one[None] > at[:, None]).double().mean(1) - (other[None] > at[:, None]).double().mean(1)).max()
    lead = max(float(above), 0.0)
    return lead, math.exp(-2 * lead**2 * len(one) * len(other) / (len(one) + len(other)))


def _above(one: int, of: int, other: int, of_other: int, *, kept: float = 1.0, room: float = 0.0) -> bool:
    """Return whether so much of a share lies above another and ``room``, both ends of their intervals granted."""
    low, high = clopper_pearson(one, of, confidence=0.98)[0], clopper_pearson(other, of_other, confidence=0.98)[1]
    return low * kept > high + room


def _bare_margins(case: Case, images: Images) -> Tensor:
    """Return how far the undefended classifier is from erring ``[N]``, which says how hard the images are."""
    with torch.no_grad():
        logits = case.bare(images.images.to(case.device), case.rng(images, "bare")).logits.cpu()
    return margins(logits, images.labels)


def _right(case: Case, images: Images) -> float:
    return float((_bare_margins(case, images) < 0).float().mean())


def _as_hard(case: Case, images: Images, known: Images) -> Images:
    """Return as many of the images as are known, each as hard as one of those; all, where there are no more.

    A test set need not be as hard as the training set: MNIST's first half is easier, and breaks the less for it.
    """
    if len(images) <= len(known):
        return images
    distances = (_bare_margins(case, known)[:, None] - _bare_margins(case, images)[None]).abs()
    chosen = []
    for row in distances:
        chosen.append(int(row.argmin()))
        distances[:, chosen[-1]] = torch.inf
    return images.at(torch.tensor(sorted(chosen)))


def _shifted(case: Case, images: Images) -> Images:
    """Return the images moved a little, each in the direction in which it stays as hard as it was; the border
    repeats.

    Where images have few levels, the moved ones have the same: a quantiser would tell them apart otherwise.
    """
    ways, levels = [], torch.unique(images.images)
    for right, down in _SHIFTS:
        padded = functional.pad(images.images, (1, 1, 1, 1), mode="replicate")
        x = padded[..., 1 - down : 1 - down + images.images.shape[-2], 1 - right : 1 - right + images.images.shape[-1]]
        x = torch.lerp(images.images, x, min(1.0, _SHIFT * images.images.shape[-1]))
        if len(levels) <= _FEW_LEVELS:
            x = levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]
        ways.append(Images(x, images.labels, images.indices + (1 << 30)))
    here = _bare_margins(case, images)
    best = torch.stack([(_bare_margins(case, way) - here).abs() for way in ways]).argmin(0)
    x = torch.stack([way.images for way in ways])[best, torch.arange(len(images))]
    return Images(x, images.labels, images.indices + (1 << 30))
