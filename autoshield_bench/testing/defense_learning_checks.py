"""What a defense declares of its gradients, and what it learns and keeps: two more groups of ``defense_checks``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from autoshield_bench.contracts import Dataset, Defense
from autoshield_bench.engine.pipeline import FittedStage, frozen
from autoshield_bench.places import data_dir
from autoshield_bench.testing.checks import check
from autoshield_bench.testing.defense_runs import AGREEMENT, Fitted, defended, doubled, fitted, learns, steady
from autoshield_bench.testing.outcome import ContractViolation, NotJudged, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, World

FINE_STEP, FINE_TOLERANCE = 1e-6, 1e-3
"""Finite differences in float64: step, and relative error."""
COARSE_STEP, COARSE_TOLERANCE = 1e-2, 0.2
"""The same for a defense that computes in float32 whatever it is given."""
JUMP = 0.05
"""A step that crosses the plateaus of a quantiser."""
AGREEING = 0.8
"""Share of directional derivatives that must agree; the rest may sit on a kink, such as that of a ReLU."""
DIRECTIONS = 2
"""Random directions per image."""

Function = Callable[[Tensor], Tensor]


# Gradients --------------------------------------------------------------------------------------------------------


@check(
    "defense",
    "differentiable",
    meaning="A stage declared differentiable has finite gradients that agree with float64 finite differences.",
    catches="round() or .detach() inside: the gradient is zero or missing, and a white-box attack sees nothing.",
    remedy="Declare `differentiable=False` for a stage that rounds, compares, leaves torch or cuts much with "
    "`clip_to_range`: white-box attacks then go backward through `surrogate`, which is also the place for a "
    "straight-through estimate. Otherwise remove `detach`, `no_grad` and `.data`, and keep roots and divisions away "
    "from zero.",
)
def differentiable(subject: Subject, world: World) -> None:
    """Check the gradients of each stage against finite differences along random directions."""
    defense = fitted(subject, world)
    steady(defense, world)
    chosen = [stage for stage in defense.stages if stage.differentiable]
    if not chosen:
        raise NotJudged("it is declared not differentiable")
    for stage in chosen:
        for name, function, double in _functions(stage, world):
            _check_gradient(f"{stage.component}: {name}", function, double, world)


@check(
    "defense",
    "surrogate",
    meaning="A stage declared not differentiable has a surrogate of the same shape with a useful gradient.",
    catches="A surrogate that is itself cut off from its input, so that BPDA attacks get no gradient.",
    remedy="Compute `surrogate` from its argument in torch, without `detach`, rounding or `no_grad`, and return the "
    "shape that came in. Without an override it is the identity, which passes and suits a stage that changes images "
    "little.",
)
def surrogate(subject: Subject, world: World) -> None:
    """Check shape and gradient of each surrogate."""
    chosen = [stage for stage in fitted(subject, world).stages if not stage.differentiable and stage.transforms]
    if not chosen:
        raise NotJudged("no stage that transforms images is declared not differentiable")
    for stage in chosen:
        point = _inner(world).requires_grad_()
        with torch.enable_grad():
            returned = stage.defense.surrogate(point.clone())
        where = f"{stage.component}: surrogate"
        require(returned.shape == point.shape, f"{where}: shape {tuple(returned.shape)}, not {tuple(point.shape)}")
        gradient = _gradient(where, returned.sum(), point)
        useless = int((gradient == 0).flatten(1).all(1).sum())
        require(useless == 0, f"{where}: the gradient is zero in {useless} of {IMAGES} images")


def _functions(stage: FittedStage, world: World) -> Iterator[tuple[str, Function, Function]]:
    """Yield the maps of a stage: name, as it stands, and with its networks in float64."""
    rng = world.rng().child(stage.component)
    if stage.transforms:
        twin = doubled(stage.defense)
        # Clones, as the host hands them over: a stage may work in place.
        yield "purify", lambda x: stage.defense.purify(x.clone(), rng), lambda x: twin.purify(x.clone(), rng)
    if type(stage.defense).defend is not Defense.defend:
        plain, double = (frozen(stage.defense.defend(world.classifier())) for _copy in range(2))
        yield "defend", plain, double.double()


def _check_gradient(where: str, function: Function, double: Function, world: World) -> None:
    x, map_, step, tolerance = _inner(world).double(), double, FINE_STEP, FINE_TOLERANCE
    try:
        with torch.no_grad():
            fine = map_(x).dtype == torch.float64
    except RuntimeError:
        fine = False  # tensors of its own that stay float32
    if not fine:
        x, map_, step, tolerance = x.float(), function, COARSE_STEP, COARSE_TOLERANCE
    source = torch.Generator().manual_seed(23)
    point = x.clone().requires_grad_()
    with torch.enable_grad():
        output = map_(point)
        weights = torch.randn(output.shape, generator=source).to(output)
        gradient = _gradient(where, (output * weights).sum(), point)

    def change(offset: Tensor) -> Tensor:
        with torch.no_grad():
            return ((map_(x + offset) - map_(x - offset)) * weights).flatten(1).double().sum(1)

    expected, found = [], []
    for row in range(DIRECTIONS * IMAGES):
        # One image at a time, and the change of all outputs: images of a batch may depend on each other.
        direction = torch.zeros_like(x)
        direction[row % IMAGES] = torch.randn(x.shape[1:], generator=source).to(x)
        found.append((gradient * direction).double().sum())
        expected.append(change(step * direction).sum() / (2 * step))
    slopes, differences = torch.stack(found), torch.stack(expected)
    # Slopes that are nearly zero by chance are compared on the scale of the others.
    scale = torch.maximum(slopes.abs(), differences.abs()).clamp_min(0.1 * float(differences.abs().mean()) + 1e-12)
    share = float(((slopes - differences).abs() <= tolerance * scale).double().mean())
    require(
        share >= AGREEING,
        f"{where}: {1 - share:.0%} of directional derivatives disagree with finite differences "
        f"(autograd {float(slopes.abs().mean()):.4g} on average, differences {float(differences.abs().mean()):.4g})",
    )
    flat = (gradient == 0).flatten(1).all(1)
    jumps = change(JUMP * torch.randn(x.shape, generator=source).to(x)).abs() > 1e-6
    hidden = int((flat & jumps).sum())
    require(
        hidden == 0,
        f"{where}: the gradient is zero in {hidden} of {IMAGES} images whose output moves under a step of {JUMP:g}; "
        "declare differentiable=False",
    )


def _gradient(where: str, total: Tensor, point: Tensor) -> Tensor:
    if not total.requires_grad:
        raise ContractViolation(f"{where}: no gradient reaches the input")
    (gradient,) = torch.autograd.grad(total, point, allow_unused=True)
    if gradient is None:
        raise ContractViolation(f"{where}: no gradient reaches the input")
    broken = int((~torch.isfinite(gradient)).flatten(1).any(1).sum())
    require(broken == 0, f"{where}: the gradient is NaN or infinite in {broken} of {len(point)} images")
    return gradient


def _inner(world: World) -> Tensor:
    """Return images away from 0 and 1, where clipping would make a kink."""
    return world.images * 0.8 + 0.1


# What is learnt and kept ------------------------------------------------------------------------------------------


@check(
    "defense",
    "state-round-trip",
    meaning="A fresh instance that is given the saved state gives the same logits.",
    catches="A threshold learnt in fit that state() forgets, or weights drawn in `__post_init__` without a seed.",
    remedy="Let `state()` return every tensor that `fit` sets, a number as `torch.tensor(value)` and the weights of "
    "networks included, and let `load` set all of them. What is drawn when the instance is made, in `__post_init__` "
    "or in a default, needs a fixed seed.",
)
def state_round_trip(subject: Subject, world: World) -> None:
    """Check logits before and after saving and loading every stage."""
    from safetensors.torch import load, save

    defense = fitted(subject, world)
    before = steady(defense, world)
    copies = []
    for stage, (_spec, make) in zip(defense.stages, subject.parts, strict=True):
        twin: Defense = make()
        if learns(twin):
            state: Any = stage.defense.state()
            if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
                raise ContractViolation(f"{stage.component}: state() is not a mapping of names to tensors")
            twin.load(load(save({name: value.detach().cpu().contiguous().clone() for name, value in state.items()})))
        for module in twin.modules():
            frozen(module.to(world.device))
        copies.append(
            FittedStage(
                component=stage.component,
                defense=twin,
                differentiable=stage.differentiable,
                stochastic=stage.stochastic,
            )
        )
    _require_same(before, defended(Fitted(tuple(copies)), world), "after saving and loading")


@check(
    "defense",
    "fit-seeded",
    meaning="Fitting twice with the same seed gives the same logits.",
    catches="numpy.random.default_rng() without a seed, in fit.",
    remedy="Draw from `request.generator`, or from the global generator of torch, which the host seeds before `fit`. "
    "A generator of numpy takes its seed from there: `numpy.random.default_rng(request.generator.initial_seed())`.",
)
def fit_seeded(subject: Subject, world: World) -> None:
    """Check two fits with one seed."""
    _require_learning(subject)
    first = steady(fitted(subject, world), world)
    second = steady(fitted(subject, world), world)
    _require_same(first, second, "after a second fit with the same seed")


@check(
    "defense",
    "fit-reads-no-data",
    meaning="fit learns from what it is handed: it loads no data set and opens nothing in the data directory.",
    catches="fit loads the test images to choose a threshold.",
    remedy="Fit on `request.images` and `request.labels`, and choose thresholds on `request.validation_images`. "
    "Weights that come with the plugin lie in its own package, not in the data directory.",
)
def fit_reads_no_data(subject: Subject, world: World) -> None:
    """Check what is loaded and opened while fitting."""
    _require_learning(subject)
    with _watched() as seen:
        fitted(subject, world)
    require(not seen, f"fit read {', '.join(sorted(set(seen)))}")


_OPENED: list[list[str]] = []


def _record_open(event: str, arguments: tuple[Any, ...]) -> None:
    if _OPENED and event == "open" and isinstance(arguments[0], str):
        path = Path(arguments[0]).absolute()
        if data_dir().absolute() in path.parents:
            _OPENED[-1].append(str(path))


@contextlib.contextmanager
def _watched() -> Iterator[list[str]]:
    """Collect the data sets loaded and the files of the data directory opened in the block."""
    seen: list[str] = []
    # An audit hook cannot be taken back: one for the process, which sleeps outside of this block.
    if _record_open not in _HOOKED:
        sys.addaudithook(_record_open)
        _HOOKED.append(_record_open)
    _OPENED.append(seen)
    with contextlib.ExitStack() as patches:
        for kind in _all_datasets(Dataset):
            if "load" in vars(kind):
                patches.enter_context(mock.patch.object(kind, "load", _reporting(kind, kind.load, seen)))
        try:
            yield seen
        finally:
            _OPENED.pop()


_HOOKED: list[Callable[[str, tuple[Any, ...]], None]] = []


def _all_datasets(base: type) -> Iterator[type[Any]]:
    kind: type[Any]
    for kind in base.__subclasses__():
        yield kind
        yield from _all_datasets(kind)


def _reporting(kind: type, load: Callable[..., Any], seen: list[str]) -> Callable[..., Any]:
    def loading(*arguments: Any, **named: Any) -> Any:
        seen.append(f"the data set {kind.__name__}")
        return load(*arguments, **named)

    return loading


def _require_learning(subject: Subject) -> None:
    if not any(learns(make()) for _spec, make in subject.parts):
        raise NotJudged("it learns nothing")


def _require_same(first: Tensor, second: Tensor, when: str) -> None:
    gaps = (first - second).abs().amax(1)
    differing = int((gaps > AGREEMENT * max(1.0, float(first.abs().max()))).sum())
    require(
        differing == 0, f"{when}, the logits of {differing} of {IMAGES} images differ, by up to {float(gaps.max()):.3g}"
    )
