"""What a defense must do, one function per property; each raises ContractViolation with the numbers.

Checks that build on another one raise NotJudged where that one fails, so that a mistake shows once, under its own name.
A chain is checked as a whole: each stage is fitted on the output of those before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoshield_bench.contracts import Defense
from autoshield_bench.engine.guard import check_shape
from autoshield_bench.engine.pipeline import FittedStage
from autoshield_bench.errors import CellError
from autoshield_bench.testing.checks import check
from autoshield_bench.testing.defense_runs import Fitted, defended, fit_stage, fitted
from autoshield_bench.testing.outcome import ContractViolation, NotJudged, must_not_raise, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, SHAPE, World, changed, model_state

# What is returned -------------------------------------------------------------------------------------------------


@check(
    "defense",
    "like-images",
    meaning="purify returns the shape, the dtype and the device of its input.",
    catches="float64 from a detour through numpy, or a resized image that is not resized back.",
    remedy="Resize the result back, and let networks inside compute in float32. After a detour through numpy, "
    "`torch.from_numpy(result).to(x)` gives dtype and device back; it also cuts the gradient, so declare "
    "`differentiable=False`.",
)
def like_images(subject: Subject, world: World) -> None:
    """Check shape, dtype and device after every stage."""
    x, rng = world.images, world.rng()
    for stage in fitted(subject, world).transforming:
        with torch.no_grad():
            returned = stage.defense.purify(x.clone(), rng.child(stage.component))
        try:
            x = check_shape(returned, x, f"{stage.component}: purify")
        except CellError as error:
            raise ContractViolation(str(error)) from error


@check(
    "defense",
    "unit-range",
    meaning="Purified images are finite and lie in [0, 1], also for images that are all 0 or all 1.",
    catches="The last layer has no sigmoid, or noise is added and not clipped.",
    remedy="End `purify` with `clip_to_range` from `autoshield_bench.straight_through`; where that cuts more than a "
    "rounding error, declare `differentiable=False` and let `surrogate` return the unclipped image. A division by "
    "the spread of an image needs `clamp_min(1e-12)`, since an image of one value has none.",
)
def unit_range(subject: Subject, world: World) -> None:
    """Check the values of purified images."""
    defense = fitted(subject, world)
    for name, x in (
        ("images", world.images),
        ("black images", torch.zeros_like(world.images)),
        ("white images", torch.ones_like(world.images)),
    ):
        result = defense.purify(x, world.rng())
        if not isinstance(result, Tensor) or result.shape != x.shape:
            raise NotJudged("purify returns no batch of images (check 'like-images')")
        broken = int((~torch.isfinite(result)).flatten(1).any(1).sum())
        require(broken == 0, f"{name}: NaN or infinity in {broken} of {len(x)}")
        low, high = float(result.min()), float(result.max())
        require(low >= 0 and high <= 1, f"{name}: values from {low:.6g} to {high:.6g}")


@check(
    "defense",
    "logits",
    meaning="The defended pipeline gives finite logits [N, classes] of the classifier's dtype and device.",
    catches="defend() returns a network with one output too many, or one that returns a tuple.",
    remedy="Let `defend` return a network whose `forward` gives one tensor, with as many columns as the classifier "
    "that it was handed: unpack tuples and drop further outputs, such as a class for rejected images, inside it. "
    "`.to(x)` gives the dtype and the device of the input back.",
)
def logits(subject: Subject, world: World) -> None:
    """Check what the defended pipeline returns."""
    defense = fitted(subject, world)
    if any(stage.transforms for stage in defense.stages):
        _require_images(defense, world)
    with torch.no_grad():
        plain = world.classifier()(world.images)
    returned: object = defense.logits(world)
    if not isinstance(returned, Tensor):
        raise ContractViolation(f"the pipeline returned {type(returned).__name__} where logits belong")
    require(returned.shape == plain.shape, f"shape {tuple(returned.shape)} where {tuple(plain.shape)} belongs")
    require(returned.dtype == plain.dtype, f"{returned.dtype} where {plain.dtype} belongs")
    require(returned.device == plain.device, f"on {returned.device} where {plain.device} belongs")
    broken = int((~torch.isfinite(returned)).any(1).sum())
    require(broken == 0, f"NaN or infinity in the logits of {broken} of {IMAGES} images")


@check(
    "defense",
    "not-probabilities",
    meaning="A defense that replaces the classifier returns logits, not probabilities.",
    catches="A softmax at the end: an attack's cross-entropy then takes a second one, and its gradients vanish.",
    remedy="Remove the softmax or the sigmoid at the end of the network that `defend` returns. Where probabilities "
    "are averaged, as in an ensemble, return the logarithm of the mean.",
)
def not_probabilities(subject: Subject, world: World) -> None:
    """Check that rows are not distributions."""
    defense = fitted(subject, world)
    if all(type(stage.defense).defend is Defense.defend for stage in defense.stages):
        raise NotJudged("it does not replace the classifier")
    rows = defended(defense, world).double()
    distributions = int(((rows >= 0).all(1) & ((rows.sum(1) - 1).abs() < 1e-3)).sum())
    require(distributions < len(rows), f"the outputs of all {len(rows)} images are non-negative and sum to 1")


@check(
    "defense",
    "empty-batch",
    meaning="A batch of no images gives a batch of no images.",
    catches="mean() over no images.",
    remedy="Return `x` where `len(x) == 0`, before any reduction over the batch; in a network that `defend` returns, "
    "handle an empty batch in `forward` so that logits of the shape [0, classes] come back.",
)
def empty_batch(subject: Subject, world: World) -> None:
    """Check a batch of none."""
    defense = fitted(subject, world)
    defended(defense, world)
    with must_not_raise("for a batch of no images it"):
        shape = tuple(defense.logits(world, []).shape)
    require(shape == (0, world.classes), f"logits of shape {shape} where {(0, world.classes)} belongs")


@check(
    "defense",
    "batch-of-one",
    meaning="A batch of one image works like any other.",
    catches="squeeze() takes the batch dimension away.",
    remedy="Name the dimension in every `squeeze`, `max` and `mean`, so that dimension 0 stays the batch whatever "
    "its size. Networks belong in `modules()`: batch normalisation in training mode may refuse a single image.",
)
def batch_of_one(subject: Subject, world: World) -> None:
    """Check a batch of one."""
    defense = fitted(subject, world)
    defended(defense, world)
    with must_not_raise("for a batch of one image it"):
        shape = tuple(defense.logits(world, [3]).shape)
    require(shape == (1, world.classes), f"logits of shape {shape} where {(1, world.classes)} belongs")


# What is left alone -----------------------------------------------------------------------------------------------


@check(
    "defense",
    "inputs-untouched",
    meaning="purify leaves the images that it is handed as they were.",
    catches="x.clamp_(0, 1) on the caller's own tensor.",
    remedy="Use operations that return new tensors (`x.mul(0.9)`, `x = x + noise`) in place of `x.mul_(0.9)` and `x "
    "+= noise`, or begin `purify` with `x = x.clone()`.",
)
def inputs_untouched(subject: Subject, world: World) -> None:
    """Check the images after each stage."""
    x, rng = world.images, world.rng()
    for stage in fitted(subject, world).transforming:
        given = x.clone()
        with torch.no_grad():
            returned = stage.defense.purify(given, rng.child(stage.component))
        moved = int((given != x).flatten(1).any(1).sum())
        require(moved == 0, f"{stage.component}: {moved} of {len(x)} images were changed in place")
        if returned.shape != x.shape:
            raise NotJudged("purify returns no batch of images (check 'like-images')")
        x = returned.clone()


@check(
    "defense",
    "classifier-untouched",
    meaning="fit leaves the classifier that it is handed as it was: weights, buffers, gradients, hooks and flags.",
    catches="Adversarial training that fine-tunes the shared classifier instead of a copy.",
    remedy="Work on `copy.deepcopy(request.classifier)` in `fit`, and train, unfreeze or hook that. Gradients with "
    "respect to images come from `torch.autograd.grad(loss, x)`, which leaves nothing on the weights.",
)
def classifier_untouched(subject: Subject, world: World) -> None:
    """Check the classifier handed to ``fit``, after it and after a pass. ``defend`` is handed a copy of its own."""
    if not any(spec.needs_classifier for spec, _make in subject.parts):
        raise NotJudged("it is handed no classifier")
    classifier = world.classifier()
    before = model_state(classifier)
    stages: list[FittedStage] = []
    for position, part in enumerate(subject.parts):
        stages.append(fit_stage(part, world, tuple(stages), position, classifier=classifier))
        difference = changed(before, model_state(classifier))
        require(not difference, f"{stages[-1].component}: fit changed: {difference}")
    Fitted(tuple(stages)).logits(world)
    difference = changed(before, model_state(classifier))
    require(not difference, f"a pass changed: {difference}")


@check(
    "defense",
    "modules-listed",
    meaning="modules() lists every network inside, so that the host can freeze and move it.",
    catches="A network that is not listed stays on the CPU, and in training mode.",
    remedy="Add the networks that the message names to what `modules()` returns, those kept in a list or a tuple "
    "included (`return (self.encoder, *self.decoders)`). A network that is part of a listed one is listed with it.",
)
def modules_listed(subject: Subject, world: World) -> None:
    """Check the networks that the instance holds against those it lists."""
    for stage in fitted(subject, world).stages:
        listed = {id(module) for top in stage.defense.modules() for module in top.modules()}
        holders = getattr(stage.defense, "__dict__", {})
        hidden = [
            name
            for name, value in holders.items()
            for each in (value if isinstance(value, list | tuple) else [value])
            if isinstance(each, nn.Module) and id(each) not in listed
        ]
        require(not hidden, f"{stage.component}: holds networks that modules() does not list: {', '.join(hidden)}")


@check(
    "defense",
    "anomaly-scores",
    meaning="A detector gives one finite score per image, and not the same one to all.",
    catches="A mean over the whole batch; a softmax that saturates to the same score everywhere.",
    remedy="Let `anomaly_score` return a float tensor [N] in which each score comes from its own image, such as "
    "`error.flatten(1).mean(1)`. Where scores saturate or overflow, score on the scale of logits "
    "(`classify(x).logsumexp(1)`), and put `clamp_min(1e-12)` under a logarithm.",
)
def anomaly_scores(subject: Subject, world: World) -> None:
    """Check the scores of every stage that detects, on clean and on noisy images."""
    defense = fitted(subject, world)
    if not any(stage.detects for stage in defense.stages):
        raise NotJudged("it scores no anomalies")
    _require_images(defense, world)
    noise = torch.randn(world.images.shape, generator=torch.Generator().manual_seed(19)).to(world.images)
    images = torch.cat([world.images, (world.images + 0.3 * noise).clamp(0, 1)])
    pipeline = defense.pipeline(world.classifier())
    try:
        with torch.no_grad():
            found = pipeline(images, world.rng(indices=list(range(len(images)))), detect=True).anomaly
    except CellError as error:
        raise ContractViolation(str(error)) from error
    for component, scores in found.items():
        spread = float(scores.max() - scores.min())
        require(spread > 0, f"{component}: all {len(scores)} images, clean and noisy, score {float(scores.max()):.6g}")


def _require_images(defense: Fitted, world: World) -> None:
    """Raise NotJudged where purified images are none, which has its own checks."""
    for stage in defense.stages:
        if stage.transforms:
            with torch.no_grad():
                returned: object = stage.defense.purify(world.images, world.rng())
            if not isinstance(returned, Tensor) or returned.shape != (IMAGES, *SHAPE):
                raise NotJudged("purify returns no batch of images (check 'like-images')")
            if returned.dtype != torch.float32 or not bool(((returned >= 0) & (returned <= 1)).all()):
                raise NotJudged("purified images are not float32 in [0, 1] (checks 'like-images' and 'unit-range')")
