"""What an attack must do, one function per property; each raises ContractViolation with the numbers.

Checks that build on another one (a result must be finite before its strength can be judged) raise NotJudged where that
one fails, so that a mistake shows once, under its own name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoshield_bench.balls import distance
from autoshield_bench.contracts import Norm
from autoshield_bench.engine.guard import SLACK, check_shape
from autoshield_bench.errors import CellError
from autoshield_bench.testing.attack_runs import (
    EPS,
    WIDE,
    adversarial,
    chunks,
    declared,
    norms,
    request_for,
    run,
    steady,
    two_runs,
    with_eps,
)
from autoshield_bench.testing.checks import check
from autoshield_bench.testing.outcome import ContractViolation, NotJudged, must_not_raise, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, SHAPE, World, changed, global_state, model_state, random_state

AGREEMENT = 1e-5
"""Largest difference of two runs that must agree: the order of float32 sums may show, nothing else."""


# What is returned ------------------------------------------------------------------------------------------------


@check(
    "attack",
    "like-images",
    meaning="The result has the shape, the dtype and the device of the images.",
    catches="Images come back flattened, or as float64 from a detour through numpy.",
    remedy="Return a tensor of the shape of `request.images`. After a detour through numpy or another library, "
    "`torch.from_numpy(result).to(request.images)` gives it the dtype and the device back.",
)
def like_images(subject: Subject, world: World) -> None:
    """Check shape, dtype and device of the result."""
    for norm in norms(subject):
        request = request_for(subject, world, norm, EPS[norm])
        try:
            check_shape(run(subject, request), request.images, f"{norm}: the attack")
        except CellError as error:
            raise ContractViolation(str(error)) from error


@check(
    "attack",
    "finite",
    meaning="The result holds neither NaN nor infinity.",
    catches="A gradient is divided by its length, and the length is zero.",
    remedy="Put `clamp_min(1e-12)` under every length or maximum that something is divided by, and keep logarithms "
    "and roots away from zero. The check also runs on a classifier whose gradient is zero everywhere: there an image "
    "may stay where it is.",
)
def finite(subject: Subject, world: World) -> None:
    """Check that the result is finite, also where the gradient is zero."""
    flat = world.flat()
    for norm in norms(subject):
        for name, model in (("", None), (" where the gradient is zero", flat)):
            labels = None if model is None else torch.zeros_like(world.labels)
            request = request_for(subject, world, norm, EPS[norm], model=model, labels=labels)
            returned = run(subject, request)
            if not isinstance(returned, Tensor):
                raise NotJudged("the result is no tensor (check 'like-images')")
            broken = int((~torch.isfinite(returned)).flatten(1).any(1).sum())
            require(broken == 0, f"{norm}: NaN or infinity in {broken} of {len(returned)} images{name}")


@check(
    "attack",
    "unit-range",
    meaning="Every value of the result lies in [0, 1].",
    catches="The step is projected into the ball and never clipped to valid images.",
    remedy="Pass the last point through `Ball(request.images, request.threat).project`, which keeps to [0, 1] as "
    "well; the ball of a minimum-norm attack holds every image, so nothing else is cut. A wrapped library is told "
    "that images lie between 0 and 1, such as with `bounds=(0, 1)` in foolbox or `clip_values=(0, 1)` in the "
    "Adversarial Robustness Toolbox.",
)
def unit_range(subject: Subject, world: World) -> None:
    """Check that the result is an image, in a small and in a wide ball."""
    for norm in norms(subject):
        for eps in (EPS[norm], WIDE[norm]):
            result = adversarial(subject, request_for(subject, world, norm, eps))
            low, high = float(result.min()), float(result.max())
            require(low >= 0 and high <= 1, f"{norm} eps {eps:g}: values from {low:.6g} to {high:.6g}")


@check(
    "attack",
    "inside-ball",
    meaning=f"Every result lies within eps of its image, in float64 and with {SLACK:g} of slack.",
    catches="Steps add up past eps because nothing projects them back.",
    remedy="Pass every point through `Ball(request.images, request.threat).project`, which measures in float64, "
    "before it is returned. A wrapped library is given `request.threat.eps` in the units of [0, 1], not of 255, and "
    "the norm `request.threat.norm`.",
)
def inside_ball(subject: Subject, world: World) -> None:
    """Check distances in a small and in a wide ball."""
    for norm in with_eps(subject):
        for eps in (EPS[norm], WIDE[norm]):
            request = request_for(subject, world, norm, eps)
            clean = request.images.clone()
            lengths = distance(adversarial(subject, request), clean, norm)
            outside = int((lengths > eps + SLACK).sum())
            farthest = float(lengths.max())
            require(
                outside == 0,
                f"{norm} eps {eps:g}: {outside} of {len(clean)} images outside, the farthest at {farthest:.9g}",
            )


@check(
    "attack",
    "zero-eps",
    meaning=f"A ball of radius zero gives the images back, to {SLACK:g}.",
    catches="A smallest step, or a random start, that does not shrink with eps.",
    remedy="Make every step length and the size of a random start a multiple of `request.threat.eps`, as "
    "`Ball.random_start` does, instead of a constant. A last `Ball.project` brings back what has moved none the "
    "less.",
)
def zero_eps(subject: Subject, world: World) -> None:
    """Check that nothing moves at eps = 0."""
    for norm in with_eps(subject):
        request = request_for(subject, world, norm, 0.0)
        clean = request.images.clone()
        moved = float((adversarial(subject, request).double() - clean.double()).abs().max())
        require(moved <= SLACK, f"{norm} eps 0: a value moved by {moved:.6g}")


@check(
    "attack",
    "empty-batch",
    meaning="A batch of no images gives a batch of no images.",
    catches="max() over an empty dimension.",
    remedy="Return `request.images.clone()` where `len(request.images) == 0`, before any reduction over the batch "
    "and before a wrapped library is called.",
)
def empty_batch(subject: Subject, world: World) -> None:
    """Check a batch of none."""
    for norm in norms(subject):
        request = request_for(subject, world, norm, EPS[norm], rows=[])
        try:
            with must_not_raise(f"{norm}: for a batch of no images it"):
                returned = run(subject, request)
        except ContractViolation:
            _require_sound_batch(subject, world, norm)
            raise
        shape = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        require(shape == (0, *SHAPE), f"{norm}: {shape} where {(0, *SHAPE)} belongs")


@check(
    "attack",
    "batch-of-one",
    meaning="A batch of one image works like any other.",
    catches="squeeze() takes the batch dimension away.",
    remedy="Name the dimension in every `squeeze`, `max` and `mean`, so that dimension 0 stays the batch whatever "
    "its size; for one value per image write `x.flatten(1).amax(1)`.",
)
def batch_of_one(subject: Subject, world: World) -> None:
    """Check a batch of one."""
    for norm in norms(subject):
        request = request_for(subject, world, norm, EPS[norm], rows=[3])
        try:
            with must_not_raise(f"{norm}: for a batch of one image it"):
                check_shape(run(subject, request), request.images, f"{norm}: the attack")
        except ContractViolation:
            _require_sound_batch(subject, world, norm)
            raise


def _require_sound_batch(subject: Subject, world: World, norm: Norm) -> None:
    """Raise where the attack goes wrong on every batch: that is another check's matter, or an error of its own."""
    adversarial(subject, request_for(subject, world, norm, EPS[norm]))


