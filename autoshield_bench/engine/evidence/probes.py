"""Checks that ask the networks themselves: are they live, and steady?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoshield_bench.engine.evidence.case import Case, Images, TooFew, beyond
from autoshield_bench.engine.integrity import held_modules, held_modules_of
from autoshield_bench.seeding import global_seed
from autoshield_bench.verdicts import Verdict

PROBES = 64
"""Images that the networks are asked about at most."""

_PART = 0.15
"""Share of the budget that buys them."""

_FEW = 8
"""Images that more of it may be spent on, where that share buys fewer."""

_PART_OF_FEW = 0.5
"""How much more."""

_FEWEST = 3
"""Images below which nothing is said."""

_QUESTIONS = 40
"""Passes through the pipeline that all probes together ask of an image, about."""

_SAME = 1e-3
"""Largest difference, in units of the largest logit of an image, that counts as rounding."""

_SAME_VALUE = 1e-4
"""Largest change of a value of an image that counts as none: a fortieth of a step of 8 bits."""

_SAME_SCORE = 0.01
"""The same for an anomaly score, in units of the spread of clean images: a divergence of nearly equal outputs rounds
coarsely."""


def probes(case: Case) -> Images:
    """Return clean test images to ask about. Raises TooFew where the budget does not buy enough of them."""
    usual, most = (int(case.budget * part) // (_QUESTIONS * case.forward) for part in (_PART, _PART_OF_FEW))
    if not case.budget:
        most = _FEW  # every attack failed, so that there is nothing to take a share of
    images = case.sample(case.test(case.evaluated), min(PROBES, max(usual, min(_FEW, most))), "probes")
    if len(images) < _FEWEST:
        raise TooFew(f"{len(images)} images")
    return images


def noisy(case: Case, images: Images) -> Tensor:
    """Return the images under noise of the size of the ball: random signs, of random size, since a step of one size
    may lead from one level of a quantiser to another."""
    rng, shape = case.rng(images, "noise"), images.images.shape[1:]
    noise = rng.normal(shape, "signs").sign() * rng.uniform(shape, "sizes", low=0.5, high=1.0)
    size = case.plan.id.eps if case.plan.id.norm == "linf" else case.plan.id.eps / images.images[0].numel() ** 0.5
    return (images.images + max(size, 0.05) * noise).clamp(0, 1)


# -- live ---------------------------------------------------------------------------------------------------------


def live(case: Case, before: Picture | BaseException) -> Verdict:
    """The defense is called and does something, nothing is in training mode, no weight and no answer changed during the
    attacks.

    ``before`` was taken before the evidence's attacks; why there is none is raised.
    """
    if isinstance(before, BaseException):
        raise before
    wrong = [*_idle(case), *_trains(case), *_mixes(case), *_drifts(case, before.answers)]
    changed = sorted(name for name, value in weights(case).items() if before.weights.get(name) != value)
    if changed:
        wrong.append(f"weights or buffers changed during the attacks: {', '.join(changed[:3])}")
    put_back = sorted({name for cell in case.plan.cells for name in case.changed(cell)})
    if put_back:
        wrong.append(f"plugins changed the networks, which were put back: {', '.join(put_back[:3])}")
    if wrong:
        return Verdict(check="live", ruling="fail", text="; ".join(wrong), numbers={"changed": len(changed)})
    text = "the defense is called, no module that matters is in training mode, no weight changed"
    if not case.stages:
        text = "the classifier is in evaluation mode, no weight changed"
    return Verdict(check="live", ruling="pass", text=text)


def _idle(case: Case) -> Iterator[str]:
    """Yield the stages that do nothing to any probe, clean or noisy, rounding apart."""
    images = probes(case)
    x = torch.cat([images.images, noisy(case, images)]).to(case.device)
    rng = case.rng(images, "idle").select(torch.arange(len(images)).repeat(2))
    with torch.no_grad(), global_seed("evidence", "idle"):
        for position, stage in enumerate(case.stages):
            if not (stage.transforms or stage.replaces or stage.detects):
                yield f"{stage.component} overrides none of purify, defend and anomaly_score, so it is never called"
            acts, idle = stage.detects, []
            if stage.replaces and not acts:
                replaced = stage.defense.defend(copy.deepcopy(case.networks.classifier)).eval()
                case.counter.forward("classifier", 2 * len(x))
                with_it, without = (_bare(network(x)) for network in (replaced, case.networks.classifier))
                acts |= bool(with_it.other(without)["logits"].any())
                idle.append("gives back a classifier that answers like the undefended one")
            if stage.transforms:
                purified = stage.defense.purify(x.clone(), rng.child("stage", position))
                case.counter.forward(stage.component, len(x))
                acts |= bool(((purified - x).abs() > _SAME_VALUE).any())
                idle.append(f"returns every one of {len(x)} images unchanged, clean and noisy")
                x = purified
            if idle and not acts:
                yield f"{stage.component} {' and '.join(idle)}"


def _trains(case: Case) -> Iterator[str]:
    """Yield the stages that hold a module in training mode whose output depends on that mode."""
    images = probes(case)
    x = images.images.to(case.device)
    rng = case.rng(images, "trains")
    with torch.no_grad(), global_seed("evidence", "trains"):
        for stage in case.stages:
            if stage.transforms:
                stage.defense.purify(x.clone(), rng)
                case.counter.forward(stage.component, len(x))
            if stage.detects:
                stage.defense.anomaly_score(x.clone(), case.classify, rng)
                case.counter.forward(stage.component, len(x))
            training = [
                type(module).__name__
                for held in held_modules(stage)
                for module in held.modules()
                if module.training and _has_modes(module)
            ]
            if training:
                yield f"{stage.component} holds {training[0]} in training mode"
        case.pipeline(x, rng)
        for held in held_modules_of(case.pipeline.classifier):
            for module in held.modules():
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
    """Yield what is wrong where what becomes of an image depends on the images that it travels with."""
    images = probes(case)
    together = answers(case, images, "company")
    apart = Answers(torch.empty_like(together.logits), torch.empty_like(together.scores))
    # Dark ones with dark ones: companies that differ as much as they can.
    order = images.images.flatten(1).mean(1).argsort(descending=True)
    for rows in torch.split(order, max(len(images) // 4, 1)):
        own = answers(case, images.at(rows), "company")
        apart.logits[rows], apart.scores[rows] = own.logits, own.scores
    for what, other in together.other(apart).items():
        if count := int(other.sum()):
            yield f"the {what} of {count} of {len(images)} images depend on the images beside them in the batch"


def _drifts(case: Case, before: Answers) -> Iterator[str]:
    """Yield what is wrong where the defense answers otherwise after the attacks than ``before`` them."""
    images = probes(case)
    if case.pipeline.stochastic:
        return  # whether its draws are the declared ones alone, another check asks
    for what, other in before.other(answers(case, images, "drift")).items():
        if count := int(other.sum()):
            yield f"the {what} of {count} of {len(images)} images are others after the attacks than before them"


# -- zero-budget and randomness -------------------------------------------------------------------------------------


def zero_budget(case: Case) -> Verdict:
    """Asked for gradients, the defense answers clean images as it does when it is scored."""
    images = probes(case)
    plain = answers(case, images, "zero")
    asked = answers(case, images, "zero", gradients=True)
    differs = plain.other(asked)
    others = int(differs["logits"].sum())
    changed = int(((plain.logits.argmax(1) != asked.logits.argmax(1)) & differs["logits"]).sum())
    scores = int(differs.get(_SCORES, torch.zeros(0)).sum())
    text = f"{changed} of {len(images)} predictions at eps 0 differ from those on clean images"
    if others > changed:
        text += f", and the logits of {others}"
    if scores:
        text += f", and {scores} anomaly scores"
    return Verdict(
        check="zero-budget",
        ruling="fail" if changed or scores or beyond(others, len(images), 0.01) else "pass",
        text=text,
        numbers={"changed": changed, "others": others, "images": len(images)},
    )


def randomness(case: Case) -> Verdict:
    """Outputs repeat themselves, or the defense declares itself stochastic and is averaged over draws (EOT)."""
    images = probes(case)
    declared = case.pipeline.stochastic
    differs = answers(case, images, "first").other(answers(case, images, "second"))
    moved = {what: int(own.sum()) for what, own in differs.items() if bool(own.any())}
    # With the draws of a declared source of noise held fixed, what still jumps is noise of another source.
    jumps, small, large = _jumps(case, images)
    numbers: dict[str, Any] = {
        "images": len(images),
        "moved": max(moved.values(), default=0),
        "jumps": jumps,
        "eot": case.eot,
    }
    wrong = None
    if beyond(jumps, len(images), 0.01):
        wrong = (
            f"a change of {small:g} moves the output of {jumps} of {len(images)} images about as far as one of "
            f"{large:g} does: noise is drawn from the image itself, and averaging over draws (EOT) does not meet it"
        )
    elif declared and case.eot < 2:
        wrong = "the defense is stochastic and was attacked without averaging over draws; set eot"
    elif moved and not declared:
        what, count = next(iter(moved.items()))
        wrong = f"the {what} of {count} of {len(images)} images differ between two passes, and no EOT was used"
    if wrong is not None:
        return Verdict(check="randomness", ruling="fail", text=wrong, numbers=numbers)
    text = f"declared stochastic; gradients are averaged over {case.eot} draws" if declared else "the logits repeat"
    return Verdict(check="randomness", ruling="pass", text=text, numbers=numbers)


_STRIDES = ((1e-6, 1e-2), (1e-3, 1e-1))
"""Changes of an image by which noise drawn from it is looked for: a small one, and one much larger."""

_AS_FAR = 0.25
"""Share of the larger one's answer that the small one may get. A staircase gets the root of their ratio, 0.1."""


