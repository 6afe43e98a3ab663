"""Checks that ask the networks themselves: are they live, steady, and are their gradients what they claim to be?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench.engine.evidence.case import Case, Images, beyond
from autoshield_bench.engine.pipeline import FittedStage
from autoshield_bench.errors import CellError, GradientCut
from autoshield_bench.margins import margins
from autoshield_bench.seeding import ImageRandom, global_seed
from autoshield_bench.verdicts import Verdict

PROBES = 64
"""Images that the networks are asked about at most."""

_PART = 0.15
"""Share of the budget that buys them."""

_QUESTIONS = 40
"""Passes through the pipeline that all probes together ask of an image, about."""

_SAME = 1e-3
"""Largest difference, in units of the largest logit of an image, that counts as rounding."""


def probes(case: Case) -> Images:
    """Return clean test images to ask about."""
    affordable = int(case.budget * _PART) // (_QUESTIONS * case.forward)
    return case.sample(case.test(case.evaluated), max(min(PROBES, affordable), 8), "probes")


def noisy(case: Case, images: Images) -> Tensor:
    """Return the images under random signs of the size of the ball."""
    signs = case.rng(images, "noise").normal(images.images.shape[1:], "signs").sign()
    size = case.plan.id.eps if case.plan.id.norm == "linf" else case.plan.id.eps / images.images[0].numel() ** 0.5
    return (images.images + max(size, 0.05) * signs).clamp(0, 1)


# -- live ---------------------------------------------------------------------------------------------------------


def live(case: Case, before: dict[str, bytes] | Exception) -> Verdict:
    """The defense is called and does something, nothing is in training mode, no weight changed during the attacks.

    ``before`` is a picture of all weights from before the evidence's attacks; why there is none is raised.
    """
    if isinstance(before, Exception):
        raise before
    wrong = list(_idle(case)) + list(_trains(case)) + list(_mixes(case))
    changed = sorted(name for name, value in picture(case).items() if before.get(name) != value)
    if changed:
        wrong.append(f"weights or buffers changed during the attacks: {', '.join(changed[:3])}")
    if wrong:
        return Verdict(check="live", ruling="fail", text="; ".join(wrong), numbers={"changed": len(changed)})
    text = "the defense is called, no module that matters is in training mode, no weight changed"
    if not case.stages:
        text = "the classifier is in evaluation mode, no weight changed"
    return Verdict(check="live", ruling="pass", text=text)


def _idle(case: Case) -> Iterator[str]:
    """Yield the stages that do nothing to any probe, clean or noisy."""
    images = probes(case)
    x = torch.cat([images.images, noisy(case, images)]).to(case.device)
    rng = case.rng(images, "idle").select(torch.arange(len(images)).repeat(2))
    with torch.no_grad(), global_seed("evidence", "idle"):
        for position, stage in enumerate(case.stages):
            if not (stage.transforms or stage.replaces or stage.detects):
                yield f"{stage.component} overrides none of purify, defend and anomaly_score, so it is never called"
            if stage.replaces and not (stage.transforms or stage.detects):
                replaced = stage.defense.defend(copy.deepcopy(case.networks.classifier)).eval()
                if torch.equal(replaced(x), case.networks.classifier(x)):
                    yield f"{stage.component} gives back a classifier that answers like the undefended one"
            if stage.transforms:
                purified = stage.defense.purify(x.clone(), rng.child("stage", position))
                if torch.equal(purified, x) and not (stage.detects or stage.replaces):
                    yield f"{stage.component} returns every one of {len(x)} images unchanged, clean and noisy"
                x = purified


def _trains(case: Case) -> Iterator[str]:
    """Yield the stages that hold a module in training mode whose output depends on that mode."""
    images = probes(case)
    x = images.images.to(case.device)
    rng = case.rng(images, "trains")
    with torch.no_grad(), global_seed("evidence", "trains"):
        for stage in case.stages:
            if stage.transforms:
                stage.defense.purify(x.clone(), rng)
            training = [
                type(module).__name__
                for held in held_modules(stage)
                for module in held.modules()
                if module.training and _has_modes(module)
            ]
            if training:
                yield f"{stage.component} holds {training[0]} in training mode"
        case.pipeline(x, rng)
        for module in case.pipeline.classifier.modules():
            if module.training and _has_modes(module):
                yield f"the classifier holds {type(module).__name__} in training mode"
                return


def _has_modes(module: nn.Module) -> bool:
    # The layers of torch that behave otherwise in training; a layer of somebody's own is found by what it does: logits
    # that differ between passes, or with the company that an image keeps.
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats


def _mixes(case: Case) -> Iterator[str]:
    """Yield what is wrong where an image's logits depend on the images that it travels with."""
    images = probes(case)
    together = _logits(case, images, "company")
    halves = torch.split(torch.arange(len(images)).flip(0), max(len(images) // 4, 1))
    apart = torch.empty_like(together)
    for rows in halves:
        apart[rows] = _logits(case, images.at(rows), "company")
    different = int((_difference(together, apart) > _SAME).sum())
    if different:
        yield f"the logits of {different} of {len(images)} images depend on the images beside them in the batch"


# -- zero-budget and randomness -------------------------------------------------------------------------------------


def zero_budget(case: Case) -> Verdict:
    """Asked for gradients, the defense answers clean images as it does when it is scored."""
    images = probes(case)
    plain = _logits(case, images, "zero")
    asked = _logits(case, images, "zero", gradients=True)
    changed = int(((plain.argmax(1) != asked.argmax(1)) & (_difference(plain, asked) > _SAME)).sum())
    text = f"{changed} of {len(images)} predictions at eps 0 differ from those on clean images"
    return Verdict(
        check="zero-budget",
        ruling="fail" if changed else "pass",
        text=text,
        numbers={"changed": changed, "images": len(images)},
    )


def randomness(case: Case) -> Verdict:
    """Logits repeat themselves, or the defense declares itself stochastic and is averaged over draws (EOT)."""
    images = probes(case)
    declared = case.pipeline.stochastic
    moved = int((_difference(_logits(case, images, "first"), _logits(case, images, "second")) > _SAME).sum())
    # With the draws of a declared source of noise held fixed, what still jumps is noise of another source.
    jumps = _jumps(case, images)
    numbers: dict[str, Any] = {"images": len(images), "moved": moved, "jumps": jumps, "eot": case.eot}
    wrong = None
    if beyond(jumps, len(images), 0.01):
        wrong = (
            f"a change of 1e-6 moves the output of {jumps} of {len(images)} images as far as one of 0.01 does: noise "
            "is drawn from the image itself, and averaging over draws (EOT) does not meet it"
        )
    elif declared and case.eot < 2:
        wrong = "the defense is stochastic and was attacked without averaging over draws; set eot"
    elif moved and not declared:
        wrong = f"the logits of {moved} of {len(images)} images differ between two passes, and no EOT was used"
    if wrong is not None:
        return Verdict(check="randomness", ruling="fail", text=wrong, numbers=numbers)
    text = f"declared stochastic; gradients are averaged over {case.eot} draws" if declared else "the logits repeat"
    return Verdict(check="randomness", ruling="pass", text=text, numbers=numbers)


def _jumps(case: Case, images: Images) -> int:
    """Return for how many images the logits answer a change of 1e-6 about as much as one of 0.01.

    Asked at points in general position, so that a quantiser's steps, which lie on a grid, are not met by design.
    """
    rng = case.rng(images, "jumps")
    shape = images.images.shape[1:]
    start = 0.02 + 0.96 * images.images + rng.uniform(shape, "start", low=-0.01, high=0.01)
    signs = rng.normal(shape, "signs").sign()
    here = _logits(case, images, "jumps", x=start)
    near = torch.stack([_logits(case, images, "jumps", x=start + size * signs) for size in (1e-6, -1e-6)])
    far = torch.stack([_logits(case, images, "jumps", x=start + size * signs) for size in (1e-2, -1e-2)])
    small = (near - here).abs().amax((0, 2))
    large = (far - here).abs().amax((0, 2))
    scale = here.abs().amax(1).clamp_min(1e-30)
    return int(((small > 0.25 * large) & (small > 1e-3 * scale)).sum())


# -- gradients ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slope:
    """One part of the pipeline as a function from images to one number per image."""

    name: str
    stage: FittedStage | None
    """None for the classifier."""


def gradients(case: Case) -> Verdict:
    """Gradients exist, are not zero under cross-entropy and margin alike, and agree with finite differences."""
    images = probes(case)
    x = images.images.to(case.device)
    labels = images.labels.to(case.device)
    rng = case.rng(images, "gradients")
    wrong: list[str] = []
    numbers: dict[str, Any] = {"images": len(images)}
    try:
        point = x.clone().requires_grad_()
        with global_seed("evidence", "gradients"):
            logits = case.pipeline(point, rng).logits
        known = (logits.argmax(1) == labels).cpu()
        zero = torch.ones(len(images), dtype=torch.bool)
        losses = (functional.cross_entropy(logits, labels, reduction="none"), margins(logits, labels))
        for loss in losses:
            (gradient,) = torch.autograd.grad(loss.sum(), point, retain_graph=True, allow_unused=True)
            if gradient is None:
                raise GradientCut("no gradient reaches the images")
            sizes = gradient.flatten(1).abs().amax(1).cpu()
            if not bool(torch.isfinite(sizes).all()):
                wrong.append(f"the gradients of {int((~torch.isfinite(sizes)).sum())} images are NaN or infinite")
            zero &= sizes == 0
        silent = int((zero & known).sum())
        numbers |= {"silent": silent, "correct": int(known.sum())}
        if beyond(silent, max(int(known.sum()), 1), 0.01):
            wrong.append(f"zero under cross-entropy and margin for {silent} of {int(known.sum())} correct images")
    except (GradientCut, RuntimeError) as error:
        wrong.append(" ".join(str(error).split())[:200])
    for slope in _slopes(case):
        off, asked = _disagreements(case, slope, images)
        numbers[f"disagree {slope.name}"] = off
        if beyond(off, max(asked, 1), 0.05):
            wrong.append(f"those of {slope.name} disagree with finite differences for {off} of {asked} images")
    text = "; ".join(wrong) if wrong else "gradients are there, and agree with finite differences"
    return Verdict(check="gradients", ruling="fail" if wrong else "pass", text=text, numbers=numbers)


def _slopes(case: Case) -> Iterator[_Slope]:
    for stage in case.stages:
        if stage.transforms and stage.differentiable:
            yield _Slope(stage.component, stage)
    yield _Slope("the classifier", None)


def _disagreements(case: Case, slope: _Slope, images: Images) -> tuple[int, int]:
    """Return for how many images autograd's slope is not that of finite differences, and of how many asked.

    In float64 where the stage computes in it, and in float32 with longer steps: the better of the two counts, since
    what computes in float32 inside has no slope at small steps. Asked inside [0, 1], where clipping has no kink, along
    the gradient and along a random direction. (0, 0) where the stage can be asked in neither.
    """
    rng = case.rng(images, "slopes")
    shape = images.images.shape[1:]
    start = (0.05 + 0.9 * images.images + rng.uniform(shape, "start", low=-0.01, high=0.01)).to(case.device)
    seen = rng.normal(shape, "seen").to(start)
    random = rng.normal(shape, "direction").to(start)
    best: int | None = None
    for precision, step in ((torch.float64, 1e-6), (torch.float32, 2e-3)):
        try:
            function = _function(case, slope, images, rng, precision, seen)
            off = int(_compare(function, start.to(precision), random.to(precision), step).sum())
        except (RuntimeError, TypeError, ValueError, CellError):
            continue
        best = off if best is None else min(best, off)
        if best == 0:
            break
    return (0, 0) if best is None else (best, len(images))


def _function(case: Case, slope: _Slope, images: Images, rng: ImageRandom, precision: torch.dtype, seen: Tensor) -> Any:
    if slope.stage is None:
        network = copy.deepcopy(case.pipeline.classifier).to(precision)

        def classify(x: Tensor) -> Tensor:
            logits: Tensor = network(x)
            if logits.dtype != precision:
                raise TypeError(f"computes in {logits.dtype}")
            return margins(logits, images.labels.to(logits.device))

        return classify
    defense = copy.deepcopy(slope.stage.defense)
    for module in held_modules_of(defense):
        module.to(precision)
    position = [own.component for own in case.pipeline.stages].index(slope.stage.component)
    draws = rng.child("stage", position)

    def purify(x: Tensor) -> Tensor:
        with global_seed("evidence", "slopes"):
            purified = defense.purify(x.clone(), draws)
        if purified.dtype != precision:
            raise TypeError(f"computes in {purified.dtype}")
        return (purified * seen.to(precision)).flatten(1).sum(1)

    return purify


def _compare(function: Any, start: Tensor, random: Tensor, step: float) -> Tensor:
    """Return per image whether the slopes disagree along any direction."""
    point = start.clone().requires_grad_()
    value = function(point)
    (gradient,) = torch.autograd.grad(value.sum(), point, allow_unused=True) if value.requires_grad else (None,)
    gradient = torch.zeros_like(start) if gradient is None else gradient
    off = torch.zeros(len(start), dtype=torch.bool)
    shape = (-1, *[1] * (start.dim() - 1))
    for direction in (gradient.detach(), random):
        length = direction.flatten(1).norm(dim=1)
        unit = direction / length.clamp_min(1e-300 if start.dtype == torch.float64 else 1e-30).view(shape)
        claimed = (gradient * unit).flatten(1).sum(1)
        with torch.no_grad():
            ahead, behind = function(start + step * unit), function(start - step * unit)
        measured = (ahead - behind) / (2 * step)
        rounding = 8 * torch.finfo(start.dtype).eps * value.detach().abs().clamp_min(1e-3) / step
        size = torch.maximum(claimed.abs(), measured.abs())
        off |= ((claimed - measured).abs() > 0.25 * size + rounding).cpu()
    return off


# -- shared ---------------------------------------------------------------------------------------------------------


def held_modules(stage: FittedStage) -> list[nn.Module]:
    """Return every network that a stage holds in its fields, whether it lists it in ``modules`` or not."""
    return held_modules_of(stage.defense)


def held_modules_of(defense: object) -> list[nn.Module]:
    """Return the networks among an object's fields, in lists, tuples, dictionaries and plain objects too."""
    found: dict[int, nn.Module] = {}
    waiting: list[Any] = [defense]
    met: set[int] = set()
    while waiting and len(met) < 10_000:
        value = waiting.pop()
        if id(value) in met:
            continue
        met.add(id(value))
        if isinstance(value, nn.Module):
            found[id(value)] = value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif hasattr(value, "__dict__") and not isinstance(value, type | Tensor):
            waiting += vars(value).values()
    modules = getattr(defense, "modules", None)
    if callable(modules):
        found |= {id(module): module for module in modules()}
    return list(found.values())


def picture(case: Case) -> dict[str, bytes]:
    """Return every weight and buffer of the classifier and the stages by name."""
    networks = [("classifier", case.networks.classifier), ("defended classifier", case.pipeline.classifier)]
    networks += [
        (f"{stage.component} {number}", module)
        for stage in case.stages
        for number, module in enumerate(held_modules(stage))
    ]
    return {
        f"{where} {name}": _bytes(value) for where, network in networks for name, value in network.state_dict().items()
    }


def _bytes(value: object) -> bytes:
    """Return what tells two states apart: a module may keep more than tensors there."""
    if not isinstance(value, Tensor):
        return repr(value).encode()
    if value.is_quantized or value.is_sparse:
        return repr(value.dequantize() if value.is_quantized else value.to_dense()).encode()
    # As bytes, since numpy does not know every type of torch's.
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _logits(case: Case, images: Images, purpose: str, *, x: Tensor | None = None, gradients: bool = False) -> Tensor:
    """Return logits ``[N, classes]`` in float64 on the CPU; the same purpose repeats declared draws, no others."""
    point = (images.images if x is None else x).to(case.device).clone().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        # Undeclared draws from global state are not repeated: the purpose seeds them anew.
        with global_seed("evidence", purpose):
            logits = case.pipeline(point, case.rng(images, purpose)).logits
    return logits.detach().double().cpu()


def _difference(one: Tensor, two: Tensor) -> Tensor:
    """Return per image the largest difference of logits in units of the largest logit."""
    scale = torch.maximum(one.abs(), two.abs()).amax(1).clamp_min(1e-30)
    return (one - two).abs().amax(1) / scale