# What is left alone ----------------------------------------------------------------------------------------------


@check(
    "attack",
    "inputs-untouched",
    meaning="Images and labels that were handed in are what they were.",
    catches="x += step, where x is the request's own tensor.",
    remedy="Begin with `x = request.images.clone()`, and write `x = x + step` in place of `x += step`. A wrapped "
    "library that works in place is handed clones of the images and of the labels.",
)
def inputs_untouched(subject: Subject, world: World) -> None:
    """Check images and labels after a run."""
    for norm in norms(subject):
        request = request_for(subject, world, norm, EPS[norm])
        run(subject, request)
        moved = int((request.images != world.images).flatten(1).any(1).sum())
        require(moved == 0, f"{norm}: {moved} of {IMAGES} images were changed in place")
        relabelled = int((request.labels != world.labels).sum())
        require(relabelled == 0, f"{norm}: {relabelled} of {IMAGES} labels were changed in place")


@check(
    "attack",
    "model-untouched",
    meaning="Weights, buffers, gradients, hooks and train/eval flags of the network are what they were.",
    catches="loss.backward() fills the gradients of the weights, or train() is never taken back.",
    remedy="Take gradients with `request.target.loss_gradient`, or with `torch.autograd.grad(loss, x)` in place of "
    "`loss.backward()`. A library that wants a network is handed `TargetModule(request)`, so that its calls of "
    "`train()` and its hooks reach that one alone.",
)
def model_untouched(subject: Subject, world: World) -> None:
    """Check the network behind the target after a run."""
    for norm in norms(subject):
        model = world.classifier()
        before = model_state(model)
        run(subject, request_for(subject, world, norm, EPS[norm], model=model))
        difference = changed(before, model_state(model))
        require(not difference, f"{norm}: changed: {difference}")