def _jumps(case: Case, images: Images) -> tuple[int, float, float]:
    """Return for how many images logits or anomaly scores answer a small change about as much as a much larger one, and
    how large both are; zeros where none does.

    What is smooth answers in proportion, and a staircase, of whose steps the more are crossed, by the root. Noise that
    is seeded by the image, or by what rounding or adding up leaves of it, answers with another draw as soon as that
    changes, and one draw is as far off as any. Asked along random signs, and along one step for all values, which moves
    sums; at points in general position, so that a quantiser's steps, which lie on a grid, are not met by design.
    """
    rng = case.rng(images, "jumps")
    shape = images.images.shape[1:]
    start = 0.2 + 0.6 * images.images + rng.uniform(shape, "start", low=-0.1, high=0.1)
    here = answers(case, images, "jumps", x=start)
    signs = rng.normal(shape, "signs").sign()
    found = (0, 0.0, 0.0)
    for (small, large), ways in zip(_STRIDES, ((signs,), (signs, torch.ones_like(signs))), strict=True):
        near, far = (
            [answers(case, images, "jumps", x=start + size * way).away(here) for way in ways] for size in (small, large)
        )
        for what in range(len(near[0])):
            # Of all images together, since a small step may by chance cross a stair in some of them.
            most = max(_root_mean_square(own[what]) for own in far)
            for own in near:
                if _root_mean_square(own[what]) > _AS_FAR * most:
                    found = max(found, (int((own[what] > 1.0).sum()), small, large))
    return found


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


