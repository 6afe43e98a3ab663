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
from autoshield_bench.testing.defense_runs import AGREEMENT, Fitted, defended, fit_stage, fitted, steady
from autoshield_bench.testing.outcome import ContractViolation, NotJudged, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, SHAPE, World, changed, global_state, model_state, random_state

# What is returned -------------------------------------------------------------------------------------------------


@check(
    "defense",
    "like-images",
    meaning="purify returns the shape, the dtype and the device of its input.",
    catches="float64 from a detour through numpy, or a resized image that is not resized back.",
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
)
def empty_batch(subject: Subject, world: World) -> None:
    """Check a batch of none."""
    defense = fitted(subject, world)
    defended(defense, world)
    shape = tuple(defense.logits(world, []).shape)
    require(shape == (0, world.classes), f"logits of shape {shape} where {(0, world.classes)} belongs")


@check(
    "defense",
    "batch-of-one",
    meaning="A batch of one image works like any other.",
    catches="squeeze() takes the batch dimension away.",
)
def batch_of_one(subject: Subject, world: World) -> None:
    """Check a batch of one."""
    defense = fitted(subject, world)
    defended(defense, world)
    try:
        shape = tuple(defense.logits(world, [3]).shape)
    except CellError as error:
        raise ContractViolation(str(error)) from error
    require(shape == (1, world.classes), f"logits of shape {shape} where {(1, world.classes)} belongs")


# What is left alone -----------------------------------------------------------------------------------------------


@check(
    "defense",
    "inputs-untouched",
    meaning="purify leaves the images that it is handed as they were.",
    catches="x.clamp_(0, 1) on the caller's own tensor.",
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
            found = pipeline.anomaly_scores(images, world.rng(indices=list(range(len(images)))))
    except CellError as error:
        raise ContractViolation(str(error)) from error
    for component, scores in found.items():
        spread = float(scores.max() - scores.min())
        require(spread > 0, f"{component}: all {len(scores)} images, clean and noisy, score {float(scores.max()):.6g}")


# Randomness -------------------------------------------------------------------------------------------------------


@check(
    "defense",
    "deterministic",
    meaning="A defense that is not declared stochastic gives the same logits whatever rng it is handed.",
    catches="Noise in a defense that forgot to say stochastic=True: white-box attacks then skip EOT.",
)
def deterministic(subject: Subject, world: World) -> None:
    """Check two passes with different rng."""
    defense = fitted(subject, world)
    if defense.stochastic:
        raise NotJudged("it is declared stochastic")
    first = steady(defense, world)
    differing = int((first != defended(defense, world, seed=8)).any(1).sum())
    require(differing == 0, f"the logits of {differing} of {IMAGES} images depend on the rng; declare stochastic=True")


@check(
    "defense",
    "seeded",
    meaning="The same rng and the same global seed give the same logits.",
    catches="A generator seeded from the clock, or what earlier batches left behind.",
)
def seeded(subject: Subject, world: World) -> None:
    """Check two passes with the same rng under the same global seed."""
    defense = fitted(subject, world)
    results = []
    for _run in range(2):
        with global_state(1):
            results.append(defended(defense, world))
    differing = int((results[0] != results[1]).any(1).sum())
    require(differing == 0, f"two passes with the same rng differ in {differing} of {IMAGES} images")


@check(
    "defense",
    "randomness-from-rng",
    meaning="Draws come from the rng that is handed in: the global generators neither matter nor move.",
    catches="torch.rand_like(x) in purify.",
)
def randomness_from_rng(subject: Subject, world: World) -> None:
    """Check passes under different global seeds, and the global generators afterwards."""
    defense = fitted(subject, world)
    with global_state(1):
        before = random_state()
        first = defended(defense, world)
        moved = changed(before, random_state())
    with global_state(1):
        again = defended(defense, world)
    if not torch.equal(first, again):
        raise NotJudged("two passes with the same rng and the same global seed differ (check 'seeded')")
    with global_state(2):
        differing = int((first != defended(defense, world)).any(1).sum())
    require(differing == 0, f"another global seed changes the logits of {differing} of {IMAGES} images; draw from rng")
    require(not moved, f"advanced or seeded the global generator of {moved}; draw from rng")


@check(
    "defense",
    "batch-invariant",
    meaning=f"An image's logits depend on neither the split into batches nor their order, to {AGREEMENT:g}.",
    catches="Images are normalised by the mean of their batch.",
)
def batch_invariant(subject: Subject, world: World) -> None:
    """Check the whole batch against parts of it, and against the reverse order."""
    defense = fitted(subject, world)
    whole = steady(defense, world)
    rows = list(range(IMAGES))
    parts = torch.cat([defended(defense, world, rows[start : start + 4]) for start in range(0, IMAGES, 4)])
    reverse = defended(defense, world, rows[::-1]).flip(0)
    for name, other in (("split into three batches", parts), ("in reverse order", reverse)):
        gaps = (whole - other).abs().amax(1)
        scale = max(1.0, float(whole.abs().max()))
        differing = int((gaps > AGREEMENT * scale).sum())
        require(differing == 0, f"{name}, {differing} of {IMAGES} images differ, by up to {float(gaps.max()):.3g}")


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