@check(
    "attack",
    "random-state-untouched",
    meaning="The global generators of torch, numpy and random are what they were.",
    catches="torch.manual_seed(0) inside the attack, which seeds everybody else as well.",
    remedy="Draw with `request.rng.uniform` and `request.rng.normal` in place of torch.rand, numpy.random and "
    'random, and seed nothing. An adapter of a library that draws from global state declares `randomness="global"`: '
    "the host then seeds that state and gives it back.",
)
def random_state_untouched(subject: Subject, world: World) -> None:
    """Check the global generators after a run."""
    if declared(subject).randomness != "rng":
        raise NotJudged("it declares that it draws from them; the host gives them back as they were")
    for norm in norms(subject):
        request = request_for(subject, world, norm, EPS[norm])
        before = random_state()
        run(subject, request)
        difference = changed(before, random_state())
        require(
            not difference, f"{norm}: advanced or seeded the global generator of {difference}; draw from request.rng"
        )


@check(
    "attack",
    "grad-mode-untouched",
    meaning="Grad mode and default dtype are what they were.",
    catches="torch.set_grad_enabled(False) without a with.",
    remedy="Switch gradients with `with torch.no_grad():` or `with torch.enable_grad():`, which end with their "
    "block. Give the dtype to the tensors that need it in place of `torch.set_default_dtype`.",
)
def grad_mode_untouched(subject: Subject, world: World) -> None:
    """Check grad mode and default dtype after a run."""
    for norm in norms(subject):
        request = request_for(subject, world, norm, EPS[norm])
        before = {"grad mode": torch.is_grad_enabled(), "default dtype": torch.get_default_dtype()}
        with global_state(0):
            run(subject, request)
            after = {"grad mode": torch.is_grad_enabled(), "default dtype": torch.get_default_dtype()}
        difference = ", ".join(
            f"{name} from {before[name]} to {after[name]}" for name in before if before[name] != after[name]
        )
        require(not difference, f"{norm}: changed {difference}")


# Reproducible per image -------------------------------------------------------------------------------------------


@check(
    "attack",
    "same-seed",
    meaning="The same request gives the same result bit by bit, whatever the global seed and whatever ran before.",
    catches="Draws from torch.rand instead of request.rng, or a counter kept on the instance.",
    remedy='Take every draw from `request.rng`, named after its step (`request.rng.normal(x.shape[1:], "step", '
    "number)`), and keep nothing on the instance from one call of `run` to the next. A library that draws from "
    'global state is declared `randomness="global"`, one that cannot be seeded `randomness="irreproducible"`.',
)
def same_seed(subject: Subject, world: World) -> None:
    """Check two runs of one instance under different global seeds."""
    if declared(subject).randomness == "irreproducible":
        raise NotJudged("it declares itself irreproducible")
    for norm in norms(subject):
        first, second = two_runs(subject, world, norm)
        differing = int((first != second).flatten(1).any(1).sum())
        gap = float((first - second).abs().max())
        require(
            differing == 0,
            f"{norm}: two runs with one seed differ in {differing} of {IMAGES} images, by up to {gap:.3g}",
        )


@check(
    "attack",
    "batch-invariant",
    meaning=f"An image's result depends on neither the split into batches nor their order, to {AGREEMENT:g}.",
    catches="A step is scaled by the largest gradient of the batch instead of the image's own.",
    remedy='Compute norms, losses (`reduction="none"`), step lengths and stopping rules per image, draw from '
    "`request.rng`, and call `request.target.select(rows)` and `request.rng.select(rows)` where the batch shrinks. A "
    "method that needs the batch as a whole is declared `depends_on_batch=True`.",
)
def batch_invariant(subject: Subject, world: World) -> None:
    """Check the whole batch against parts of it, and against the reverse order."""
    spec = declared(subject)
    if spec.randomness != "rng":
        raise NotJudged(f"it declares randomness={spec.randomness!r}: the size of a batch is part of its keys")
    if spec.depends_on_batch:
        raise NotJudged("it declares that results depend on the batch, whose size is part of its keys")
    for norm in norms(subject):
        whole = steady(subject, world, norm)
        attack = subject.make()
        parts = [
            adversarial(subject, request_for(subject, world, norm, EPS[norm], rows=rows), attack) for rows in chunks()
        ]
        backwards = list(reversed(range(IMAGES)))
        reverse = adversarial(subject, request_for(subject, world, norm, EPS[norm], rows=backwards), attack).flip(0)
        for name, other in (("split into three batches", torch.cat(parts)), ("in reverse order", reverse)):
            gaps = (whole - other).abs().flatten(1).amax(1)
            differing = int((gaps > AGREEMENT).sum())
            require(
                differing == 0,
                f"{norm}: {name}, {differing} of {IMAGES} images differ, by up to {float(gaps.max()):.3g}",
            )