# -- shared ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """The networks at one moment."""

    weights: dict[str, bytes]
    answers: Answers


def picture(case: Case) -> Picture:
    """Return the networks as they are now."""
    return Picture(weights(case), answers(case, probes(case), "drift"))


def weights(case: Case) -> dict[str, bytes]:
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
    if isinstance(value, dict | list | tuple):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return b"".join(repr(key).encode() + _bytes(own) for key, own in entries)
    if not isinstance(value, Tensor):
        # The words of an object that has none of its own hold its address, which another copy does not share.
        return repr(value if type(value).__repr__ is not object.__repr__ else type(value)).encode()
    if value.is_quantized or value.layout != torch.strided:
        value = value.dequantize() if value.is_quantized else value.to_dense()
    # As bytes, since numpy does not know every type of torch's.
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


_SCORES = "anomaly scores"


@dataclass(frozen=True)
class Answers:
    """What the defense makes of images: logits ``[N, classes]``, and the scores of its detectors ``[N, detectors]`` in
    units of their spread over clean images; in float64, on the CPU."""

    logits: Tensor
    scores: Tensor

    def other(self, than: Answers) -> dict[str, Tensor]:
        """Return by name which images have others, rounding apart."""
        scale = torch.maximum(self.logits.abs(), than.logits.abs()).amax(1).clamp_min(1e-30)
        found = {"logits": (self.logits - than.logits).abs().amax(1) / scale > _SAME}
        if self.scores.shape[1]:
            found[_SCORES] = (self.scores - than.scores).abs().amax(1) > _SAME_SCORE
        return found

    def away(self, other: Answers) -> list[Tensor]:
        """Return how far each image's logits, and the scores of each detector, lie from others, in units of what
        counts as rounding."""
        scale = _SAME * other.logits.abs().amax(1).clamp_min(1e-30)
        logits = (self.logits - other.logits).abs().amax(1) / scale
        return [logits, *((self.scores - other.scores).abs() / _SAME_SCORE).T]


def _bare(logits: Tensor) -> Answers:
    """Return logits as the answers of what has no detector."""
    own = logits.double().cpu()
    return Answers(own, own.new_zeros(len(own), 0))


def answers(case: Case, images: Images, purpose: str, *, x: Tensor | None = None, gradients: bool = False) -> Answers:
    """Return what becomes of images; the same purpose repeats declared draws, no others."""
    point = (images.images if x is None else x).to(case.device).clone().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        # Undeclared draws from global state are not repeated: the purpose seeds them anew.
        with global_seed("evidence", purpose):
            output = case.pipeline(point, case.rng(images, purpose), detect=bool(case.thresholds))
    scores = [
        (output.anomaly[name].detach().double().cpu() - own.value) / own.scale for name, own in case.thresholds.items()
    ]
    logits = output.logits.detach().double().cpu()
    return Answers(logits, torch.stack(scores, 1) if scores else logits.new_zeros(len(images), 0))
